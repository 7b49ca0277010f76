"""A Plan: what will lie where, with which parameters, how fast, and why. A value; it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memfit.errors import DoesNotFitError
from memfit.headers.model_spec import ModelSpec
from memfit.memory.oracle import EngineParameters
from memfit.planner.speed import Prediction, Rate

__all__ = ["Plan", "TierUse"]


@dataclass(frozen=True, kw_only=True)
class TierUse:
    """One tier's budget, and what of it the plan fills."""

    name: str
    kind: str  # "ram", "vram" or "disk"
    budget_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int  # memfit's processes: Python, libraries, vocabulary

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.overhead_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to "will it fit, and how fast will it be". A plan that does not fit cannot be run."""

    spec: ModelSpec
    parameters: EngineParameters
    context: int  # tokens the engine will really hold
    tiers: tuple[TierUse, ...]
    prediction: Prediction
    why: tuple[str, ...]
    limit_bytes: int  # what may be used: the budget, or what is free where that is less
    suggestions: tuple[str, ...] = ()  # options that do fit; only where this plan does not

    @property
    def ram(self) -> TierUse:
        return next(tier for tier in self.tiers if tier.kind == "ram")

    @property
    def fits(self) -> bool:
        return self.ram.total_bytes <= self.limit_bytes

    def require_fit(self) -> None:
        """Raises DoesNotFitError unless the plan fits."""
        if not self.fits:
            raise DoesNotFitError(
                tier="RAM",
                needs_bytes=self.ram.total_bytes,
                budget_bytes=self.limit_bytes,
                suggestions=self.suggestions,
            )

    def to_json(self) -> dict[str, Any]:
        """CONTRACT.md's JSON of `plan`."""
        values: dict[str, Any] = {
            "model": {
                "source": self.spec.source,
                "architecture": self.spec.architecture,
                "name": self.spec.name,
                "file_bytes": self.spec.file_bytes,
                "parameters": self.spec.parameters,
                "quantization": self.spec.quantization,
            },
            "engine": "llamacpp",
            "context": self.context,
            "parallel": self.parameters.parallel,
            "kv_type": self.parameters.kv_type,
            "micro_batch": self.parameters.micro_batch,
            "threads": self.parameters.threads,
            "repack": self.parameters.repack,
            "load_mode": self.parameters.load_mode,
            "fits": self.fits,
            "why": list(self.why),
            "tiers": [
                {
                    "name": tier.name,
                    "kind": tier.kind,
                    "budget_bytes": tier.budget_bytes,
                    "weights_bytes": tier.weights_bytes,
                    "kv_cache_bytes": tier.kv_cache_bytes,
                    "compute_bytes": tier.compute_bytes,
                    "overhead_bytes": tier.overhead_bytes,
                    "total_bytes": tier.total_bytes,
                }
                for tier in self.tiers
            ],
            "streamed_bytes_per_pass": 0,
            "predicted": {
                "prompt_tokens_per_second": _rate_json(self.prediction.prompt),
                "generation_tokens_per_second": _rate_json(self.prediction.generation),
                "basis": self.prediction.basis,
            },
        }
        if not self.fits:
            needs = self.ram.total_bytes
            values |= {
                "needs_bytes": needs,
                "short_bytes": needs - self.limit_bytes,
                "try": list(self.suggestions),
            }
        return values


def _rate_json(rate: Rate) -> dict[str, float]:
    return {"value": round(rate.value, 2), "low": round(rate.low, 2), "high": round(rate.high, 2)}
