"""Which part of a machine a plan's prompts and answers wait for, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.planner.plan import Plan
    from memfit.planner.speed import Term

__all__ = ["limits", "main_limit"]

_LEAST = 0.05  # of the whole: smaller parts are not told
_HIDDEN = 0.95  # of the time: computing that takes less hides behind the disk


def limits(plan: Plan) -> Iterator[str]:
    """A line for prompts and one for generation, if there is any: the parts that take the time, with their
    shares."""
    for what, terms, seconds in _passes(plan):
        if terms:
            parts = ", ".join(f"{share:.0%} {part}" for part, share in _parts(plan, terms, seconds, what))
            yield f"{what}: {parts}"


def main_limit(plan: Plan) -> str | None:
    """What takes most of the time of a generated token, or of a text that is embedded; None where the plan
    does not know."""
    what, terms, seconds = _passes(plan)[-1]
    return next((part for part, _ in _parts(plan, terms, seconds, what)), None) if terms else None


def _passes(plan: Plan) -> tuple[tuple[str, Sequence[Term], float], ...]:
    """What it is for, its terms, and the seconds of one pass."""
    prediction, ubatch = plan.prediction, min(plan.ubatch, plan.workload.prompt_tokens)
    prompt = "prompt", prediction.prompt_terms, ubatch / prediction.prompt.value
    if prediction.generation is None:
        return (prompt,)
    return prompt, ("generation", prediction.generation_terms, 1 / prediction.generation.value)


def _parts(plan: Plan, terms: Sequence[Term], seconds: float, what: str) -> list[tuple[str, float]]:
    """Largest first."""
    computing = sum(term.seconds for term in terms)
    if plan.streamed_bytes and computing < _HIDDEN * seconds:
        return [(f"reading {format_bytes(plan.streamed_bytes)} from the disk for every pass", 1.0)]
    found: dict[str, float] = {}
    for term in terms:
        name = _name(term, [tier.name for tier in plan.tiers], what)
        found[name] = found.get(name, 0.0) + term.seconds / computing
    return [one for one in sorted(found.items(), key=lambda one: -one[1]) if one[1] >= _LEAST]


def _name(term: Term, tiers: Sequence[str], what: str) -> str:
    there = tiers[term.device].upper() if term.device == 0 else tiers[term.device]
    kind = term.kind.partition(" ")[0]
    verb = "multiplying with" if what == "prompt" else "reading"
    return {
        "matmul": f"{verb} weights in {there}",
        "experts": f"{verb} experts in {there}",
        "attention": f"attention in {there}",
        "weights": f"sending weights from RAM to {there}",
        "cache": f"sending the KV cache from RAM to {there}",
        "graph": f"handing over to {there} and back",
    }.get(kind, f"norms and activations in {there}")
