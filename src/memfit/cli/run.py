"""`memfit run`: one prompt, piped text or a chat, inside a memory budget, with a report at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
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
    sampling_options,
    take_plan,
    take_sampling,
    take_workload,
    utf8,
    verbose_option,
    workload_options,
)
from memfit.cli.schema import read_schema, schema_option
from memfit.engines.requests import Completion, Sampling
from memfit.engines.session import Session
from memfit.errors import InterruptedByUser, UsageError, WrongValueError

__all__ = ["command"]


@click.command("run")
@click.argument("model", required=False)
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; without it, piped text, or a chat.")
@click.option("--file", "file", metavar="PATH", help="Add a file's text after the prompt.")
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--raw", is_flag=True, help="Continue the text itself, without the chat template.")
@budget_options
@hard_cap_option
@workload_options
@placement_options
@engine_options
@plan_option
@sampling_options
@schema_option
@yes_option
@json_option
@verbose_option
def command(
    model: str | None,
    prompt: str | None,
    file: str | None,
    system: str | None,
    raw: bool,
    schema: str | None,
    yes: bool,
    hard_cap: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Run MODEL inside a memory budget: answer a prompt, or chat.

    A model that is not here is planned first, and downloaded if you agree. The answer goes to stdout, the
    plan and the report of predicted against measured bytes to stderr.
    """
    from memfit.cli.render import console, print_plan, print_report, print_slow, speaker

    err = console(stderr=True)
    constraint = read_schema(schema)
    grammars = constraint is not None
    make_plan = take_plan(
        model, options, speaker(err), verbose, workload_of=partial(take_workload, grammars=grammars)
    )
    sampling = take_sampling(options)
    text, system = _prompt_text(prompt, file), utf8(system or "")
    if raw and system:
        raise WrongValueError("system", " needs the chat template, which --raw leaves out; use one of them")
    if text is None and (as_json or raw):
        raise UsageError("there is no prompt; give -p TEXT, --file PATH or pipe a text in")
    planned = ready_plan(make_plan, err, yes=yes)
    if grammars:
        planned.require_schemas()
    if not as_json:
        print_plan(planned, err)
        print_slow(planned, err)
        err.print()
    with load_shown(planned, err, hard_cap=hard_cap, verbose=verbose) as session:
        completion = _answer(session, text, system, raw, sampling, as_json, constraint)
        report = session.report()
    if as_json and completion is not None:
        document = report.to_json(
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )
        write_json(document)
    else:
        if completion is not None:
            click.echo()
        err.print()
        print_report(report, err)
    was_cancelled = completion is not None and completion.finish_reason == "cancelled"
    return InterruptedByUser.exit_code if was_cancelled else 0


def _prompt_text(prompt: str | None, file: str | None) -> str | None:
    """The prompt from -p and --file, else from a pipe; None asks for a chat."""
    pieces = [] if prompt is None else [utf8(prompt)]
    if file is not None:
        try:
            pieces.append(Path(file).read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise WrongValueError("file", f" {file}: {error.strerror}") from None
    if not pieces and not sys.stdin.isatty():
        try:
            pieces.append(sys.stdin.buffer.read().decode("utf-8", errors="replace"))
        except OSError as error:  # it may be open for writing only
            raise UsageError(f"standard input cannot be read: {error.strerror or error}") from None
    if not pieces:
        return None
    text = "\n\n".join(pieces)
    if not text.strip():
        raise UsageError("the prompt is empty; give -p TEXT, --file PATH or pipe a text in")
    return text


def _answer(
    session: Session,
    text: str | None,
    system: str,
    raw: bool,
    sampling: Sampling,
    quiet: bool,
    schema: Mapping[str, Any] | None,
) -> Completion | None:
    """The answer to a text: through the model's chat template, unless it has none or --raw leaves it out.
    Without a text this is a chat, and None comes back when it is over.

    Raises:
        UsageError: there is a system message, and no template that takes one.
    """
    from memfit.cli.render import write

    if system and not session.has_chat_template:
        raise UsageError(
            "this model has no chat template, so it knows no --system; put it into the prompt, with --raw"
        )
    if text is None:
        from memfit.cli.chat import chat

        chat(session, sampling, system, schema)
        return None
    on_text = None if quiet else write
    if raw or not session.has_chat_template:
        if not raw:
            click.echo("memfit: this model has no chat template; continuing the text (--raw)", err=True)
        return session.generate(text, sampling, on_text, schema=schema)
    messages = [{"role": "system", "content": system}] if system else []
    return session.chat([*messages, {"role": "user", "content": text}], sampling, on_text, schema=schema)
