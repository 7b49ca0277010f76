"""`memfit batch`: a file of requests in, a file of answers out, many sequences at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.fetch import load_shown, ready_plan, yes_option
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import (
    batch_workload_options,
    budget_options,
    engine_options,
    hard_cap_option,
    placement_options,
    sampling_options,
    take_budget,
    take_conditions,
    take_engine,
    take_sampling,
    take_workload,
    verbose_option,
)
from memfit.cli.schema import read_schema, schema_option
from memfit.errors import WrongValueError
from memfit.units import format_rate

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.batch.executor import Progress
    from memfit.batch.input import Input
    from memfit.batch.sink import Sink
    from memfit.engines.report import Report
    from memfit.engines.requests import Sampling, StreamTotals
    from memfit.engines.session import Session
    from memfit.planner.plan import Plan

__all__ = ["command"]


@click.command("batch")
@click.argument("model")
@click.option("--input", "source", required=True, metavar="FILE", help="One request a line; - is stdin.")
@click.option("--output", required=True, metavar="FILE", help="One answer a line; - is stdout.")
@click.option("--unordered", is_flag=True, help="Write answers as they are ready, not in the input's order.")
@click.option("--overwrite", is_flag=True, help="Start over, whatever the output holds.")
@schema_option
@click.option("--raw", is_flag=True, help="Continue plain prompts themselves, without the chat template.")
@budget_options
@hard_cap_option
@batch_workload_options
@placement_options
@engine_options
@sampling_options
@yes_option
@json_option
@verbose_option
def command(
    model: str,
    source: str,
    output: str,
    unordered: bool,
    overwrite: bool,
    schema: str | None,
    raw: bool,
    hard_cap: bool,
    yes: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Answer every request of a file inside a memory budget.

    A line is a request of OpenAI's batch format, or {"prompt": "…"} or {"messages": […]} with an id of your
    own; the options for sampling hold where a line does not say otherwise. Answers come in OpenAI's form.
    Lines that cannot be answered go to OUT.errors.jsonl with the reason. A run that was interrupted, or
    killed, goes on where it was when the same command is run again.
    """
    from memfit.batch.input import open_input
    from memfit.batch.job_plan import plan_job
    from memfit.batch.output import open_sink
    from memfit.cli.render import console, speaker
    from memfit.engines.protocol import PlanOptions
    from memfit.planner.request import MOST_TOKENS

    err = console(stderr=True)
    if as_json and output == "-":
        raise WrongValueError(
            "json",
            " and --output - both want standard output, one for a summary and one for the answers; "
            "use one of them",
        )
    say, sequences = speaker(err), options["parallel"]
    asks = {"budget": take_budget(options), "conditions": take_conditions(options), **take_engine(options)}
    engine, workload = asks.pop("engine"), take_workload(options)
    sampling = take_sampling(options)
    constraint = read_schema(schema)
    with open_input(source, sampling, raw=raw, schema=constraint, stdin=sys.stdin.buffer) as lines:
        tokens = min(sampling.max_tokens or workload.generated_tokens, MOST_TOKENS)
        grammars = constraint is not None or lines.has_schemas
        workload = replace(workload, grammars=grammars, generated_tokens=tokens)
        asked = PlanOptions(**asks, count_parent=True, writes=True, say=say, verbose=verbose)
        job = partial(plan_job, workload=workload, engine=engine, sequences=sequences)
        planned = ready_plan(lambda named: job(named or model, lines, asked), err, yes=yes)
        with open_sink(
            output,
            lines,
            identity=_identity(planned, sampling, constraint, raw),
            ordered=not unordered,
            overwrite=overwrite,
            stream=sys.stdout,
            on_error=lambda line: say(f"line {line['line']}: {line['error']['message']}"),
        ) as sink:
            shown = _Shown(output=output, as_json=as_json, err=err, say=say)
            load = partial(load_shown, planned, err, hard_cap=hard_cap, verbose=verbose)
            _work_off(planned, lines, sink, shown, load)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Where what people and programs are told goes."""

    output: str  # the answers' file, as it was named
    as_json: bool
    err: Console
    say: Callable[[str], None]


def _work_off(planned: Plan, lines: Input, sink: Sink, shown: _Shown, load: Callable[[], Session]) -> None:
    """Answer what is not answered yet, and tell what became of it."""
    from memfit.cli.render import print_advice, print_memory, print_plan
    from memfit.engines.requests import StreamTotals

    err = shown.err
    before = sink.answered + sink.failed
    report, totals = None, StreamTotals()
    if sink.complete:
        shown.say(f"all {lines.count} requests were answered before: {shown.output}")
    else:
        if before:
            shown.say(f"{before} of {lines.count} requests were answered before; going on")
        if not shown.as_json:
            print_plan(planned, err)
            err.print()
        report, totals = _answer(planned, lines, sink, shown, load)
    if shown.as_json:
        write_json(_summary(planned, report, totals, sink, shown.output, before))
    elif report:
        err.print()
        print_memory(report, err)
        print_advice(report, err)
        _print_summary(planned, totals, sink, shown.output, err)


def _answer(
    planned: Plan, lines: Input, sink: Sink, shown: _Shown, load: Callable[[], Session]
) -> tuple[Report, StreamTotals]:
    """All that is not done yet, with a bar on a terminal: the loading's, or the answering's."""
    from memfit.batch.executor import Executor

    bar = _Bar(shown.err, lines.count)

    def open_session() -> Session:
        bar.close()  # two at a time are an error to rich
        return load()

    with closing(bar):
        return Executor(
            lines,
            sink,
            open_session,
            model=planned.spec.name,
            ahead=2 * planned.parallel + 2,
            expected_tokens=planned.workload.generated_tokens,
            on_progress=bar.show,
            say=shown.say,
        ).run()


def _identity(planned: Plan, sampling: Sampling, schema: Any, raw: bool) -> dict[str, Any]:
    """What the answers depend on beside the input; not how fast, or within which budget, they come."""
    spec = planned.spec
    return {
        "model": {
            "name": spec.name,
            "quantization": spec.quantization,
            "file_bytes": spec.file_bytes,
            **planned.identity,
        },
        "sampling": asdict(sampling),
        "schema": schema,
        "raw": raw,
    }


class _Bar:
    """A bar that is drawn when told, not by a thread of its own: what computes beside the engine slows it."""

    def __init__(self, out: Console, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("answering"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}", style="red"),
            console=out,
            auto_refresh=False,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, rate="", failed="")

    def show(self, now: Progress) -> None:
        totals = now.totals
        self._bar.start()
        self._bar.update(
            self._task,
            completed=now.answered + now.failed,
            rate=format_rate(totals.generated_tokens / totals.seconds) if totals.seconds else "",
            failed=f"{now.failed} failed" if now.failed else "",
        )
        self._bar.refresh()

    def close(self) -> None:
        """Take it away; it comes again with the next progress."""
        self._bar.stop()


def _summary(
    planned: Plan, report: Report | None, totals: StreamTotals, sink: Sink, output: str, before: int
) -> dict[str, Any]:
    """What --json prints; nothing was measured where all was answered `before`."""
    outcome: dict[str, Any] = {
        "output": output,
        "answered": sink.answered,
        "failed": sink.failed,
        "finished_before": before,
        "shared_tokens": totals.shared_tokens,
        "seconds": round(totals.seconds, 3),
    }
    prompt, generated = totals.prompt_tokens, totals.generated_tokens
    if report is not None:
        return report.to_json(prompt_tokens=prompt, completion_tokens=generated, **outcome)
    nothing = {"usage": {"prompt_tokens": 0, "completion_tokens": 0}, "measured": None, "within_budget": None}
    return {"plan": planned.to_json(), **outcome, **nothing}


def _print_summary(planned: Plan, totals: StreamTotals, sink: Sink, output: str, out: Console) -> None:
    """What became of the lines, and how fast against what was predicted."""
    failed = f", {sink.failed} failed" if sink.failed else ""
    out.print(f"{sink.answered} answered{failed}: {output}", markup=False)
    if not totals.seconds:
        return
    prompt, together = planned.prediction.prompt, planned.prediction.together
    assert together, "models that only embed are refused before"
    expected = totals.prompt_tokens / prompt.value + totals.generated_tokens / together.value
    shared = f", {totals.shared_tokens} shared" if totals.shared_tokens else ""
    out.print(
        f"prompts {totals.prompt_tokens} tokens{shared} · answers {totals.generated_tokens} tokens · "
        f"{totals.seconds:.1f} s, predicted {expected:.1f} s for as much · "
        f"{format_rate(totals.generated_tokens / totals.seconds)}"
    )
