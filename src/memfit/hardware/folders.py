"""The cache folder: where memfit keeps what it can make or fetch again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "scratch_folder"]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/memfit`, by default `~/.cache/memfit`. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"


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
