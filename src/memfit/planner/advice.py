"""Recommends one of a repository's quantizations, all planned for the same machine and budget. Pure.

Recommended is the least loss that still generates faster than people read; if none does, the fastest. Never
one that is expected to lose more than MOST_LOSS (planner/loss.py), unless only such fit: then the least loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.loss import MOST_LOSS, Loss, expected_loss
from memfit.units import format_rate

__all__ = ["Advice", "Option", "WhatIf", "recommend"]

_READING_TOKENS_PER_SECOND = 10.0
_SAME_MODEL = 0.75  # of the parameters; quantizations of one differ where some write the output matrix twice


@dataclass(frozen=True, kw_only=True)
class Option:
    """One file, or split model, of a repository."""

    label: str  # its quantization, as its name says
    name: str  # what tells it from the others: the label, or its file where several models share labels
    source: str  # the MODEL that names it
    size_bytes: int
    plan: LlamaPlan | None  # None where it could not be planned
    problem: str | None = None  # why not

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    @property
    def loss(self) -> Loss | None:
        """None where it could not be planned."""
        if self.plan is None:
            return None
        if self.plan.loss and self.plan.loss.basis == "measured":
            return self.plan.loss
        return expected_loss(self.label, 8 * self.size_bytes / max(1, self.plan.spec.n_params))

    @property
    def is_good(self) -> bool:
        """Whether it may be recommended without a warning."""
        return self.fits and self.mean_kl <= MOST_LOSS

    @property
    def mean_kl(self) -> float:
        """In nats a token; endless where it is not known."""
        return self.loss.mean_kl if self.loss else math.inf

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.source,
            "quantization": self.label,
            "name": self.name,
            "file_bytes": self.size_bytes,
            "loss": self.loss and asdict(self.loss),
            "problem": self.problem,
            **_outcome(self.plan),
        }


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The recommended file, had something been otherwise."""

    change: str  # "--ctx 2048", "on rtx4090-24gb", "--ram 48GiB"
    plan: LlamaPlan

    def to_json(self) -> dict[str, Any]:
        return {"change": self.change, **_outcome(self.plan)}


@dataclass(frozen=True, kw_only=True)
class Advice:
    options: tuple[Option, ...]  # the largest first
    recommended: Option  # where nothing fits, the one that is least short
    what_ifs: tuple[WhatIf, ...]
    smaller_models: tuple[str, ...]  # of the same owner and family, as MODEL names them
    instead: Option | None = None  # of a smaller model, where the recommended one does not fit or loses much

    @property
    def warning(self) -> str | None:
        """Where nothing fits, or only what loses too much: that, and which smaller model would do."""
        best = self.recommended
        if best.is_good:
            return None
        said = "no quantization fits"
        if best.fits:
            said = (
                f"no quantization fits that loses at most {MOST_LOSS:g} nats a token; {best.name} is "
                f"expected to lose {best.mean_kl:.2g}"
            )
        if self.instead is None or self.instead.plan is None:
            return said
        prediction = self.instead.plan.prediction
        rate = f"{'generates' if prediction.generation else 'reads'} {format_rate(prediction.main.value)}"
        return f"{said}; {self.instead.source} fits, loses {self.instead.mean_kl:.2g} and {rate}"

    def to_json(self) -> dict[str, Any]:
        """The recommended plan, as `plan` prints any, and what it was chosen from."""
        assert self.recommended.plan is not None
        return {
            **self.recommended.plan.to_json(),
            "recommended": self.recommended.source,
            "alternatives": [option.to_json() for option in self.options],
            "what_if": [one.to_json() for one in self.what_ifs],
            "smaller_models": list(self.smaller_models),
            "instead": self.instead and self.instead.to_json(),
        }


def recommend(options: Sequence[Option]) -> Option | None:
    """None where no option has a plan."""
    planned = [(option, option.plan) for option in options if option.plan is not None]
    fitting = [
        (plan.prediction.main.value, plan.spec.n_params, option) for option, plan in planned if plan.fits
    ]
    if not fitting:
        return min((option for option, _ in planned), key=lambda one: one.size_bytes, default=None)
    bearable = [one for one in fitting if one[2].mean_kl <= MOST_LOSS]
    if not bearable:
        return min((option for *_, option in fitting), key=lambda one: (one.mean_kl, one.size_bytes))
    swift = [one for one in bearable if one[0] >= _READING_TOKENS_PER_SECOND]
    if not swift:
        return max(bearable, key=lambda one: one[0])[2]
    # Of several models the largest that is swift: their losses say nothing about each other.
    most = max(parameters for _, parameters, _ in swift)
    same = [option for _, parameters, option in swift if parameters >= _SAME_MODEL * most]
    return min(same, key=lambda one: (one.mean_kl, one.size_bytes))


def _outcome(plan: LlamaPlan | None) -> dict[str, Any]:
    if plan is None:
        return {"fits": False}
    generation = plan.prediction.generation
    return {
        "fits": plan.fits,
        "tiers": [
            {"name": tier.name, "kind": tier.kind, "total_bytes": tier.total_bytes} for tier in plan.tiers
        ],
        "prompt_tokens_per_second": round(plan.prediction.prompt.value, 2),
        "generation_tokens_per_second": generation and round(generation.value, 2),
        "basis": plan.prediction.basis,
    }
