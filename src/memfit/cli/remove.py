"""`memfit remove MODEL`: delete a downloaded model, after asking.

Deletes nothing but downloads: a path that the user made is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import UsageError, readable
from memfit.hub import library
from memfit.hub.local_model import is_remote_name
from memfit.hub.name_suggestions import hub_name
from memfit.units import format_bytes

__all__ = ["command"]


@click.command("remove")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(model: str, yes: bool, as_json: bool) -> None:
    """Delete the downloaded MODEL, as `memfit models` names it; hf:org/repo means all of that repository.

    Content that another model or revision also uses stays.
    """
    if not is_remote_name(model):
        meant = None if _is_here(model) else hub_name(model)
        raise UsageError(
            f"{readable(model, kept='')}: remove takes a name that memfit models lists; delete other files "
            "yourself" + (f"; on the hub it is {meant}" if meant else "")
        )
    chosen = library.matching(model)
    for one in chosen:
        what = "interrupted download" if one.kind == "partial" else one.kind
        shown = readable(one.name, kept="")
        click.echo(f"memfit: {shown}  {format_bytes(one.size_bytes)}  {what}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is here to ask; add --yes")
        if not click.confirm("Delete it?" if len(chosen) == 1 else "Delete all of these?", err=True):
            click.echo("memfit: nothing was deleted", err=True)
            if as_json:
                write_json({"model": model, "removed": [], "freed_bytes": 0})
            return
    freed = library.remove(model)
    if as_json:
        removed = [one.name for one in chosen]
        write_json({"model": model, "removed": removed, "freed_bytes": freed})
    else:
        click.echo(f"freed {format_bytes(freed)}")


def _is_here(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # its name may be too long
        return False
