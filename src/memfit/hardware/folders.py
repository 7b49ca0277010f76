"""The cache folder: where memfit keeps what it can make or fetch again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "read_cached", "scratch_folder", "write_cached"]


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


@contextlib.contextmanager
def scratch_folder(where: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `where`, removed at the end unless it was moved; and so are those of a memfit that was
    killed."""
    for left in where.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
