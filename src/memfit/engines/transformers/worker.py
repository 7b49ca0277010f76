"""The worker process: the only place where torch runs. `python -m memfit.engines.transformers.worker`.

It answers the requests of channel.py and knows nothing of budgets beyond a limit it is given, nothing of
plans and nothing of terminals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from memfit.engines.allocator import keep_fast, trim
from memfit.engines.channel import Aborted, Channel, run_worker
from memfit.engines.requests import Request
from memfit.engines.transformers.gguf_reading import convert_gguf, describe_gguf
from memfit.engines.transformers.kernels import measure_kernels
from memfit.engines.transformers.model import CheckpointModel, find_tokenizer
from memfit.engines.transformers.prompt import tokens_of
from memfit.engines.transformers.request_loop import SequentialLoop
from memfit.engines.transformers.side_by_side import SideBySideLoop
from memfit.engines.transformers.small_checkpoint import write_small_checkpoint
from memfit.errors import MemfitError
from memfit.memory.library_pages import map_libraries_whole
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.process_memory import process_status
from memfit.units import MIB

_TENSOR_BYTES = 32 * MIB  # the most that the allocator takes


class TransformersCommands:
    """What the worker is told to do, with one checkpoint."""

    def __init__(self) -> None:
        self.model: CheckpointModel | None = None
        self._loop: SequentialLoop | SideBySideLoop | None = None
        self.channel = Channel(lambda: self.model)
        if not os.environ.get("MEMFIT_WORKER_VERBOSE"):
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()

    def serve(self) -> None:
        map_libraries_whole()
        self.channel.serve(
            {
                "load": self.load,
                "open": self.open,
                "tokenize": self.tokenize,
                "measure": self.measure,
                "model_bytes": self.model_bytes,
                "kernels": measure_kernels,
                "write_small_checkpoint": write_small_checkpoint,
                "describe_gguf": describe_gguf,
                "convert_gguf": convert_gguf,
            }
        )

    def load(
        self, config: dict[str, Any], limit_bytes: int | None, offload_folder: str | None
    ) -> dict[str, Any]:
        started = time.monotonic()
        self.model = CheckpointModel(
            TransformersConfig.from_json(config),
            limit_bytes=limit_bytes,
            on_progress=lambda fraction: self.channel.send("progress", fraction=fraction),
            offload_folder=offload_folder,
        )
        loaded_bytes = self.model.bytes_by_dtype()
        trim()
        memory = process_status()
        self.model.warm_up()
        map_libraries_whole()
        trim()
        keep_fast(_TENSOR_BYTES)
        loop = SequentialLoop if self.model.sequences is None else SideBySideLoop
        self._loop = loop(self.model, self.channel)
        tokenizer = self.model.tokenizer
        return {
            "load_seconds": time.monotonic() - started,
            "leaves_cache": True,
            "has_chat_template": bool(tokenizer is not None and tokenizer.chat_template),
            "locked_bytes": 0,
            "vocabulary": self.model.vocabulary_size,
            "loaded_bytes": loaded_bytes,
            "loading_peak_bytes": memory.peak_resident_bytes,
            "resident_bytes": memory.resident_bytes,  # before the first pass
        }

    def model_bytes(self) -> dict[str, Any]:
        """What the model holds now, as counted tensor by tensor and as transformers says it."""
        model = self._loaded()
        return {
            "by_dtype": model.bytes_by_dtype(),
            "tensors": model.tensors_by_dtype(),
            "reported_bytes": model.reported_bytes(),
            "gpu_bytes": model.gpu_bytes(),
        }

    def open(self, expected: float) -> dict[str, Any]:
        """Answer the requests that come until the stream ends: see request_loop.py."""
        assert self._loop is not None, "the parent loads before it asks"
        found: dict[str, Any] = self._loop.run(expected)
        return found

    def tokenize(self, folder: str, trust_remote_code: bool, requests: list[Any]) -> dict[str, Any]:
        """The tokens of each request's prompt by the tokenizer in a folder; None where it is refused."""
        tokens: list[list[int] | None] = []
        tokenizer = find_tokenizer(Path(folder), trust_remote_code=trust_remote_code)
        for one in requests:
            try:
                tokens.append(tokens_of(tokenizer, Request.from_json(one)) if tokenizer else None)
            except MemfitError:
                tokens.append(None)
        return {"tokens": tokens}

    @torch.inference_mode()
    def measure(self, prompt_tokens: int, generated_tokens: int, depth: int) -> dict[str, Any]:
        """Time decoding alone: fixed tokens, no sampling, `depth` of them before."""
        model = self._loaded()
        assert self._loop is not None, "the parent loads before it asks"
        token = 1 if model.vocabulary_size > 1 else 0
        self._loop.forget()
        try:
            model.decode([token] * depth)
            model.threads.restart()
            prompt_seconds = _seconds(model, [[token] * prompt_tokens])
            model.forget()
            model.decode([token] * max(1, depth))
            generation_seconds = _seconds(model, [[token]] * generated_tokens)
        except Aborted:
            return {"cancelled": True}
        finally:
            model.forget()
            trim()
        return {
            "cancelled": False,
            "prompt_seconds": prompt_seconds,
            "generation_seconds": generation_seconds,
            "threads": model.threads.mean,
        }

    def _loaded(self) -> CheckpointModel:
        assert self.model is not None, "the parent loads before it asks"
        return self.model


def _seconds(model: CheckpointModel, passes: Sequence[Sequence[int]]) -> float:
    model.wait()
    started = time.monotonic()
    for tokens in passes:
        model.decode(tokens)
    model.wait()
    return time.monotonic() - started


if __name__ == "__main__":
    run_worker(lambda: TransformersCommands().serve())
