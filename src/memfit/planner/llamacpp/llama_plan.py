"""A plan for llama.cpp: what the engine is told, and what the plan was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from memfit.errors import UsageError
from memfit.memory.estimate import LlamaConfig
from memfit.memory.streaming import streamed_bytes
from memfit.planner.plan import Plan

__all__ = ["LlamaPlan"]


@dataclass(frozen=True, kw_only=True)
class LlamaPlan(Plan):
    """For llama.cpp. saved.py makes an equal one of its JSON."""

    engine: ClassVar[str] = "llamacpp"
    config: LlamaConfig

    @property
    def parallel(self) -> int:
        return self.config.parallel

    @property
    def sequence_context(self) -> int:
        return self.context if self.config.kv_unified else self.context // self.config.parallel

    @property
    def streamed_bytes(self) -> int:
        return streamed_bytes(self.spec.tensors, self.config.streamed)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "kv_type": self.config.kv_type,
            "threads": self.config.threads,
            "repack": self.config.repack,
            "load_mode": self.config.load_mode,
            "devices": list(self.config.devices),
            "layers": list(self.config.layers),
            "overrides": [list(one) for one in self.config.overrides],
        }

    def require_schemas(self) -> None:
        if not self.config.grammar_bytes:
            raise UsageError(
                "this plan has no memory for JSON schemas; make one with --schema FILE, or in Python with "
                "Workload(grammars=True)"
            )

    @property
    def settings(self) -> str:
        config = self.config
        repack = "repack on" if config.repack else "repack off"
        if config.dequantized:
            repack = f"{len(config.dequantized)} matrices as BF16"
        return (
            f"KV {config.kv_type} · ubatch {config.ubatch} · "
            f"{config.threads} threads · {repack} · {config.load_mode}"
        )
