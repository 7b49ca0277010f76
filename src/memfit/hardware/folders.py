"""The cache folder: where memfit keeps what it can make or fetch again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "fresh_folder", "scratch_folder", "sync_folder"]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/memfit`, by default `~/.cache/memfit`. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"


@contextlib.contextmanager
def scratch_folder(where: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `where`, removed at the end unless it was moved, as are those of killed memfits."""
    for left in where.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_folder(place: Path) -> Iterator[Path]:
    """A folder that gets its name, `place`, when it is done."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place.parent, ".new-") as folder:
        yield folder
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # else another memfit was first, with the same
                raise


def sync_folder(folder: Path) -> None:
    """Make the names of the files in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
