"""glibc's allocator, told when to give memory back: torch takes every tensor on a CPU from it."""

from __future__ import annotations

import ctypes

from memfit.units import KIB, MIB

__all__ = ["keep_exact", "keep_fast", "trim"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_EXACT_BYTES = 64 * KIB
_FAST_BYTES = 32 * MIB  # the most that glibc takes


def keep_exact() -> None:
    """While loading: a tensor that is freed leaves no hole between those that stay."""
    _set(_EXACT_BYTES)


def keep_fast() -> None:
    """While running: the same few tensors come and go with every layer, and asking the kernel for each
    would cost more than computing it."""
    _set(_FAST_BYTES)


def trim() -> None:
    """Give back what passes have left."""
    ctypes.CDLL(None).malloc_trim(0)


def _set(size_bytes: int) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, size_bytes)
    libc.mallopt(_TRIM_THRESHOLD, 2 * size_bytes)
