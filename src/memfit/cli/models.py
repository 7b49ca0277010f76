"""`memfit models`: the models on this disk that need no path, by the name that other commands take."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import readable
from memfit.hub.library import LocalModel, local_models
from memfit.units import format_bytes

__all__ = ["command"]


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the downloaded models: those of the Hugging Face cache, and those that came from URLs."""
    models = local_models()
    if as_json:
        write_json({"models": [_facts(one) for one in models]})
        return
    if not models:
        click.echo("no models yet; memfit pull hf:org/repo downloads one", err=True)
    width = max((len(_name(one)) for one in models), default=0)
    for one in models:
        click.echo(f"{_name(one):<{width}}  {format_bytes(one.size_bytes):>11}  {_remark(one)}")


def _name(model: LocalModel) -> str:
    return readable(model.name, kept="")


def _remark(model: LocalModel) -> str:
    if model.kind == "partial":
        return "interrupted download; memfit pull goes on, memfit remove deletes it"
    used = _time(model.last_used)
    text = f"{model.kind}, last used {used[:10]}" if used else model.kind
    return text if model.complete else f"{text}, incomplete"


def _facts(model: LocalModel) -> dict[str, object]:
    return {
        "model": model.name,
        "kind": model.kind,
        "complete": model.complete,
        "size_bytes": model.size_bytes,
        "last_used": _time(model.last_used),
        "paths": [str(path) for path in model.paths],
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="seconds")
