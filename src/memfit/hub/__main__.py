"""The subprocess that asks the network; subprocess.py is its parent's side."""

from __future__ import annotations

import sys
from typing import Any

from memfit.hub.remote_model import find_paths, list_choices
from memfit.processes.child import Parent, answer


def _find(parent: Parent) -> dict[str, Any]:
    question, name = sys.argv[1:]
    if question == "paths":
        paths = find_paths(name, lambda text: parent.send("say", text=text))
        return {"answer": [str(path) for path in paths]}
    return {"answer": list_choices(name)}


if __name__ == "__main__":
    sys.exit(answer(_find))
