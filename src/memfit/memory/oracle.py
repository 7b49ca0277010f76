"""The question "how many bytes will exactly this configuration use", and the shape of its answer.

An engine answers it (engines/llamacpp/oracle.py); the planner only sees this interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Answer", "EngineParameters", "Oracle"]


@dataclass(frozen=True, kw_only=True)
class EngineParameters:
    """Everything that decides an engine's memory and kernels; a plan carries one of these."""

    paths: tuple[Path, ...]  # the model's files, in shard order
    context: int  # tokens over all sequences (llama.cpp's n_ctx)
    parallel: int  # sequences (n_seq_max)
    kv_type: str  # "f16", "q8_0" or "q4_0", for keys and values alike
    micro_batch: int  # tokens per pass of a prompt (n_ubatch)
    threads: int
    repack: bool  # weights rewritten while loading for this CPU's kernels
    load_mode: str  # "mmap": the file's own pages; "read": copied into memory of our own


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Bytes in RAM once loaded, each as the engine counts it."""

    context: int  # tokens the engine will really hold: it rounds up to a multiple of 256
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int  # the graph's activations
    scratch_bytes: int  # the CPU kernels' work buffer, and the sampler's candidates
    nodes: int  # operations of one token's graph
    process_bytes: int  # memfit's processes themselves: Python, vocabulary, metadata, output buffer

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.kv_cache_bytes
            + self.compute_bytes
            + self.scratch_bytes
            + self.process_bytes
        )


class Oracle(Protocol):
    """Asks an engine without loading weights."""

    def ask(self, parameters: EngineParameters) -> Answer:
        """Raises EngineError where the engine refuses the configuration."""
        ...
