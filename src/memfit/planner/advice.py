"""Recommends one of a repository's quantizations, all planned for the same machine and budget. Pure.

Recommended is the least loss that still generates faster than people read; if none does, the fastest. Loss is
what llama.cpp publishes for one model of 8 billion parameters: an order, not a promise for another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfit.planner.llamacpp.llama_plan import LlamaPlan

__all__ = ["LOSS_SOURCE", "Advice", "Option", "WhatIf", "recommend"]

_READING_TOKENS_PER_SECOND = 10.0
_SAME_MODEL = 0.75  # of the parameters; quantizations of one differ where some write the output matrix twice
LOSS_SOURCE = "https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/quantize.cpp"
# What perplexity rises by against F16, Llama-3-8B; the table of llama-quantize --help at LOSS_SOURCE.
_LOSSES = {
    "Q2_K": 3.5199,
    "Q2_K_S": 3.1836,
    "Q3_K_S": 1.6321,
    "Q3_K_M": 0.6569,
    "Q3_K_L": 0.5562,
    "Q4_0": 0.4685,
    "Q4_1": 0.4511,
    "Q4_K_S": 0.2689,
    "Q4_K_M": 0.1754,
    "Q5_0": 0.1316,
    "Q5_1": 0.1062,
    "Q5_K_S": 0.1049,
    "Q5_K_M": 0.0569,
    "Q6_K": 0.0217,
    "Q8_0": 0.0026,
    "BF16": 0.0,
    "F16": 0.0,
    "F32": 0.0,
}


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
    def loss(self) -> float | None:
        """Rise of perplexity (see LOSS_SOURCE); None where nobody published one."""
        return _LOSSES.get(self.label)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.source,
            "quantization": self.label,
            "name": self.name,
            "file_bytes": self.size_bytes,
            "perplexity_rise": self.loss,
            "perplexity_source": LOSS_SOURCE if self.loss is not None else None,
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

    def to_json(self) -> dict[str, Any]:
        """The recommended plan, as `plan` prints any, and what it was chosen from."""
        assert self.recommended.plan is not None
        return {
            **self.recommended.plan.to_json(),
            "recommended": self.recommended.source,
            "alternatives": [option.to_json() for option in self.options],
            "what_if": [one.to_json() for one in self.what_ifs],
            "smaller_models": list(self.smaller_models),
        }


def recommend(options: Sequence[Option]) -> Option | None:
    """None where no option has a plan."""
    planned = [(option, option.plan) for option in options if option.plan is not None]
    fitting = [
        (plan.prediction.generation.value, plan.spec.n_params, option)
        for option, plan in planned
        if plan.fits
    ]
    if not fitting:
        return min((option for option, _ in planned), key=lambda one: one.size_bytes, default=None)
    swift = [one for one in fitting if one[0] >= _READING_TOKENS_PER_SECOND]
    if not swift:
        return max(fitting, key=lambda one: one[0])[2]
    # Of several models the largest that is swift: their losses say nothing about each other.
    most = max(parameters for _, parameters, _ in swift)
    same = [option for _, parameters, option in swift if parameters >= _SAME_MODEL * most]
    known = [option for option in same if option.loss is not None]
    # Of files with an unknown loss, size tells; of equal losses the smaller file is the better one.
    if known:
        return min(known, key=lambda one: (one.loss, one.size_bytes))
    return max(same, key=lambda one: one.size_bytes)


def _outcome(plan: LlamaPlan | None) -> dict[str, Any]:
    if plan is None:
        return {"fits": False}
    return {
        "fits": plan.fits,
        "tiers": [
            {"name": tier.name, "kind": tier.kind, "total_bytes": tier.total_bytes} for tier in plan.tiers
        ],
        "prompt_tokens_per_second": round(plan.prediction.prompt.value, 2),
        "generation_tokens_per_second": round(plan.prediction.generation.value, 2),
        "basis": plan.prediction.basis,
    }
