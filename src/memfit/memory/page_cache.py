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


class _Range(ctypes.Structure):
    """The kernel's `cachestat_range`; a length of 0 reaches to the end of the file."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    """The kernel's `cachestat`, in pages."""

    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def cached_bytes(paths: Sequence[Path]) -> int | None:
    """Bytes of these files in the page cache; None where the kernel does not say.

    It says since Linux 6.5, to whoever owns the file or may write it. Looking by reading instead, even
    with RWF_NOWAIT, would bring in the very pages that it looks for.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    counts, pages = _Counts(), 0
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            whole = _Range(0, 0)
            if libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(counts), 0) != 0:
                return None
        pages += counts.cached
    return pages * os.sysconf("SC_PAGESIZE")


def drop_cached(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget these files' clean pages that nobody maps."""
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
