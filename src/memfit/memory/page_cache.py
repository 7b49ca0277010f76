"""How much of a file lies in the kernel's page cache, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cached_bytes", "drop_cached"]

_CACHESTAT = 451  # the same number on every architecture; Linux 6.5


def cached_bytes(paths: Sequence[Path]) -> int | None:
    """Bytes of these files in the page cache; None where the kernel does not say.

    It says since Linux 6.5, to whoever owns the file or may write it. Looking by reading instead, even
    with RWF_NOWAIT, would bring in the very pages that it looks for.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel's `cachestat_range`, of which a length of 0 reaches to the end of the file, and its
    # `cachestat`, in pages: cached, dirty, in writeback, evicted, recently evicted.
    whole, counts, pages = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)(), 0
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                if libc.syscall(_CACHESTAT, file.fileno(), whole, counts, 0):
                    return None
        except OSError:
            return None
        pages += counts[0]
    return pages * os.sysconf("SC_PAGESIZE")


def drop_cached(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget these files' clean pages that nobody maps."""
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
