"""A model inside the worker: loaded or simulated, its context, and decoding. vocabulary.py has its texts.

Lives in the worker process only. Knows nothing of requests, texts' stop strings or budgets beyond the
two limits it is given.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memfit.engines.channel import Aborted, OverBudgetError
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.filling import fill_buffers
from memfit.engines.llamacpp.forms import Forms
from memfit.engines.llamacpp.kv_cache import KvCache
from memfit.engines.llamacpp.library import Breakdown, Library
from memfit.engines.llamacpp.options import (
    Evaluate,
    context_options,
    evaluation_callback,
    place_tensors,
)
from memfit.engines.llamacpp.sampling import Sampler
from memfit.engines.llamacpp.vocabulary import Vocabulary
from memfit.engines.llamacpp.weights import OwnWeights
from memfit.engines.threads import Threads
from memfit.errors import EngineError
from memfit.hardware.direct_file import DirectFile
from memfit.headers.model_spec import TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.page_cache import cached_bytes, drop_cached
from memfit.memory.process_memory import process_status
from memfit.planner.request import POOLINGS

if TYPE_CHECKING:
    from memfit.engines.chat_format import ChatFormat
    from memfit.engines.llamacpp.importance import Importance

__all__ = ["LlamaModel"]


class LlamaModel(Vocabulary):
    """One model of the C library, with at most one context at a time.

    `simulate` loads metadata and vocabulary only; contexts then count their bytes without holding them.
    """

    def __init__(
        self,
        library: Library,
        devices: Devices,
        config: LlamaConfig,
        *,
        simulate: bool = False,
        overrides: Any = None,
        tensors: Sequence[TensorSpec] = (),
        limit_bytes: int | None = None,
        on_progress: Callable[[float], None] = lambda fraction: None,
        on_vocabulary: Callable[[int], None] = lambda vocabulary: None,
        own_template: str | None = None,
    ) -> None:
        """Load. `limit_bytes` caps this process's memory, checked before every tensor; `overrides` is an
        array of llama_model_kv_override; `tensors` are the file's, needed for load mode "own".
        `on_vocabulary` is given the vocabulary as soon as it is there, in that mode before the weights are.
        `own_template` stands for the chat template in the metadata.

        Raises:
            EngineError: the engine refuses the file; its last words are in the worker's log.
            OverBudgetError: the limit would be exceeded.
        """
        self._library = library
        self._api: Any = library.api
        self._devices = devices
        self.own_template = own_template
        self.form: ChatFormat | None = None  # how answers are written, where somebody asked for it
        self.device_addresses = devices.find(config.devices)
        self._limit_bytes = limit_bytes
        self._on_progress, self._on_vocabulary = on_progress, on_vocabulary
        self._overrun: OverBudgetError | None = None
        self._context: int | None = None
        self._abort_flag = ctypes.create_string_buffer(2)
        self._failures: list[Exception] = []  # of what watches the graph
        self._drops_cache = False
        self.leaves_cache = True  # pages of the files in the page cache, unless all were read past it
        self.threads = Threads(config.threads, self._use_threads)
        self.config = config
        self._tensors = tensors
        self._weights: OwnWeights | None = None
        self._simulates = simulate
        self._forms: Forms | None = None  # of the simulated context
        self.importance: Importance | None = None  # of the open context, where it is collected
        self._pointer = self._load(config, simulate, overrides)

    def _load(self, config: LlamaConfig, simulate: bool, overrides: Any) -> int:
        api = self._api
        options = api.llama_model_default_params()
        kept = place_tensors(options, config, self._devices, self.device_addresses)
        options.use_extra_bufts = config.repack
        is_ours = config.is_read_by_us and not simulate
        options.no_alloc = simulate or is_ours
        if overrides is not None:
            options.kv_overrides = overrides
        mapped = config.load_mode == "mmap" and not simulate
        options.load_mode = api.LLAMA_LOAD_MODE_MMAP if mapped else api.LLAMA_LOAD_MODE_NONE
        self._file_bytes = sum(path.stat().st_size for path in config.paths)
        if mapped:
            self._check_limit(self._file_bytes)  # the engine maps and populates the whole file first
        if not simulate:
            # Pages on their way through would stay cached; a file that lay there before stays.
            cached = cached_bytes(config.paths) or 0
            self._drops_cache = mapped or cached < _ALL_CACHED * self._file_bytes
        if not options.no_alloc:
            # Kept alive for the call: ctypes holds no reference of its own.
            callback = api.llama_progress_callback(self._progress)
            options.progress_callback = callback
        names = [os.fsencode(path) for path in config.paths]
        array = (ctypes.c_char_p * len(names))(*names)
        if len(names) == 1:
            pointer = api.llama_model_load_from_file(names[0], options)
        else:
            pointer = api.llama_model_load_from_splits(array, len(names), options)
        del kept
        if self._drops_cache:
            drop_cached(config.paths)  # what is mapped stays
        if self._overrun:
            raise self._overrun
        if not pointer:
            raise EngineError(f"the engine cannot load {config.paths[0]}")
        self.vocabulary = api.llama_model_get_vocab(pointer)
        self.vocabulary_size: int = api.llama_vocab_n_tokens(self.vocabulary)
        self._on_vocabulary(self.vocabulary)
        if is_ours:
            Forms(self._library, pointer, config)
            self._library.allow_contexts(pointer)
            self._read_weights(pointer, config)
        return int(pointer)

    def tensor_addresses(self) -> dict[str, int]:
        """The engine's tensors, by name."""
        return dict(self._library.model_tensors(self._pointer))

    def watch_streamed(self, on_given: Callable[[int, int], None]) -> None:
        """Have `on_given` called with each streamed tensor and the address of its data, before it is used."""
        if self._weights:
            self._weights.on_given = on_given

    @property
    def locked_bytes(self) -> int:
        """Of the weights, memory that cannot go to swap."""
        return self._weights.locked_bytes if self._weights else 0

    def _read_weights(self, pointer: int, config: LlamaConfig) -> None:
        used = self._library.model_tensors(pointer)
        stays_cached = config.load_mode != "own" and not self._drops_cache
        files = [DirectFile(path, cached=stays_cached) for path in config.paths]
        self.leaves_cache = not all(file.is_direct for file in files)
        if config.load_mode == "own":
            self._weights = OwnWeights(
                config,
                self._tensors,
                used,
                files,
                library=self._library,
                abort=self.abort,
                is_aborted=lambda: self.is_aborted,
                on_progress=self._look,
            )
        else:
            fill_buffers(self._library, config, self._tensors, used, files, on_progress=self._look)

    def _look(self, fraction: float) -> None:
        self._on_progress(fraction)
        self._check_limit(0)

    def _progress(self, fraction: float, _: object) -> bool:
        """Called by the engine before each tensor; False stops the loading."""
        self._on_progress(fraction)
        if self._drops_cache and self.config.load_mode == "read":
            drop_cached(self.config.paths)
        try:
            self._check_limit(0)
        except OverBudgetError as overrun:
            self._overrun = overrun
            return False
        return True

    def _check_limit(self, more_bytes: int) -> None:
        if self._limit_bytes is None:
            return
        needs = process_status().resident_bytes + more_bytes
        if needs > self._limit_bytes:
            raise OverBudgetError(needs)

    # -- context ---------------------------------------------------------------------------------

    def open_context(self, config: LlamaConfig) -> None:
        """Create the context that `config` describes, in place of an earlier one.

        Raises:
            EngineError: the engine refuses it.
        """
        self.close_context()
        api = self._api
        if self._simulates:
            if self._forms:
                self._forms.undo()
            self._forms = Forms(self._library, self._pointer, config)
        options = context_options(api, config)
        # A C function as abort callback, so that no Python runs between graph nodes:
        # strlen(flag) is non-zero, hence true, as soon as the flag's first byte is set.
        options.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, api.ggml_abort_callback)
        options.abort_callback_data = ctypes.addressof(self._abort_flag)
        if watchers := self._watchers(config):
            self._callback = evaluation_callback(watchers, self._failures)  # C does not keep it alive
            options.cb_eval = ctypes.cast(self._callback, api.ggml_backend_sched_eval_callback)
        context = api.llama_init_from_model(self._pointer, options)
        if not context:
            raise EngineError(
                f"the engine cannot create a context of {config.context} tokens, "
                f"{config.parallel} sequences and KV type {config.kv_type}"
            )
        self._context = context
        self.cache = KvCache(api, self._pointer, context, unified=config.kv_unified, embeds=config.embeds)
        self.config = config
        self.ubatch: int = api.llama_n_ubatch(context)
        self.context_tokens: int = api.llama_n_ctx(context)
        self.sequence_tokens: int = api.llama_n_ctx_seq(context)  # of them at most one sequence's
        self.trained_tokens: int = api.llama_model_n_ctx_train(self._pointer)
        if config.parallel > 1:  # a context that others share may be larger than what one was trained for
            self.sequence_tokens = min(self.sequence_tokens, self.trained_tokens)
        if self._weights and config.streamed:
            count = 1 if config.kv_unified else config.parallel  # divided caches are used all at once
            # Of all passes devices take over most in the largest one, which is a prompt's.
            for tokens, look in ((self.ubatch, self._weights.require_turns), (count, self._weights.start)):
                outputs = self._outputs(tokens, count)
                look(self._library.graph_nodes(context, tokens=tokens, sequences=count, outputs=outputs))

    def _outputs(self, tokens: int, sequences: int) -> int:
        """How many tokens of such a pass are outputs."""
        return max(tokens, sequences) if self.config.embeds else sequences

    def _watchers(self, config: LlamaConfig) -> list[Evaluate]:
        """What is called for each node that is computed."""
        found: list[Evaluate] = []
        self.importance = None
        if config.importance_bytes and not self._simulates:
            from memfit.engines.llamacpp.importance import Importance  # and numpy with it

            self.importance = Importance(self._library)
            found.append(self.importance.evaluate)
        if self._weights and config.streamed:
            found.append(self._weights.evaluate)
        return found

    def close(self) -> None:
        """Give everything back. Only a simulated model is ever closed; a process ends with a real one."""
        self.close_context()
        self._api.llama_model_free(self._pointer)

    def close_context(self) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
            self._context = None
            del self.cache

    @property
    def added_bytes(self) -> int:
        """What the simulated context's weights take beyond what the engine counts."""
        return self._forms.added_bytes if self._forms else 0

    @property
    def _open_context(self) -> int:
        assert self._context is not None
        return self._context

    def memory_breakdown(self) -> dict[str, Breakdown]:
        return self._library.memory_breakdown(self._open_context)

    def work_buffer_bytes(self, *threads: int) -> list[int]:
        """With each of these numbers of threads."""
        tokens, sequences = self.ubatch, self.config.parallel
        return self._library.work_buffer_bytes(
            self._open_context,
            tokens=tokens,
            sequences=sequences,
            outputs=self._outputs(tokens, sequences),
            threads=threads,
        )

    def read_graphs(self) -> dict[str, Any]:
        """What a pass of one token and of one ubatch computes, of one sequence, and where: see graph.py."""
        return {
            name: self._library.read_graph(
                self._open_context,
                tokens=tokens,
                sequences=1,
                outputs=self._outputs(tokens, 1),
                devices=self.device_addresses,
            )
            for name, tokens in (("generation", 1), ("prompt", self.ubatch))
        }

    def open_resident_context(self, config: LlamaConfig, more_bytes: int) -> None:
        """Create the context and touch all it will ever hold, so that the peak is reached now.

        `more_bytes` is what it will come to, checked against the limit before anything is allocated.

        Raises:
            OverBudgetError: the limit would be exceeded.
            EngineError: the engine refuses it, or its first ubatch.
        """
        self._check_limit(more_bytes)
        self.open_context(config)
        touched = self._library.touch_compute_buffers(self._open_context)
        counted = sum(part.compute_bytes for part in self.memory_breakdown().values())
        assert touched == counted, "the engine's compute buffers must be those that it counts"
        if not config.devices:
            # A whole ubatch would do it too, and take minutes for a large model.
            self._library.touch_work_buffer(self._open_context, *self.work_buffer_bytes(config.threads))
        elif not config.streamed:  # how much of the graph is the CPU's, a pass knows best
            token = max(0, self._api.llama_vocab_bos(self.vocabulary))
            self.decode([token] * min(self.ubatch, self.sequence_tokens))
            self.cache.clear()

    def warm_up(self, sampler: Sampler) -> None:
        """One pass and one choice, so that what they allocate is there. Whatever comes of it is wiped out."""
        self.decode([0])
        sampler.choose(self._open_context, -1)
        self.cache.may_hold_nan = True
        self.cache.clear()

    def reserve_outputs(self, batch: Any) -> None:
        """Have the engine allocate what comes out of a llama_batch, the largest that there will be: one pass
        is begun, and ended at its first node, since computing it may take minutes.

        Raises:
            EngineError: there is no memory for it.
        """
        self.decode([0])  # what a pass itself takes at first is there before one is ended
        self.cache.clear()
        self._library.is_muted = True
        self.abort()
        try:
            self._decode(batch)
        except Aborted:
            pass
        finally:
            self.clear_abort()
            self._library.is_muted = False
        self.cache.may_hold_nan = True
        self.cache.clear()

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> None:
        """Append tokens to sequence 0, ubatch by ubatch; the last one's logits are kept.

        Raises:
            Aborted: `abort()` was called meanwhile.
            EngineError: the engine failed; more tokens than the context holds are its usual reason.
        """
        for start in range(0, len(tokens), self.ubatch):
            piece = tokens[start : start + self.ubatch]
            array = (ctypes.c_int32 * len(piece))(*piece)
            # Positions and sequence 0 are the engine's defaults; only the last token gives logits.
            self._decode(self._api.llama_batch_get_one(array, len(piece)))
        self._wait()

    def decode_batch(self, batch: Any) -> None:
        """Compute a llama_batch of at most a ubatch, of any sequences. Errors as in `decode`."""
        self._decode(batch)
        self._wait()

    def _wait(self) -> None:
        """A device may still be at work."""
        self._api.llama_synchronize(self._context)
        self.threads.done()

    def _use_threads(self, count: int) -> None:
        self._api.llama_set_n_threads(self._context, count, count)

    def _decode(self, batch: Any) -> None:
        self.threads.look()
        if self.importance:
            self.importance.begin_pass()
        if self._weights and self._weights.layouts:
            self._weights.layouts.use(batch.n_tokens)
        code = self._api.llama_decode(self._context, batch)
        self.threads.done()
        if self._weights:
            self._weights.drop_rows()
            if self._weights.error:
                raise EngineError(str(self._weights.error))
        if self._failures:
            raise self._failures.pop(0)
        if code == 2:
            raise Aborted
        if code != 0:
            raise EngineError(f"the engine could not process {batch.n_tokens} tokens (code {code})")

    def abort(self) -> None:
        """Stop decoding at the next graph node. Safe from another thread."""
        self._abort_flag[0] = b"\x01"

    @property
    def is_aborted(self) -> bool:
        return self._abort_flag[0] != b"\x00"

    def clear_abort(self) -> None:
        self._abort_flag[0] = b"\x00"

    def choose(self, sampler: Sampler, entry: int = -1, likeliest: int = -1) -> int:
        """The next token from the logits of a batch's entry, the last one's if none is named; `likeliest` as
        in Sampler.choose.

        Raises:
            EngineError: its logit is NaN. What the KV cache holds is of no use then.
        """
        token = sampler.choose(self._open_context, entry, likeliest)
        if math.isnan(self._api.llama_get_logits_ith(self._context, entry)[token]):
            self.cache.may_hold_nan = True
            raise EngineError(
                "the model computes NaN, which is no number, for this prompt: its file is damaged, or it "
                f"overflows with {self.config.kv_type} keys and values"
            )
        return token

    def logits(self, first: int, outputs: int) -> Any:
        """A view of the last pass: `outputs` rows from the first on, float32 [outputs, vocabulary]."""
        import numpy as np  # only where several sequences run, or texts are scored: 12 MiB

        logits = self._api.llama_get_logits(self._context)
        start = ctypes.addressof(logits.contents) + 4 * first * self.vocabulary_size
        values: Any = (ctypes.c_float * (outputs * self.vocabulary_size)).from_address(start)
        return np.frombuffer(values, dtype=np.float32).reshape(outputs, self.vocabulary_size)

    def entry_logits(self, entry: int) -> Any:
        """A view of what a batch's entry gave: float32 [1, vocabulary]."""
        import numpy as np

        logits = self._api.llama_get_logits_ith(self._context, entry)
        values: Any = (ctypes.c_float * self.vocabulary_size).from_address(ctypes.addressof(logits.contents))
        return np.frombuffer(values, dtype=np.float32).reshape(1, self.vocabulary_size)

    def largest_logits(self, outputs: int) -> Sequence[int]:
        """The likeliest token for each of the last batch's outputs; -1 where a logit is NaN."""
        rows = self.logits(0, outputs)
        best = rows.argmax(axis=1)  # the first NaN, if there is one
        return [-1 if math.isnan(row[token]) else int(token) for row, token in zip(rows, best, strict=True)]

    # -- embeddings ------------------------------------------------------------------------------

    @property
    def pooling(self) -> str:
        """How the open context makes one embedding of those of a text's tokens."""
        return POOLINGS[self._api.llama_pooling_type(self._context)]

    @property
    def is_causal(self) -> bool:
        return bool(self._api.llama_get_causal_attn(self._context))

    @property
    def embedding_width(self) -> int:
        """Numbers of a token's embedding."""
        return int(self._api.llama_model_n_embd_out(self._pointer))

    def token_embeddings(self, first: int, tokens: int) -> bytes:
        """Without pooling, of some tokens of the last pass from the `first` on: float32 [tokens, width]."""
        width = self.embedding_width
        return _copied(self._api.llama_get_embeddings(self._context), tokens * width, first * width)

    def sequence_embedding(self, sequence: int, width: int) -> bytes:
        """Of one sequence of the last pass: its first `width` numbers, float32. A reranker's score is one."""
        return _copied(self._api.llama_get_embeddings_seq(self._context, sequence), width)


def _copied(numbers: Any, count: int, first: int = 0) -> bytes:
    if not numbers:
        raise EngineError("the engine gave no embeddings")
    return ctypes.string_at(ctypes.addressof(numbers.contents) + 4 * first, 4 * count)


_ALL_CACHED = 0.99  # a share of the file that counts as all of it
