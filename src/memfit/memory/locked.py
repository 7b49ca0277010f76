"""Keeps memory from going to swap, as far as this user may lock it."""

from __future__ import annotations

import ctypes
import mmap
import resource
from pathlib import Path

from memfit.hardware.cgroup import kernel_text
from memfit.memory.process_memory import process_status

__all__ = ["lock_memory"]

_SWAPS = Path("/proc/swaps")


def lock_memory(address: int, size_bytes: int) -> int:
    """Lock as much of a piece of memory as may be; returns the locked bytes, 0 where there is no swap.

    RLIMIT_MEMLOCK is raised as far as it goes without privilege. Source: mlock(2), getrlimit(2).
    """
    if len(kernel_text(_SWAPS).splitlines()) < 2:  # nothing below the heading
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    room = size_bytes if hard == resource.RLIM_INFINITY else hard - process_status().locked_bytes
    # The whole first: for the privileged there is no limit.
    for size in (size_bytes, min(size_bytes, room) // mmap.PAGESIZE * mmap.PAGESIZE):
        if size > 0 and ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0:
            return size
    return 0
