"""`memfit serve`: one model behind HTTP, for the clients of OpenAI, Anthropic, Ollama and llama-server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.fetch import ready_plan, yes_option
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import (
    WHOLE_TEXT,
    budget_options,
    choice,
    embedding_options,
    engine_options,
    hard_cap_option,
    placement_options,
    plan_option,
    sampling_options,
    serving_workload_options,
    take_plan,
    take_sampling,
    take_workload,
    together,
    verbose_option,
)
from memfit.errors import WrongValueError

if TYPE_CHECKING:
    from memfit.engines.session import Session
    from memfit.planner.plan import Plan
    from memfit.planner.request import Workload
    from memfit.server.settings import Settings

__all__ = ["command"]


_AT_ONCE = 4  # calls, where nobody says how many
_SCORED = 32  # tokens a pass whose probabilities calls may ask for

_server_options = together(
    click.option(
        "--host",
        multiple=True,
        metavar="ADDRESS",
        help="Where to listen; repeatable. Others than this machine's need --api-key.  [127.0.0.1]",
    ),
    click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one."),
    click.option(
        "--api-key",
        type=WHOLE_TEXT,
        multiple=True,
        metavar="KEY",
        help="What clients have to send; repeatable, any of them.",
    ),
    click.option("--insecure", is_flag=True, help="Let in whoever can reach it, without a key."),
    click.option(
        "--cors",
        multiple=True,
        metavar="ORIGINS",
        help="Pages that may use it: https://page.org, localhost for this machine's, * for all; with commas.",
    ),
    click.option("--alias", multiple=True, metavar="NAMES", help="What the model is called; with commas."),
    click.option("--tags", multiple=True, metavar="TAGS", help="Shown beside its name; with commas."),
    click.option("--chat-template-file", metavar="FILE", help="A jinja template instead of the model's own."),
    choice("--reasoning", ("on", "off"), "Have models that can reason before they answer do so."),
    choice("--reasoning-format", ("none",), "none leaves reasoning in the text; auto takes it apart."),
    click.option(
        "--kv-unified/--no-kv-unified",
        default=None,
        help="Let each sequence have all of the context, or an equal part of it, which is faster with many.  "
        "[all, unless --parallel is given]",
    ),
    click.option("--slots/--no-slots", default=True, help="Show who is answered at /slots."),
    click.option("--metrics/--no-metrics", default=True, help="Show counts at /metrics."),
    click.option("--log-prompts", is_flag=True, help="Let prompts stand in the log."),
)


@click.command("serve")
@click.argument("model", required=False)
@_server_options
@budget_options
@hard_cap_option
@serving_workload_options
@placement_options
@engine_options
@embedding_options
@click.option("--reranking", "--rerank", is_flag=True, help="The same as --embeddings --pooling rank.")
@plan_option
@sampling_options
@yes_option
@json_option
@verbose_option
def command(
    model: str | None,
    chat_template_file: str | None,
    hard_cap: bool,
    yes: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Serve MODEL over HTTP inside a memory budget, until Ctrl-C.

    Speaks the APIs of OpenAI, Anthropic, Ollama and llama-server. Only this machine can reach it, unless
    --host says otherwise; then an --api-key is needed. The options for sampling hold where a call does not
    say otherwise.
    """
    from memfit.api import load
    from memfit.cli.render import console, print_plan, speaker
    from memfit.server.listening import open_sockets, serve

    err = console(stderr=True)
    say = speaker(err)
    settings = _settings(options, verbose=verbose)
    make_plan = take_plan(model, options, say, verbose, workload_of=_take_workload, writes=False)
    settings = replace(settings, sampling=take_sampling(options))
    template = _template(chat_template_file)
    planned = ready_plan(make_plan, err, yes=yes)
    names = settings.names or (planned.spec.name,)
    settings = replace(settings, names=names)
    if not as_json:
        print_plan(planned, err)
    sockets = open_sockets(settings)
    context = click.get_current_context()

    def load_model(plan: Plan, on_progress: Callable[[float], None]) -> Session:
        session = load(
            plan,
            count_parent=True,
            hard_cap=hard_cap,
            on_progress=on_progress,
            verbose=verbose,
            chat_template=template,
            finds_format=True,
        )
        say(f"ready: {planned.spec.name} on {', '.join(addresses)}")
        if as_json and not context.obj.written:
            with context.scope(cleanup=False):  # this is another thread
                write_json({"addresses": addresses, "model": names[0], "plan": planned.to_json()})
                sys.stdout.flush()
        return session

    port = sockets[0].getsockname()[1]
    addresses = [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host in settings.hosts]
    say(f"loading; will listen on {', '.join(addresses)}")
    serve(planned, load_model, settings, sockets, say)


def _take_workload(options: dict[str, Any]) -> Workload:
    """As `take_workload`, with what a server needs."""
    sequences, unified = options["parallel"], options.pop("kv_unified")
    if sequences is None:
        options["parallel"] = _AT_ONCE
    if options.pop("reranking"):
        options |= {"embeddings": True, "pooling": "rank"}
    return replace(
        take_workload(options, grammars=True),
        kv_unified=sequences is None if unified is None else unified,
        outputs=_SCORED,
        serves=True,
    )


def _settings(options: dict[str, Any], *, verbose: bool) -> Settings:
    """Remove the server's options from a command's keyword arguments and build the value."""
    from memfit.server.settings import Settings

    names = [name for text in options.pop("alias") for name in text.split(",") if name]
    return Settings(
        hosts=tuple(one for text in options.pop("host") for one in text.split(",") if one) or ("127.0.0.1",),
        port=options.pop("port"),
        api_keys=tuple(options.pop("api_key")),
        insecure=options.pop("insecure"),
        cors=tuple(
            one.strip().rstrip("/") for text in options.pop("cors") for one in text.split(",") if one.strip()
        ),
        names=tuple(names),
        tags=tuple(one for text in options.pop("tags") for one in text.split(",") if one),
        shows_slots=options.pop("slots"),
        shows_metrics=options.pop("metrics"),
        logs_prompts=options.pop("log_prompts"),
        thinks={"on": True, "off": False, "auto": None}[options.pop("reasoning")],
        parses_reasoning=options.pop("reasoning_format") != "none",
        verbose=verbose,
    )


def _template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongValueError("chat_template_file", f" {file}: {error}") from None
