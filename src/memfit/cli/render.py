"""What people see of a plan and a run: the memory map, the progress of loading, the report.

Rich draws colours only on a terminal; piped, the same text is plain.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from memfit.errors import readable
from memfit.planner.limits import limits, main_limit
from memfit.units import format_bytes, format_rate

if TYPE_CHECKING:  # commands without a plan start without the planner
    from memfit.engines.report import Report
    from memfit.planner.plan import Change, Plan, TierUse
    from memfit.planner.speed import Rate

__all__ = [
    "PIPE_WIDTH",
    "console",
    "facts_of",
    "loading_progress",
    "memory_bar",
    "memory_legend",
    "own_choice_of",
    "plain",
    "print_advice",
    "print_machine",
    "print_memory",
    "print_model",
    "print_plan",
    "print_report",
    "print_slow",
    "print_why",
    "rates_of",
    "speaker",
    "table",
    "tier_name",
    "why_of",
    "write",
]

PIPE_WIDTH = 1000  # columns: a file or a pipe has no edge to fold tables at
_BAR_CELLS = 48
# A part's name → label, colour, cell: the cells tell the parts from each other where there are no colours.
_PARTS = {
    "weights": ("weights", "blue", "█"),
    "kv_cache": ("KV cache", "green", "▓"),
    "compute": ("compute", "magenta", "▒"),
    "overhead": ("overhead", "yellow", "░"),
}
_FREE_CELL = "·"
_SLOW = 1.0  # tokens per second


def console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console that never wraps piped text, cuts no piped table, and reads no emoji in what a model says."""
    out = Console(stderr=stderr, file=file, highlight=False, soft_wrap=True, emoji=False)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


def table(*headings: str, no_wrap: bool = False, header_style: str | None = None) -> Table:
    """A table without lines; `>` before a heading sets its column to the right."""
    shown = Table(box=None, pad_edge=False, show_header=bool(headings), header_style=header_style)
    for heading in headings:
        justify: JustifyMethod = "right" if heading.startswith(">") else "left"
        shown.add_column(heading.removeprefix(">"), justify=justify, no_wrap=no_wrap)
    return shown


def plain(text: str) -> Text:
    """A stranger's text made safe for a terminal: no control characters, no markup, one line."""
    return Text(readable(text, kept=""))


def speaker(out: Console) -> Callable[[str], None]:
    """What says a line in memfit's name; a stranger's text in it does no harm."""
    return lambda text: out.print(Text(readable(f"memfit: {text}")))


def write(text: str) -> None:
    """A piece of the model's answer to stdout: as it is into a pipe, harmless on a terminal."""
    sys.stdout.write(readable(text, most=len(text)) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_plan(plan: Plan, out: Console) -> None:
    """What lies where, against the budget, and how fast it will run."""
    spec = plan.spec
    first, *others = facts_of(plan)
    title = Text().append(plain(spec.name)).append("  ").append(plain(first))
    title.stylize("bold", 0, len(plain(spec.name)))
    for line in (title, *map(plain, others)):
        out.print(line)
    out.print()
    for tier in plan.tiers:
        _print_tier(tier, out)
    if plan.streamed_bytes:
        out.print(
            f"[bold]DISK[/]  {format_bytes(plan.streamed_bytes)} of the weights are read for every pass"
        )
    out.print()
    rates = [f"{name} {_range(rate)}" for name, rate in rates_of(plan).items()]
    out.print(f"predicted  {' · '.join(rates)}  ({plan.prediction.basis})")
    if own := own_choice_of(plan):
        out.print(own)


def facts_of(plan: Plan) -> list[str]:
    """A line of the model, one of what the engine is told, and one of what the quantization loses, where
    that is known."""
    spec = plan.spec
    sequences = f"context {plan.context} · {plan.parallel} sequence{'s' * (plan.parallel > 1)}"
    if plan.embeds:
        sequences = f"texts of up to {plan.sequence_context} tokens, {plan.parallel} at once"
    facts = [
        f"{spec.architecture} · {spec.n_params / 1e6:,.0f} M parameters · {spec.quantization} · "
        f"{format_bytes(spec.file_bytes)}",
        f"{sequences} · {plan.settings}",
    ]
    if plan.loss and plan.loss.mean_kl:
        facts.append(f"{spec.quantization} loses {plan.loss.in_words}")
    return facts


def rates_of(plan: Plan) -> dict[str, Rate]:
    """The predicted speeds by what people call them."""
    rates, together = dict(plan.prediction.rates), plan.prediction.together
    return rates | {"all sequences": together} if together and plan.parallel > 1 else rates


def own_choice_of(plan: Plan) -> str | None:
    """What the user's conditions cost; None where there are none."""
    if plan.own_choice is None:
        return None
    chosen = " · ".join(f"{name} {format_rate(rate.value)}" for name, rate in plan.own_choice.rates.items())
    return f"the planner's own choice, without what was asked: {chosen}"


def print_machine(name_or_path: str, out: Console) -> None:
    """Whose figures of a machine that is not this one the prediction rests on."""
    from memfit.hardware.profile import read_profile

    profile = read_profile(name_or_path)
    out.print(plain(f"machine {profile.name}: {profile.origin}"))


def print_why(plan: Plan, out: Console) -> None:
    """Each choice with its reason."""
    for reason in why_of(plan):
        out.print(Text("  · "), plain(reason), sep="")
    names = [tier_name(tier.name) for tier in plan.tiers]
    for what, terms in (
        (
            f"a prompt's pass of {min(plan.ubatch, plan.workload.prompt_tokens)} tokens",
            plan.prediction.prompt_terms,
        ),
        ("one token", plan.prediction.generation_terms),
    ):
        if not terms:
            continue
        whole = sum(term.seconds for term in terms)
        alone = " of computing, beside the disk" if plan.streamed_bytes else ""
        out.print(f"  · {what} takes {1000 * whole:.3g} ms{alone}:")
        seconds: dict[tuple[int, str], float] = {}
        for term in terms:
            key = term.device, term.kind
            seconds[key] = seconds.get(key, 0.0) + term.seconds
        for (device, kind), taken in sorted(seconds.items(), key=lambda one: -one[1]):
            out.print(f"      {1000 * taken:8.3g} ms  {names[device]}: {kind}")


def why_of(plan: Plan) -> Iterator[str]:
    """Each choice with its reason, what takes the time, and what a change would give."""
    yield from plan.why
    yield from (f"what takes the time: {line}" for line in limits(plan))
    yield from (_gain(plan, change) for change in plan.changes)


def print_slow(plan: Plan, out: Console) -> None:
    """Below a token a second: what it waits for, before anybody waits with it."""
    limit, rate = main_limit(plan), plan.prediction.main.value
    if limit and rate < _SLOW:
        out.print(
            plain(
                f"this is slow: {60 * rate:.0f} tokens a minute, most of it "
                f"{limit}; memfit plan … --explain says what would help"
            )
        )


def _gain(plan: Plan, change: Change) -> str:
    """ "2.00 GiB more on gpu0: generation 1.9 → 2.4 tok/s"; what stays the same is left out."""
    after = change.prediction.rates
    found = []
    for what, rate in plan.prediction.rates.items():
        old, new = rate.value, after[what].value
        if format_rate(old) != format_rate(new):
            found.append(f"{what} {format_rate(old)} → {format_rate(new)}")
        elif abs(new / old - 1) >= 0.02:
            found.append(f"{what} {new / old - 1:+.0%}")
    return f"{change.what}: {', '.join(found)}"


def _print_tier(tier: TierUse, out: Console) -> None:
    filled = f"{format_bytes(tier.total_bytes)} of {format_bytes(tier.budget_bytes)}"
    out.print(f"[bold]{tier_name(tier.name)}[/]  {filled}")
    scale = max(tier.budget_bytes, tier.total_bytes)
    out.print(Text("  ") + memory_bar(tier.parts, scale, _BAR_CELLS))
    out.print(Text("  ") + memory_legend(tier.parts, tier.budget_bytes))


def memory_bar(parts: Mapping[str, int], whole_bytes: int, cells: int) -> Text:
    """A plan's parts of a tier, by their names in it, and what they leave of the whole."""
    bar = Text()
    edge = 0
    for name, size in parts.items():
        _, colour, cell = _PARTS[name]
        start = round(cells * edge / whole_bytes)
        edge += size
        bar.append(cell * (round(cells * edge / whole_bytes) - start), style=colour)
    return bar.append(_FREE_CELL * (cells - len(bar)), style="dim")


def memory_legend(parts: Mapping[str, int], budget_bytes: int) -> Text:
    """What the cells of `memory_bar` stand for."""
    legend = Text()
    for name, size in parts.items():
        label, colour, cell = _PARTS[name]
        legend.append(f"{cell} ", style=colour).append(f"{label} {format_bytes(size)}  ")
    free = budget_bytes - sum(parts.values())
    legend.append(f"{_FREE_CELL} ", style="dim")
    return legend.append(f"free {format_bytes(free)}" if free >= 0 else f"short {format_bytes(-free)}")


def tier_name(name: str) -> str:
    """Safe between tags of markup: an address may hold brackets."""
    return escape(name.upper() if name == "ram" else readable(name, kept=""))


def _range(rate: Rate) -> str:
    return f"{format_rate(rate.value)} ({format_rate(rate.low)} to {format_rate(rate.high)})"


def print_report(report: Report, out: Console) -> None:
    """Predicted against measured: memory, and the speed of one sequence."""
    print_memory(report, out)
    print_model(report, out)
    rates = []
    for name, measured, predicted in (
        ("prompt", report.speed.prompt_tokens_per_second, report.plan.prediction.prompt),
        ("generation", report.speed.generation_tokens_per_second, report.plan.prediction.generation),
    ):
        if measured is not None and predicted is not None:
            rates.append(f"{name} {format_rate(measured)} (predicted {format_rate(predicted.value)})")
    if report.is_beside_others:
        rates.append(
            f"other programs left {report.speed.threads:.3g} of {report.plan.config.threads} threads"
        )
    rates.append(f"loaded in {report.load_seconds:.1f} s")
    out.print(" · ".join(rates))
    print_advice(report, out)


def print_model(report: Report, out: Console) -> None:
    """What transformers' get_memory_footprint says of a checkpoint, beside what is there, by types."""
    model = report.model
    if model is None:
        return
    held = sum(model.by_dtype.values())
    said = f"{held:,} bytes in memory; get_memory_footprint() says {model.reported_bytes:,}"
    if held > model.reported_bytes:
        said += f", without {held - model.reported_bytes:,} of quantization state"
    elif report.plan.streamed_bytes:
        said += ", with what stays on the disk"
    out.print(f"[bold]MODEL[/]  {said}")
    types = table("  dtype", ">tensors", ">bytes", "", header_style="dim")
    for dtype, size in sorted(model.by_dtype.items(), key=lambda one: -one[1]):
        types.add_row(f"  {dtype}", f"{model.tensors[dtype]:,}", f"{size:,}", format_bytes(size))
    out.print(types)


def print_advice(report: Report, out: Console) -> None:
    """What to change after a run that was painful."""
    for advice in report.advice:
        out.print(f"[yellow]advice[/]  {advice}")


def print_memory(report: Report, out: Console) -> None:
    """What each device held at most, against its budget."""
    for tier in report.tiers:
        verdict = "[green]within budget[/]" if tier.within_budget else "[red]OVER BUDGET[/]"
        if tier.peak_bytes is None or tier.error_bytes is None:
            reached, verdict = "peak unknown: nobody there measures it", "not proven"
        else:
            reached = f"peak {format_bytes(tier.peak_bytes)}"
        expected = f"predicted {format_bytes(tier.predicted_bytes)}"
        if tier.error_bytes is not None:
            expected += f" ({format_bytes(tier.error_bytes)} off)"
        out.print(
            f"[bold]{tier_name(tier.name)}[/]  {reached} · {expected} · "
            f"budget {format_bytes(tier.budget_bytes)} · {verdict}"
        )
    if report.cap:
        counted = (
            f" · the kernel counted {format_bytes(report.cap.peak_bytes)}" if report.cap.peak_bytes else ""
        )
        out.print(f"[bold]HARD CAP[/]  {format_bytes(report.cap.limit_bytes)}{counted}")


@contextlib.contextmanager
def loading_progress(out: Console) -> Iterator[Callable[[float], None] | None]:
    """A bar on a terminal; nothing where the output is piped."""
    if not out.is_terminal:
        yield None
        return
    columns = (TextColumn("loading"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("loading", total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)
