"""A plan as a page to send to somebody, and as a picture of it: one file without a script, which fetches
nothing.

What it looks like is plan_page.html's; here is what there is to show. Names are a stranger's: jinja2 escapes
all that it fills in, and what no screen shows is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from memfit import __version__
from memfit.cli.plan_picture import find_browser, take_picture
from memfit.cli.render import facts_of, own_choice_of, rates_of, why_of
from memfit.errors import DoesNotFitError, UsageError, WrongValueError, readable
from memfit.quantize.whole_file import require_free, whole_file
from memfit.units import format_bytes, format_rate

if TYPE_CHECKING:
    from memfit.planner.plan import Plan, TierUse

__all__ = ["PlanDrawing", "plan_page"]

_LABELS = {
    "weights": "Weights",
    "kv_cache": "KV cache",
    "compute": "Compute buffers",
    "overhead": "Overhead",
}
_AMBER, _RED = 0.8, 0.9  # of the budget; as server/page/memory.js has them
_STATES = {
    "amber": "more than 80 % of the budget",
    "red": "more than 90 % of the budget",
    "over": "does not fit",
}
_BASES = {
    "calibrated": "From what was measured on this machine.",
    "provisional": "From what was measured on this machine beside other programs.",
    "profile": "From published figures of this machine.",
    "assumed": "Assumed: nothing is known of this machine's speed.",
}


@dataclass(frozen=True, kw_only=True)
class _Part:
    name: str
    label: str
    size_bytes: int
    start: float  # of a hundred
    width: float


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One tier against its budget."""

    tier: TierUse

    @property
    def name(self) -> str:
        return "RAM" if self.tier.kind == "ram" else self.tier.name

    @property
    def free_bytes(self) -> int:
        return self.tier.budget_bytes - self.tier.total_bytes

    @property
    def parts(self) -> Iterator[_Part]:
        start = 0
        for name, size in self.tier.parts.items():
            if size:
                at, width = self._share(start), self._share(size)
                yield _Part(name=name, label=_LABELS[name], size_bytes=size, start=at, width=width)
            start += size

    @property
    def budget_at(self) -> float | None:
        """Where the budget ends within the bar; None where the bar ends with it."""
        return self._share(self.tier.budget_bytes) if self.free_bytes < 0 else None

    @property
    def level(self) -> str:
        tier = self.tier
        if tier.needs_bytes > tier.limit_bytes:
            return "over"
        levels = (("red", _RED), ("amber", _AMBER))
        return next((name for name, share in levels if tier.total_bytes >= share * tier.budget_bytes), "")

    @property
    def state(self) -> str:
        return _STATES[self.level]

    def _share(self, size: int) -> float:
        return round(100 * size / max(self.tier.budget_bytes, self.tier.total_bytes), 3)


class PlanDrawing:
    """--html and --png: looked at before anything is planned, written once it is. A file that is there is
    replaced."""

    def __init__(self, *, html: str | None, png: str | None, sources: Sequence[Path]) -> None:
        """`sources` are read, and so not to be replaced.

        Raises:
            UsageError: no such file is to be written, or there is no browser to draw the picture.
            OutputError: it cannot be written there.
        """
        self._files = {name: Path(file) for name, file in (("html", html), ("png", png)) if file is not None}
        self._sources = sources
        for name, file in self._files.items():
            if str(file) == "-":
                raise WrongValueError(name, " - : standard output has the plan itself; name a file")
            require_free(file, sources, overwrite=True)
        if len(self._files) > len({file.resolve() for file in self._files.values()}):
            raise UsageError(f"--html and --png both name {html}; choose another name", field="--png")
        self._browser = find_browser() if png is not None else None

    @property
    def name(self) -> str:
        """Of the first option that is given."""
        return next(iter(self._files))

    def write(self, plan: Plan) -> None:
        """Raises OutputError."""
        page = plan_page(plan)
        for name, file in self._files.items():
            content = page.encode()
            if name == "png":
                assert self._browser is not None
                content = take_picture(page, self._browser, file.resolve().parent)
            sources = [*self._sources, *plan.spec.paths]
            with whole_file(file, sources, len(content), overwrite=True) as partial:
                partial.write_bytes(content)


def plan_page(plan: Plan) -> str:
    """The whole HTML of a plan, also of one that does not fit."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: readable(value, kept="") if type(value) is str else value,
    )
    environment.filters |= {"size": format_bytes, "speed": format_rate}
    source = (resources.files("memfit.cli") / "plan_page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        plan=plan,
        facts=facts_of(plan),
        refusal=_refusal(plan),
        bars=[_Bar(tier=tier) for tier in plan.tiers],
        rates=rates_of(plan),
        basis=_BASES[plan.prediction.basis],
        own_choice=own_choice_of(plan),
        why=list(why_of(plan)),
        machine=_machine(plan),
        version=__version__,
        day=date.today().isoformat(),
    )


def _refusal(plan: Plan) -> DoesNotFitError | None:
    try:
        plan.require_fit()
    except DoesNotFitError as error:
        return error
    return None


def _machine(plan: Plan) -> str | None:
    """What the plan was made for, in words; None where it does not say."""
    mark: Any = plan.fingerprint
    if mark is None:
        return None
    named = f"{mark.profile}: " if mark.profile else ""
    devices = (f"{one.name} {format_bytes(one.total_bytes)}" for one in (*mark.gpus, *mark.remote_devices))
    return named + " · ".join(
        [mark.cpu, f"{mark.cores} cores", f"{format_bytes(mark.ram_bytes)} of RAM", *devices]
    )
