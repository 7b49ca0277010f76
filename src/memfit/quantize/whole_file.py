"""An output file that is there whole or not at all: written under another name, renamed once it is done."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memfit.errors import OutputError, UsageError
from memfit.units import format_bytes

__all__ = ["require_free", "start_writing", "whole_file"]


@contextmanager
def whole_file(output: Path, sources: Sequence[Path], size_bytes: int, *, overwrite: bool) -> Iterator[Path]:
    """Where to write `output`, of `size_bytes`; it has its name once the block is left without an error.

    A link is followed. Raises:
        UsageError: it is one of `sources`, which are still read; or it is there, and is not to be replaced.
        OutputError: there is no room for it, or no way to write it; or somebody is writing it now.
    """
    require_free(output, sources, overwrite=overwrite)
    output = output.resolve()
    partial = _partial(output)
    try:
        # A link or a pipe of that name is a stranger's: not followed, and not waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(partial, flags, 0o666)
    except OSError as error:
        raise OutputError(f"{partial}: {error.strerror}") from None
    try:
        _lock(descriptor, partial, output)
        try:
            os.ftruncate(descriptor, 0)
            free = shutil.disk_usage(output.parent).free
            if free < size_bytes:
                raise OutputError(
                    f"{output} takes {format_bytes(size_bytes)}, and its disk has {format_bytes(free)} left; "
                    f"short {format_bytes(size_bytes - free)}"
                )
            yield partial
            os.fsync(descriptor)
            partial.replace(output)
        except BaseException as error:
            partial.unlink(missing_ok=True)  # the lock is held: it is ours
            if isinstance(error, OSError):
                raise OutputError(f"{output}: {error.strerror}") from None
            raise
    finally:
        os.close(descriptor)


def require_free(output: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """For those who work long before they write. Errors as in `whole_file`."""
    try:
        target = output.resolve()
    except (OSError, RuntimeError):
        raise OutputError(f"{output}: a link that leads to itself") from None
    try:
        is_there = target.exists()
    except OSError as error:
        kind = UsageError if error.errno == errno.ENAMETOOLONG else OutputError
        raise kind(f"{output}: {error.strerror}") from None
    for one, name in ((target, output), (_partial(target), _partial(output))):
        if any(_is_same(one, source) for source in sources):
            raise UsageError(f"{name} is read while this is written; choose another name")
    if target.is_dir():
        raise UsageError(f"{output} is a folder; the output is a file")
    if is_there and not target.is_file():
        raise UsageError(f"{output} is no plain file, so it is not replaced; choose another name")
    if is_there and not overwrite:
        raise UsageError(f"{output} is there already; choose another name, or --overwrite replaces it")
    if not target.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: nothing can be written to {target.parent}")


def start_writing(path: Path) -> None:
    """Have the disk write what is there so far: the wait for the rest at the end is short."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _partial(output: Path) -> Path:
    return output.parent / f"{output.name}.partial"


def _is_same(target: Path, source: Path) -> bool:
    try:
        return target.samefile(source)
    except OSError:  # no file is there, or none can be
        return False


def _lock(descriptor: int, partial: Path, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have finished in between: then this is their output.
        is_free = os.path.samestat(os.fstat(descriptor), partial.stat())
    except OSError:
        is_free = False
    if not is_free:
        raise OutputError(f"{output} is being written by another memfit")
