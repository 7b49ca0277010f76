"""The subprocess that asks the network, and works on the library; subprocess.py is its parent's side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.hub.library_work import delete, describe_models, download
from memfit.hub.remote_model import find_paths, list_choices
from memfit.processes.child import Parent, answer


def _paths(parent: Parent, name: str) -> list[str]:
    return list(map(str, find_paths(name, lambda text: parent.send("say", text=text))))


# A question → what answers it, with what stands behind it on the command line.
_ANSWERS: dict[str, Callable[..., Any]] = {
    "paths": _paths,
    "choices": lambda _, name: list_choices(name),
    "download": lambda parent, name: download(name, parent.send),
    "models": lambda _: describe_models(),
    "delete": lambda _, name, *kept: delete(name, tuple(map(Path, kept))),
}


def _find(parent: Parent) -> dict[str, Any]:
    question, *arguments = sys.argv[1:]
    return {"answer": _ANSWERS[question](parent, *arguments)}


if __name__ == "__main__":
    sys.exit(answer(_find))
