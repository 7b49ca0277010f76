"""`memfit models`: the models on this disk that need no path, by the name that other commands take."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import ModelError, readable
from memfit.hub.library import LocalModel, local_models
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.planner.loss import Loss

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
    if not model.complete:
        return f"{text}, incomplete"
    loss = _loss(model)
    return f"{text}, loses {loss.in_words}" if loss and loss.mean_kl else text


def _loss(model: LocalModel) -> Loss | None:
    """Of a GGUF model: what was measured of it, or is expected of its type."""
    if model.kind != "gguf" or not model.complete:
        return None
    from memfit.engines.fingerprinting import file_marks
    from memfit.headers.gguf_model import read_model
    from memfit.known_losses import loss_of

    try:
        spec = read_model(model.paths[0], source=model.name)
        return loss_of(spec, file_marks(spec))
    except ModelError:
        return None  # whoever uses it says why


def _facts(model: LocalModel) -> dict[str, object]:
    return {
        "model": model.name,
        "kind": model.kind,
        "complete": model.complete,
        "size_bytes": model.size_bytes,
        "last_used": _time(model.last_used),
        "loss": (loss := _loss(model)) and asdict(loss),
        "paths": [str(path) for path in model.paths],
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="seconds")
