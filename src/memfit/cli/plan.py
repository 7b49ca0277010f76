"""`memfit plan`: what will lie where and how fast it will run. Loads no weights."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import (
    asks_for_transformers,
    budget_options,
    embedding_options,
    engine_options,
    machine_option,
    placement_options,
    plan_option,
    refuse_beside_plan,
    take_budget,
    take_conditions,
    take_engine,
    take_plan,
    take_workload,
    verbose_option,
    workload_options,
)
from memfit.cli.schema import read_schema, schema_option
from memfit.errors import DoesNotFitError, WrongValueError

if TYPE_CHECKING:
    from memfit.cli.plan_page import PlanDrawing
    from memfit.planner.advice import Advice
    from memfit.planner.plan import Plan

__all__ = ["command"]


@click.command("plan")
@click.argument("model", required=False)
@budget_options
@workload_options
@embedding_options
@placement_options
@engine_options
@machine_option
@schema_option
@plan_option
@click.option("--html", metavar="FILE", help="Write the plan as a page to send to somebody, too.")
@click.option("--png", metavar="FILE", help="Write that page as a picture, too; needs Chromium.")
@click.option("--explain", is_flag=True, help="Say why each choice was made.")
@json_option
@verbose_option
def command(
    model: str | None,
    machine: str | None,
    schema: str | None,
    html: str | None,
    png: str | None,
    explain: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Say what will lie where and how fast MODEL will run; loads no weights.

    MODEL is a GGUF file (any shard of a split one), demo, hf:org/repo:Q4_K_M, hf:org/repo/file.gguf or
    https://…/file.gguf: of what is not here only the header is read. hf:org/repo compares all quantizations
    there and recommends one. Of a checkpoint with config.json and safetensors, here or on the hub, it says
    what each precision takes, and with --machine where it lies and how fast it is. Exit code 3 where it does
    not fit.
    """
    from memfit.cli.render import console, speaker

    say = speaker(console(stderr=True))
    drawing = _drawing(html, png, (model, machine, schema, options["plan"]))
    if options["plan"] is not None:
        refuse_beside_plan({"machine", "schema"})
        planned = take_plan(model, options, say, verbose, writes=False)(None)
        _show(planned, drawing, explain=explain, as_json=as_json)
        return
    from memfit.advise import advise, choices_of
    from memfit.api import plan
    from memfit.cli.precision import plans_on_machine, show_precisions
    from memfit.hub.resolve import resolve

    if model is None:
        context = click.get_current_context()
        raise click.MissingParameter(
            "A saved plan is taken by --plan FILE.", context, context.command.params[0], param_type="argument"
        )
    request: dict[str, Any] = {
        "budget": take_budget(options),
        "workload": take_workload(options, grammars=read_schema(schema) is not None),
        "conditions": take_conditions(options),
        "machine": machine,
        "count_parent": True,
        "say": say,
    }
    engine = take_engine(options)
    choices = None if asks_for_transformers(engine) else choices_of(model)
    advice = advise(choices, **request) if choices else None
    chosen: Plan | None = advice.recommended.plan if advice else None
    if chosen is None:
        found = resolve(model, request["say"])
        if found.is_checkpoint and engine["load_in"] is None:
            _refuse_beside_precisions(engine, drawing)
            checkpoint = found.read_hf_model()
            plans = plans_on_machine(found, request, engine) if machine else []
            show_precisions(model, checkpoint, request["workload"], plans, as_json=as_json)
            return
        chosen = plan(found, **request, **engine, explain=explain, verbose=verbose)
    _show(chosen, drawing, advice=advice, machine=machine, explain=explain, as_json=as_json)


def _drawing(html: str | None, png: str | None, read: Sequence[str | None]) -> PlanDrawing | None:
    """What is asked for by --html and --png; none of what is `read` is written over."""
    if html is None and png is None:
        return None
    from memfit.cli.plan_page import PlanDrawing

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half-written goes
    return PlanDrawing(html=html, png=png, sources=[Path(one) for one in read if one is not None])


def _show(
    planned: Plan,
    drawing: PlanDrawing | None,
    *,
    advice: Advice | None = None,
    machine: str | None = None,
    explain: bool,
    as_json: bool,
) -> None:
    """Write the files that are asked for, and print the plan."""
    from memfit.cli.advice_table import print_advice
    from memfit.cli.render import console, print_machine, print_plan, print_why

    if drawing:
        drawing.write(planned)
    if as_json:
        _require_fit(planned, advice)
        write_json((advice or planned).to_json())
        return
    out = console()
    if advice:
        print_advice(advice, out)
        out.print()
    print_plan(planned, out)
    if explain:
        print_why(planned, out)
    elif machine:
        print_machine(machine, out)
    planned.require_fit()


def _refuse_beside_precisions(engine: dict[str, Any], drawing: PlanDrawing | None) -> None:
    """Raises UsageError for options that a table of all precisions would leave out without a word."""
    if engine["engine"] == "llamacpp":
        raise WrongValueError(
            "engine", " llamacpp reads GGUF files; a checkpoint is for --engine transformers"
        )
    if engine["double_quant"]:
        raise WrongValueError("double_quant", " goes with --load-in nf4 or fp4")
    if drawing:
        raise WrongValueError(drawing.name, " draws one plan; say in which precision, by --load-in")


def _require_fit(planned: Plan, advice: Advice | None) -> None:
    """Raises DoesNotFitError with all that would have been printed."""
    try:
        planned.require_fit()
    except DoesNotFitError as error:
        error.plan = advice.to_json() if advice else error.plan
        raise
