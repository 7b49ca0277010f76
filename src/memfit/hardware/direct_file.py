"""A file read past the page cache, so that only its reader's own buffers take memory."""

from __future__ import annotations

import os
from pathlib import Path

from memfit.hardware.disk_speed import go_direct
from memfit.units import MIB

__all__ = ["READ_BYTES", "DirectFile", "StreamError"]

READ_BYTES = 8 * MIB  # at once: larger reads gain nothing, and each may have to be waited for


class StreamError(Exception):
    """Weights could not be read; the text says of which file, and why."""


class DirectFile:
    """A model file, read past the page cache; where the filesystem refuses that, pages are dropped later."""

    def __init__(self, path: Path, *, cached: bool = False) -> None:
        """What lies in the page cache already (`cached`) is read from there, and stays."""
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._file)
        self._version = (status.st_size, status.st_mtime_ns)
        self.is_direct = not cached and go_direct(self._file)
        self._drops = not cached and not self.is_direct
        if self._drops:  # or the kernel reads on by itself, which nobody drops again
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into`, page-aligned like `offset`, as far as the file goes.

        Raises:
            StreamError: the disk fails, or the file is no longer what it was.
        """
        try:
            status = os.fstat(self._file)
            if (status.st_size, status.st_mtime_ns) != self._version:
                raise StreamError(f"{self.path} was changed while the model ran")
            end = min(len(into), status.st_size - offset)
            done = 0
            while done < end:
                count = os.preadv(self._file, [into[done : done + READ_BYTES]], offset + done)
                if count == 0:
                    raise StreamError(f"{self.path} became shorter while the model ran")
                if self._drops:
                    os.posix_fadvise(self._file, offset + done, count, os.POSIX_FADV_DONTNEED)
                done += count
        except OSError as error:
            raise StreamError(f"cannot read {self.path}: {error.strerror}") from None
