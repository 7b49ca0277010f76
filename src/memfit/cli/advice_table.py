"""The table that `memfit plan hf:org/repo` prints: the repository's quantizations compared."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from memfit.cli.render import plain, table
from memfit.planner.advice import Advice
from memfit.planner.loss import LOSS_SOURCE, Loss
from memfit.planner.plan import Plan
from memfit.units import format_bytes, format_rate

__all__ = ["print_advice"]

_MARKS = {"measured": "*", "bits": "~"}
_EXPLAINED = {"*": "measured here, of this file", "~": "of types with as many bits a weight"}


def print_advice(advice: Advice, out: Console) -> None:
    """Every quantization, what would change with another budget, and smaller models."""
    rows = table("", "type", ">file", ">loss", ">RAM", ">devices", ">prompt", ">generation", no_wrap=True)
    for option in advice.options:
        mark = "→" if option is advice.recommended else ""
        cells: list[str | Text] = [mark, plain(option.name), format_bytes(option.size_bytes)]
        cells.append(_loss(option.loss))
        rows.add_row(*cells, *(_cells(option.plan) if option.plan else [plain(option.problem or "")]))
    out.print(rows)
    out.print(f"loss: mean KL divergence in nats a token, Llama-3-8B's, {LOSS_SOURCE}", style="dim")
    marks = {_MARKS.get(option.loss.basis) for option in advice.options if option.loss}
    for mark, meaning in _EXPLAINED.items():
        if mark in marks:
            out.print(f"{mark} {meaning}", style="dim")
    if advice.warning:
        out.print(plain(advice.warning), style="bold")
    if advice.what_ifs:
        out.print()
        asked = f"{advice.recommended.name} with"
        rows = table(asked, ">RAM", ">devices", ">prompt", ">generation")
        for one in advice.what_ifs:
            rows.add_row(one.change, *_cells(one.plan))
        out.print(rows)
    if advice.smaller_models:
        out.print("smaller models of this family: ", *map(plain, advice.smaller_models), sep=" ")


def _loss(loss: Loss | None) -> str:
    return f"{_MARKS.get(loss.basis, '')}{loss.mean_kl:.3f}" if loss else ""


def _cells(plan: Plan) -> list[str | Text]:
    devices = sum(tier.total_bytes for tier in plan.tiers if tier.kind == "vram")
    held: list[str | Text] = [format_bytes(plan.ram.total_bytes), format_bytes(devices) if devices else ""]
    if tier := plan.overfull:
        return [*held, "short", format_bytes(tier.needs_bytes - tier.limit_bytes)]
    rates = (plan.prediction.prompt, plan.prediction.generation)
    return [*held, *(format_rate(rate.value) if rate else "" for rate in rates)]
