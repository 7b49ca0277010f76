"""Where memfit keeps what it can make or fetch again."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "read_cached", "write_cached"]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/memfit`, by default `~/.cache/memfit`. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"


def read_cached(path: Path, key: str) -> dict[str, Any]:
    """What `write_cached` left there under this key; nothing where that is not so."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return dict(stored["values"])
    return {}


def write_cached(path: Path, key: str, values: dict[str, Any]) -> None:
    """Atomically: two memfits may measure at once, and one may be killed in the middle."""
    with contextlib.suppress(OSError):  # a read-only home costs measuring again, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"key": key, "values": values}, file)
        Path(file.name).replace(path)
