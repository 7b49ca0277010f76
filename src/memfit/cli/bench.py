"""`memfit bench`: measured speed and memory against the prediction."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.fetch import load_shown, ready_plan, yes_option
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import (
    budget_options,
    engine_options,
    hard_cap_option,
    placement_options,
    plan_option,
    take_plan,
    verbose_option,
    workload_options,
)

__all__ = ["command"]

_REPETITIONS = 3


@click.command("bench")
@click.argument("model", required=False)
@budget_options
@hard_cap_option
@workload_options
@placement_options
@engine_options
@plan_option
@yes_option
@json_option
@verbose_option
def command(
    model: str | None, yes: bool, hard_cap: bool, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Measure MODEL's speed and memory, and compare with the plan.

    Times decoding alone, as llama-bench does: a prompt of N tokens, then N generated tokens, each from
    a cache of --depth tokens (none unless given); with --plan, as that plan has them. The median of
    three repetitions is shown.
    """
    from memfit.cli.render import console, print_plan, print_report, speaker
    from memfit.errors import UsageError

    err = console(stderr=True)
    options["depth"] = options["depth"] or 0
    make_plan = take_plan(model, options, speaker(err), verbose)
    planned = ready_plan(make_plan, err, yes=yes)
    workload = planned.workload
    prompt_tokens, gen_tokens, depth = workload.prompt_tokens, workload.generated_tokens, workload.depth or 0
    needed = depth + max(prompt_tokens, gen_tokens)
    if needed > planned.context:
        raise UsageError(
            f"{needed} tokens do not fit a context of {planned.context}; try --ctx {needed}",
            field="--ctx",
            got=planned.context,
            needed=needed,
        )
    if not as_json:
        print_plan(planned, err)
    with load_shown(planned, err, hard_cap=hard_cap, verbose=verbose) as session:
        session.measure(prompt_tokens, gen_tokens, depth=depth, repetitions=_REPETITIONS)
        report = session.report()
    if as_json:
        document = report.to_json(
            text="", finish_reason="length", prompt_tokens=prompt_tokens, completion_tokens=gen_tokens
        )
        write_json(document)
    else:
        print_report(report, console())
