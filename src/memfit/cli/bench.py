"""`memfit bench`: measured speed and memory against the prediction."""

from __future__ import annotations

import json
from typing import Any

import click

from memfit.cli.options import (
    budget_options,
    json_option,
    take_budget,
    take_workload,
    verbose_option,
    workload_options,
)

__all__ = ["command"]

_REPETITIONS = 3


@click.command("bench")
@click.argument("model")
@budget_options
@workload_options
@click.option("--prompt-tokens", type=int, default=512, show_default=True, metavar="N")
@click.option("--gen-tokens", type=int, default=128, show_default=True, metavar="N")
@json_option
@verbose_option
def command(
    model: str, prompt_tokens: int, gen_tokens: int, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Measure MODEL's speed and memory, and compare with the plan.

    Times decoding alone, as llama-bench does: a prompt of N tokens, then N generated tokens, each from
    an empty cache. The median of three repetitions is shown.
    """
    from memfit.api import load, plan
    from memfit.cli.render import console, loading_progress, print_plan, print_report
    from memfit.errors import UsageError

    err = console(stderr=True)
    workload = take_workload(options, prompt_tokens=prompt_tokens, generated_tokens=gen_tokens)
    planned = plan(
        model,
        budget=take_budget(options),
        workload=workload,
        count_parent=True,
        say=lambda text: err.print(f"memfit: {text}"),
        verbose=verbose,
    )
    planned.require_fit()
    if max(prompt_tokens, gen_tokens) > planned.context:
        raise UsageError(
            f"{max(prompt_tokens, gen_tokens)} tokens do not fit a context of {planned.context}; "
            f"try --ctx {max(prompt_tokens, gen_tokens)}"
        )
    if not as_json:
        print_plan(planned, err)
    with (
        loading_progress(err) as on_progress,
        load(planned, count_parent=True, on_progress=on_progress, verbose=verbose) as session,
    ):
        session.measure(prompt_tokens, gen_tokens, repetitions=_REPETITIONS)
        report = session.report()
    if as_json:
        document = report.to_json(
            text="", finish_reason="length", prompt_tokens=prompt_tokens, completion_tokens=gen_tokens
        )
        click.echo(json.dumps(document, indent=2))
    else:
        print_report(report, console())
