"""A plan for transformers: what the engine is told, and what its model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision_table import PrecisionRow
from memfit.planner.plan import Plan

__all__ = ["TransformersPlan"]


@dataclass(frozen=True, kw_only=True)
class TransformersPlan(Plan):
    """For transformers."""

    config: TransformersConfig
    row: PrecisionRow
    steady_bytes: int  # in RAM between two passes
    loading_bytes: int  # in RAM at most while loading
    offloaded_bytes: int  # weights that are read for every pass

    @property
    def engine(self) -> str:
        return "transformers"

    @property
    def ubatch(self) -> int:
        return self.config.ubatch

    @property
    def streamed_bytes(self) -> int:
        return self.offloaded_bytes

    @property
    def facts(self) -> Mapping[str, Any]:
        config = self.config
        return {
            "load_in": config.load_in,
            "double_quant": config.double_quant,
            "threads": config.threads,
            "device_map": dict(config.device_map),
            "steady_bytes": self.steady_bytes,
            "loading_bytes": self.loading_bytes,
            "precision": self.row.to_json(),
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"load_in": self.config.load_in, "double_quant": self.config.double_quant}

    @property
    def settings(self) -> str:
        config = self.config
        kind = config.load_in + ", double quantization" * config.double_quant
        return f"transformers, {kind} · ubatch {config.ubatch} · {config.threads} threads"
