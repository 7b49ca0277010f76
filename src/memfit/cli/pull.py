"""`memfit pull MODEL`: download a model, whole and verified, and say where it lies.

Shows the plan and the progress on stderr. Which files are a model's, and where they go, the hub room knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfit.cli.json_output import json_option, write_json
from memfit.cli.progress import progress_of_bytes
from memfit.cli.render import console, speaker
from memfit.errors import UsageError, readable
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.hub.remote_files import RemoteModel

__all__ = ["command"]


@click.command("pull")
@click.argument("model")
@json_option
def command(model: str, as_json: bool) -> None:
    """Download MODEL: hf:org/repo, hf:org/repo:Q4_K_M, hf:org/repo/file.gguf or https://….

    Interrupted, it goes on from there when it is run again. Prints the path of the model's first file.
    """
    from memfit.hub.cache_layout import model_root
    from memfit.hub.download import missing_bytes, pull
    from memfit.hub.local_model import is_remote_name
    from memfit.hub.name_suggestions import hub_name
    from memfit.hub.repository import find_remote

    if not is_remote_name(model):
        meant = hub_name(model)
        raise UsageError(
            f"{readable(model, kept='')}: pull takes hf:org/repo, hf:org/repo:Q4_K_M or https://…/file.gguf"
            + (f"; this one is {meant}" if meant else "")
        )
    remote = find_remote(model)
    missing = missing_bytes(remote)
    err = console(stderr=True)
    say = speaker(err)
    for line in _plan(remote, missing, model_root(remote)):
        say(line)
    with progress_of_bytes(err, say) as show:
        paths = pull(remote, on_progress=show("downloading"), on_check=show("checking"), say=say)
    if not as_json:
        click.echo(paths[0])
        return
    facts = {
        "model": model,
        "revision": remote.revision,
        "size_bytes": sum(path.stat().st_size for path in paths),
        "downloaded_bytes": missing,
        "files": [
            {"name": file.name, "path": str(path), "size_bytes": path.stat().st_size}
            for file, path in zip(remote.files, paths, strict=True)
        ],
    }
    write_json(facts)


def _plan(remote: RemoteModel, missing: int, folder: Path) -> Iterator[str]:
    count = "1 file" if len(remote.files) == 1 else f"{len(remote.files)} files"
    yield f"{remote.source}: {count}, {format_bytes(remote.size_bytes)}, in {folder}"
    for file in remote.files:
        yield f"  {file.name}  {format_bytes(file.size_bytes)}"
    if missing == 0:
        yield "all of it is here"
    elif missing < remote.size_bytes:
        yield f"{format_bytes(remote.size_bytes - missing)} of it are here"
