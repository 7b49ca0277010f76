"""glibc's allocator, told when to give memory back.

By itself it raises its thresholds with what is freed, keeps up to 64 MiB, and what of that stays depends on
where the heap happens to begin. So processes that compute start exact, by their environment.
"""

from __future__ import annotations

import ctypes

from memfit.units import KIB

__all__ = ["EXACT", "keep_fast", "trim"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_EXACT_BYTES = 64 * KIB
# As variables of the environment, for a process to start with: what is freed while it loads leaves no hole.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(_EXACT_BYTES), "MALLOC_TRIM_THRESHOLD_": str(2 * _EXACT_BYTES)}


def keep_fast(size_bytes: int) -> None:
    """While running: the same few buffers of up to `size_bytes`, at most 32 MiB, come and go with every
    token or layer, and asking the kernel for each would cost more than computing it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, size_bytes)
    libc.mallopt(_TRIM_THRESHOLD, 2 * size_bytes)


def trim() -> None:
    """Give back what lies free between what is used."""
    ctypes.CDLL(None).malloc_trim(0)
