"""A model on a network: its files where they were downloaded, else its headers; a repository's quantizations.

It imports huggingface_hub, so only the subprocess calls it (subprocess.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.errors import ModelError
from memfit.hub.header_only import fetch_headers
from memfit.hub.library import find_local, local_files
from memfit.hub.remote_files import choose, clash
from memfit.hub.repository import find_remote, list_repository, repositories_of

__all__ = ["find_paths", "list_choices"]

_MOST_SMALLER = 5
_SIZE = re.compile(r"(?<![A-Za-z0-9])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])")  # "7B", "0.5B", "135M"


def find_paths(model: str, say: Callable[[str], None] | None = None) -> tuple[Path, ...]:
    """The model's files: GGUF in shard order, or a checkpoint's with its config.json first.

    Raises:
        UsageError, ModelError: as `find_remote` and `fetch_headers`.
    """
    try:
        remote = find_remote(model)
    except ModelError:  # no network, perhaps
        if here := find_local(model):
            return here
        raise
    return local_files(remote) or fetch_headers(remote, say)


def list_choices(repo: str) -> dict[str, Any]:
    """A repository's quantizations, the largest first, and smaller models of its owner; as JSON.

    The `name` of each is its label, or its file where different models share labels. `clash` is the message
    for an `hf:org/repo` that means several models, else null.
    """
    found = list_repository(repo)
    chosen = choose(found.variants, None)
    labels = {one.label.upper() for one in found.variants}
    shared = any(len(choose(found.variants, label)) > 1 for label in labels)
    return {
        "variants": [
            {
                "label": one.label,
                "name": one.files[0].name if shared else one.label,
                "model": f"hf:{repo}/{one.files[0].name}",
                "size_bytes": one.size_bytes,
            }
            for one in found.variants
        ],
        "clash": clash(repo, chosen) if len(chosen) > 1 else None,
        "smaller_models": _smaller_models(repo) if len(found.variants) > 1 else [],
    }


def _smaller_models(repo: str) -> list[str]:
    """Repositories of the same owner whose names differ only in a smaller number of parameters."""
    owner, _, name = repo.partition("/")
    match = _SIZE.search(name)
    if not match:
        return []
    family, ending = name[: match.start()], name.rpartition("-")[2]
    found = []
    for other in repositories_of(owner, family):
        other_name = other.partition("/")[2]
        size = _SIZE.match(other_name, len(family)) if other_name.startswith(family) else None
        # A mixture of experts says more after its size, "30B-A3B": only the last part has to be the same.
        if size and _parameters(size) < _parameters(match) and other_name.rpartition("-")[2] == ending:
            found.append((_parameters(size), f"hf:{other}"))
    return [name for _, name in sorted(found, reverse=True)[:_MOST_SMALLER]]


def _parameters(size: re.Match[str]) -> float:
    return float(size[1]) * (1e9 if size[2] in "bB" else 1e6)
