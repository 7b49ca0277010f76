"""Predicted against measured: what a run proves. The same for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from memfit.engines.requests import Speed
from memfit.hardware.machine import is_remote
from memfit.planner.plan import Plan
from memfit.units import format_bytes

__all__ = ["CapReport", "ModelBytes", "Report", "TierReport"]

_SLOW_TOKENS_PER_SECOND = 0.5
_ALL_THREADS = 0.95  # a share of those planned
_LONG_PROMPT, _LONG_ANSWER = 256, 32  # tokens, from which on a rate says something
_LONGER = 4.0  # times the planned tokens


@dataclass(frozen=True, kw_only=True)
class TierReport:
    name: str
    kind: str
    budget_bytes: int
    predicted_bytes: int  # as the plan said before anything was loaded
    peak_bytes: int | None  # None: nobody there measures it

    @property
    def error_bytes(self) -> int | None:
        """Predicted minus measured: negative where the prediction was too low."""
        return None if self.peak_bytes is None else self.predicted_bytes - self.peak_bytes

    @property
    def within_budget(self) -> bool:
        return self.peak_bytes is None or self.peak_bytes <= self.budget_bytes


@dataclass(frozen=True, kw_only=True)
class CapReport:
    """A cap that the kernel kept on RAM; it counts page cache and its own tables too."""

    limit_bytes: int
    peak_bytes: int | None  # None: this kernel does not say


@dataclass(frozen=True, kw_only=True)
class ModelBytes:
    """What a model takes in an engine that grows and shrinks while it runs: not only the peak matters."""

    by_dtype: Mapping[str, int]  # torch's name → bytes of all tensors of the model
    tensors: Mapping[str, int]  # torch's name → how many those are
    reported_bytes: int  # what the engine itself says of them
    loaded_bytes: int  # all tensors after loading, before the first pass
    steady_bytes: int  # in RAM between two passes, all processes
    steady_predicted_bytes: int
    loading_bytes: int  # in RAM at most while loading
    loading_predicted_bytes: int


@dataclass(frozen=True, kw_only=True)
class Report:
    plan: Plan
    tiers: tuple[TierReport, ...]
    speed: Speed
    load_seconds: float
    disk_read_bytes: int
    swapped_bytes: int  # the most that lay in swap at once
    locked_bytes: int = 0  # of pinned weights, where there is swap: they cannot go to it
    cap: CapReport | None = None
    model: ModelBytes | None = None

    @property
    def within_budget(self) -> bool:
        return all(tier.within_budget for tier in self.tiers)

    @property
    def is_beside_others(self) -> bool:
        """Whether other programs needed CPUs that were planned."""
        threads = self.speed.threads
        return threads is not None and threads < _ALL_THREADS * self.plan.config.threads

    @property
    def is_far_off(self) -> bool:
        """Whether a speed lies outside its predicted range, and only the kernels' speeds explain it."""
        speed, predicted, planned = self.speed, self.plan.prediction, self.plan.workload
        together = speed.prompt_seconds == speed.generation_seconds  # many answers: rates over the same time
        longer = speed.prompt_tokens > _LONGER * planned.prompt_tokens  # attention takes more than predicted
        elsewhere = self.plan.streamed_bytes or any(is_remote(tier.name) for tier in self.tiers)
        if self.is_beside_others or self.swapped_bytes or together or longer or elsewhere:
            return False
        return any(
            rate is not None and expected and tokens >= least and not expected.low <= rate <= expected.high
            for rate, tokens, least, expected in (
                (speed.prompt_tokens_per_second, speed.prompt_tokens, _LONG_PROMPT, predicted.prompt),
                (
                    speed.generation_tokens_per_second,
                    speed.generated_tokens,
                    _LONG_ANSWER,
                    predicted.generation,
                ),
            )
        )

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change after a run that was painful."""
        found = []
        rate = self.speed.generation_tokens_per_second
        if self.swapped_bytes:
            found.append(
                f"{format_bytes(self.swapped_bytes)} of the model went to swap, which slows every token: "
                "close other programs, lower --ctx or --ram, or raise the limit of locked memory (ulimit -l)"
            )
        if rate is not None and rate < _SLOW_TOKENS_PER_SECOND:
            found.append(
                f"generation ran at {rate:.2f} tok/s: a smaller quantization or model is faster in "
                "proportion to its bytes"
            )
        return tuple(found)

    def to_json(self, *, prompt_tokens: int, completion_tokens: int, **outcome: Any) -> dict[str, Any]:
        """The JSON of `run`, `bench` and `batch`; `outcome` is what is theirs alone."""
        return {
            "plan": self.plan.to_json(),
            **outcome,
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
            "measured": self._measured(),
            "within_budget": self.within_budget,
        }

    def _measured(self) -> dict[str, Any]:
        return {
            "tiers": [{**asdict(tier), "error_bytes": tier.error_bytes} for tier in self.tiers],
            "prompt_tokens_per_second": _rounded(self.speed.prompt_tokens_per_second),
            "generation_tokens_per_second": _rounded(self.speed.generation_tokens_per_second),
            "threads": self.speed.threads and round(self.speed.threads, 2),
            "load_seconds": round(self.load_seconds, 3),
            "disk_read_bytes": self.disk_read_bytes,
            "swapped_bytes": self.swapped_bytes,
            "locked_bytes": self.locked_bytes,
            "hard_cap": asdict(self.cap) if self.cap else None,
            **({"model": asdict(self.model)} if self.model else {}),
        }


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)
