"""How large a file a budget leaves room for: its weights, beside all that a run holds as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line wants the names alone
    from memfit.planner.plan import Plan, TierUse

__all__ = ["PREFERENCES", "room_for_file"]

PREFERENCES = ("quality", "speed")
_SPARE_BYTES = 8 << 20  # of each tier: what a plan keeps free, and what a placement cannot fill


def room_for_file(plan: Plan, *, prefer: str) -> int:
    """Bytes of the largest file of the planned model that would fit the plan's budgets, whole and at its
    context, by what its plan holds beside weights. With `prefer` "speed" what GPUs hold alone, where there
    are any: bits in RAM cost time."""
    gpus = [tier for tier in plan.tiers if tier.kind == "vram"]
    tiers = gpus if gpus and prefer == "speed" else [*gpus, plan.ram]
    header = plan.spec.file_bytes - plan.spec.weights_bytes
    return header + sum(max(0, _room(tier)) for tier in tiers)


def _room(tier: TierUse) -> int:
    return tier.limit_bytes - (tier.total_bytes - tier.parts["weights"]) - _SPARE_BYTES
