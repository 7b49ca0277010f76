"""The worker process: the only place where the C library runs. `python -m memfit.engines.llamacpp.worker`.

It answers the requests of channel.py and knows nothing of budgets beyond a limit it is given, nothing
of plans and nothing of terminals. It imports neither rich nor click, and numpy only for several sequences.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.engines.allocator import keep_fast, trim
from memfit.engines.channel import Aborted, Channel, run_worker
from memfit.engines.llamacpp.decode_batch import compute_text
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.embedding_loop import MOST_SENT_BYTES, EmbeddingLoop
from memfit.engines.llamacpp.grammar import Grammars
from memfit.engines.llamacpp.kernels import Bench, BusyMachineError
from memfit.engines.llamacpp.library import load_library
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.prompt import prompt_tokens
from memfit.engines.llamacpp.request_loop import RequestLoop
from memfit.engines.llamacpp.sampling import Sampler
from memfit.engines.llamacpp.serving import find_served
from memfit.engines.llamacpp.template import require_template
from memfit.engines.requests import Request, Sampling
from memfit.errors import MemfitError
from memfit.hardware.cpu_use import CpuMeter
from memfit.hardware.machine import is_remote
from memfit.headers.model_spec import TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.grammars import grammar_limit_bytes
from memfit.memory.process_memory import process_memory
from memfit.units import MIB

if TYPE_CHECKING:
    from memfit.engines.llamacpp.probing import Probe

_MOST_THREADS = 64  # of a worker whose work buffer is foreseen
_CANDIDATE_BYTES = 12  # llama_token_data: id, logit, probability
_SCORE_BYTES = 20  # per token of the vocabulary: exponentials in float32, and their order


class LlamaCommands:
    """What the worker is told to do, with one model at a time, simulated or loaded."""

    def __init__(self) -> None:
        self.model: LlamaModel | None = None
        self.channel = Channel(lambda: self.model)
        self._simulated: LlamaConfig | None = None  # what of its config a loaded model depends on
        self._devices: Devices | None = None
        self._grammars: Grammars  # from here on only of a model that is loaded
        self._loop: RequestLoop | EmbeddingLoop
        self._probe: Probe | None = None
        # Errors are logged always: the parent quotes the last lines when a request fails.
        self.library = load_library(verbose=bool(os.environ.get("MEMFIT_WORKER_VERBOSE")))
        self.library.api.llama_backend_init()

    def serve(self) -> None:
        self.channel.serve(
            {
                "simulate": self.simulate,
                "tokenize": self.tokenize,
                "device_memory": self.device_memory,
                "gpus": self.gpus,
                "load": self.load,
                "open": self.open,
                "measure": self.measure,
                "collect": self.collect,
                "write_imatrix": self.write_imatrix,
                "begin_probing": self.begin_probing,
                "probe": self.probe,
                "probe_errors": self.probe_errors,
                "kernels": self.measure_kernels,
            }
        )

    def simulate(
        self, config: dict[str, Any], without_vocabulary: list[Any] | None = None, with_grammar: bool = False
    ) -> dict[str, Any]:
        """Bytes of a configuration, without its weights. `without_vocabulary` is the architecture and
        the number of tokens, which then stand in for the vocabulary's text; `with_grammar` makes one over
        the vocabulary, which stays."""
        wanted = LlamaConfig.from_json(config)
        _import_for(wanted)
        placement = replace(wanted, **_CONTEXT_ONLY)
        if self.model is None or self._simulated != placement:
            if self.model is not None:
                self.model.close()
            overrides = _no_vocabulary(self.library.api, *without_vocabulary) if without_vocabulary else None
            devices = self._devices or Devices(self.library, dummies=True)
            self._devices, self._simulated = devices, placement
            self.model = LlamaModel(self.library, devices, wanted, simulate=True, overrides=overrides)
        model = self.model
        model.open_context(wanted)
        if with_grammar:
            self._begin_grammars(wanted, model.vocabulary)
            self._grammars.warm_up()
        if wanted.embeds and not without_vocabulary:
            model.tokenize("a", add_special=True)  # which makes its tables of letters: 2 MiB
        trim()  # earlier questions must not count in this one
        memory = process_memory()
        breakdown = model.memory_breakdown().values()
        scratch, most, more = model.work_buffer_bytes(wanted.threads, _MOST_THREADS, 2 * _MOST_THREADS)
        held = [
            {
                kind: sum(getattr(part, kind) for part in breakdown if part.device == device)
                for kind in ("weights_bytes", "kv_cache_bytes", "compute_bytes")
            }
            for device in (None, *model.device_addresses)
        ]
        held[0]["weights_bytes"] += model.added_bytes
        return {
            "context": model.context_tokens,
            "bytes": held,
            "scratch_bytes": scratch,
            "thread_bytes": -(-(more - most) // _MOST_THREADS),  # grows with threads, if at all, ever faster
            "candidate_bytes": 0 if wanted.embeds else _CANDIDATE_BYTES * model.vocabulary_size,
            "score_bytes": _score_bytes(wanted, model.vocabulary_size),
            "embedding_bytes": _embedding_bytes(model),
            # Of one sequence, so only where all share the cache.
            **(model.read_graphs() if wanted.kv_unified else {}),
            "ubatch": model.ubatch,
            "anonymous_bytes": memory.anonymous_bytes,
            "files": dict(memory.files),
        }

    def tokenize(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """The tokens of each request's prompt, by the simulated model's vocabulary; None where refused."""
        assert self.model is not None, "the parent simulates before it asks"
        tokens: list[list[int] | None] = []
        for one in requests:
            try:
                tokens.append(prompt_tokens(self.model, Request.from_json(one)))
            except MemfitError:
                tokens.append(None)
        return {"tokens": tokens}

    def gpus(self, wanted: list[int | str] | None) -> dict[str, Any]:
        """This machine's GPUs in the engine's order, with the properties of those `wanted`, by number
        or name; None is all."""
        devices = self._devices = self._devices or Devices(self.library, dummies=False)

        def looked_at(index: int, name: str) -> bool:
            return wanted is None or index in wanted or name in wanted

        named = enumerate(devices.gpus())
        found = {name: devices.properties(name) if looked_at(index, name) else None for index, name in named}
        return {"gpus": found}

    def device_memory(self, names: list[str]) -> dict[str, Any]:
        """Free and total bytes of devices."""
        devices = self._devices = self._devices or Devices(self.library, dummies=False)
        return {"devices": {name: devices.memory(name) for name in names}}

    def load(
        self,
        config: dict[str, Any],
        limit_bytes: int | None,
        more_bytes: int,
        tensors: Sequence[dict[str, Any]] = (),
        chat_template: str | None = None,
        finds_format: bool = False,
    ) -> dict[str, Any]:
        """Load for real; `more_bytes` is what the context will add to the weights, `tensors` are the file's
        where the weights are ours to read."""
        if chat_template is not None:
            require_template(chat_template)
        wanted = LlamaConfig.from_json(config)
        started = time.monotonic()
        importing = threading.Thread(target=_import_for, args=(wanted,))  # beside the engine's own work
        importing.start()
        self._devices = Devices(self.library, dummies=False)
        self.model = LlamaModel(
            self.library,
            self._devices,
            wanted,
            tensors=[_tensor(one) for one in tensors],
            limit_bytes=limit_bytes,
            on_progress=lambda fraction: self.channel.send("progress", fraction=fraction),
            on_vocabulary=partial(self._begin_grammars, wanted),
            own_template=chat_template,
        )
        importing.join()
        if wanted.grammar_bytes:
            self._grammars.wait()  # before the context is there: it takes more memory for a moment
        self.model.open_resident_context(wanted, more_bytes)
        keep_fast(MIB)  # logits come and go with every token
        self._loop = self._warm_loop(self.model)
        longest = self._loop.longest
        return {
            "load_seconds": time.monotonic() - started,
            "context": self.model.context_tokens,
            "has_chat_template": self.model.chat_template() is not None,
            "locked_bytes": self.model.locked_bytes,
            "leaves_cache": self.model.leaves_cache,
            "vocabulary": self.model.vocabulary_size,
            "served": find_served(self.model, longest).to_json() if finds_format else None,
        }

    def _warm_loop(self, model: LlamaModel) -> RequestLoop | EmbeddingLoop:
        """What will answer requests, once a pass of it has taken what a pass takes."""
        if model.config.embeds:
            embedding = EmbeddingLoop(model, self.library.api, self.channel)
            embedding.warm_up()
            return embedding
        # The sampler's candidates, one entry per token of the vocabulary, stay as large as here.
        with Sampler(self.library.api, model, Sampling()) as sampler:
            model.warm_up(sampler)
        return RequestLoop(model, self.library.api, self.channel, self._grammars)

    def open(self, expected: float) -> dict[str, Any]:
        """Answer the requests that come until the stream ends: see request_loop.py."""
        return self._loop.run(expected)

    def measure(self, prompt_tokens: int, generated_tokens: int, depth: int) -> dict[str, Any]:
        """Time decoding alone, as llama-bench does: fixed tokens, no sampling, `depth` of them before."""
        model = self.model
        assert model is not None, "the parent loads before it asks"
        token = 1 if model.vocabulary_size > 1 else 0
        try:
            self._loop.forget()
            model.decode([token] * depth)
            model.threads.restart()
            started = time.monotonic()
            model.decode([token] * prompt_tokens)
            prompt_done = time.monotonic()
            if not model.cache.keep(depth):
                model.cache.clear()
                model.decode([token] * depth)
            begun = time.monotonic()
            for _ in range(generated_tokens):
                model.decode([token])
            ended = time.monotonic()
        except Aborted:
            return {"cancelled": True}
        finally:
            model.cache.may_hold_nan = True  # of tokens that nobody looked at
            self._loop.forget()
        return {
            "cancelled": False,
            "prompt_seconds": prompt_done - started,
            "generation_seconds": ended - begun,
            "threads": model.threads.mean,
        }

    def collect(self, tokens: list[int]) -> dict[str, Any]:
        """Compute a text alone, and add what its matrices are multiplied with to the importance matrix."""
        model = self.model
        assert model is not None and model.importance, "the parent loads a plan for it before it asks"
        self._loop.forget()
        model.importance.is_collecting = True
        try:
            for _ in compute_text(self.library.api, model, tokens, range(len(tokens))):
                pass
        except Aborted:
            return {"cancelled": True}
        finally:
            model.importance.is_collecting = False
            self._loop.forget()
        model.importance.require_numbers()
        return {"cancelled": False}

    def write_imatrix(self, path: str, text: str, chunks: int, chunk_tokens: int) -> dict[str, Any]:
        assert self.model is not None and self.model.importance
        self.model.importance.write(Path(path), text, chunks, chunk_tokens)
        return {}

    def begin_probing(
        self,
        tensors: list[dict[str, Any]],
        imatrix: str,
        tokens: list[int],
        places: list[int],
    ) -> dict[str, Any]:
        """Remember what the model predicts at places of a text; `tensors` are the file's."""
        from memfit.engines.llamacpp.imatrix_file import read_imatrix
        from memfit.engines.llamacpp.probing import Probe

        assert self.model is not None, "the parent loads before it asks"
        self._loop.forget()
        specs = [_tensor(one) for one in tensors]
        importance = read_imatrix(imatrix)
        if self._probe:
            self._probe.close()
        self._probe = Probe(self.library, self.model, specs, importance)
        self._probe.begin(tokens, places)
        return {"important": list(importance)}

    def probe(self, tensors: dict[str, str]) -> dict[str, Any]:
        """What is lost where some tensors have other types, together."""
        probe = self._probe
        assert probe, "the parent begins before it asks"
        try:
            for name, kind in tensors.items():
                probe.quantize(name, kind)
            return {"cancelled": False, "loss": probe.loss()}
        except Aborted:
            return {"cancelled": True}
        finally:
            for name in tensors:
                probe.restore(name)

    def probe_errors(self, tensor: str, types: list[str], rows: int) -> dict[str, Any]:
        assert self._probe, "the parent begins before it asks"
        return {"errors": self._probe.errors(tensor, types, rows)}

    def measure_kernels(
        self,
        device: str | None,
        threads: int | None,
        repack: bool,
        types: list[str],
        attention: list[str],
        basics: bool,
    ) -> dict[str, Any]:
        """Speeds of a device, or of this CPU; `types` and `attention` are keys of Bench. Beside them whether
        other programs left the CPUs alone meanwhile."""
        cpus = CpuMeter()
        devices = self._devices = self._devices or Devices(self.library, dummies=False)
        address = devices.cpu if device is None else devices.find([device])[0]
        room = None if device is None else devices.memory(device)[0]
        is_gpu = device is not None and not is_remote(device)
        try:
            with Bench(self.library, address, threads=threads, repack=repack, room_bytes=room) as bench:
                found = {
                    "weights": {key: bench.weights(key) for key in types},
                    "attention": {key: bench.attention(key) for key in attention},
                    "basics": bench.basics(splits=device is not None, sends=is_gpu) if basics else {},
                }
        except BusyMachineError:
            return {"speeds": None, "why": "other programs keep this machine busy"}
        except MemoryError:
            return {"speeds": None, "why": f"{device} has no room for a measurement"}
        # A device behind RPC may be this machine's, and computes as another program.
        use = cpus.use(0.0) if device is None else None
        return {"speeds": found, "is_quiet": use is None or use.is_quiet}

    def _begin_grammars(self, wanted: LlamaConfig, vocabulary: int) -> None:
        """Where grammars are planned, their vocabulary is read beside the weights."""
        limit_bytes = grammar_limit_bytes(wanted.parallel)
        self._grammars = Grammars(self.library.api, vocabulary, limit_bytes=limit_bytes)
        if wanted.grammar_bytes:
            self._grammars.prepare()


# What a context decides, not the model: equal in all models that need no new loading.
_CONTEXT_ONLY: dict[str, Any] = {
    "context": 0,
    "parallel": 0,
    "kv_type": "",
    "ubatch": 0,
    "threads": 0,
    "load_mode": "",
    "kv_unified": True,
    "dequantized": (),
    "widened": (),
    "plain": (),
    "prompt_dequantized": (),
    "twofold": (),
    "grammar_bytes": 0,
    "outputs": 0,
    "importance_bytes": 0,
    "embeds": False,
    "pooling": None,
}


def _tensor(values: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**values, "shape": tuple(values["shape"])})


def _no_vocabulary(api: Any, architecture: str, tokens: int) -> Any:
    """Metadata overrides for a model whose tokens have a number but no text, ended by an empty one."""
    overrides = (api.llama_model_kv_override * 3)()
    overrides[0].tag, overrides[0].key = api.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"none"
    overrides[1].tag = api.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].key = f"{architecture}.vocab_size".encode()
    overrides[1].value.val_i64 = tokens
    return overrides


def _score_bytes(config: LlamaConfig, vocabulary: int) -> int:
    """The rows of logits that one for each sequence leaves out, and what scoring a row takes beside it."""
    if not config.outputs:
        return 0
    return vocabulary * (4 * max(0, config.outputs - config.parallel) + _SCORE_BYTES)


def _embedding_bytes(model: LlamaModel) -> int:
    """The rows of logits and embeddings for the tokens of a pass that one for each sequence leaves out: the
    engine has room for both, whichever it computes. And what is sent of them."""
    if not model.config.embeds:
        return 0
    rows = max(0, model.ubatch - model.config.parallel)
    sent = MOST_SENT_BYTES if model.pooling == "none" else 0
    return 4 * rows * (model.vocabulary_size + model.embedding_width) + sent


def _import_for(config: LlamaConfig) -> None:
    """What takes memory in a plan as in a run."""
    if config.needs_numpy:
        numpy = importlib.import_module("numpy")
        scoring = importlib.import_module("memfit.engines.scoring")
        scoring.score_rows(numpy.zeros((1, 2), numpy.float32), (0,), 2)  # maps the code that scores


if __name__ == "__main__":
    run_worker(lambda: LlamaCommands().serve())
