"""How a memfit worker tells its budget and its peak to a client, within llama.cpp's RPC protocol.

The protocol's one question about memory is answered by two numbers, free and total bytes of a device. A
plain server answers the machine's RAM or the card's memory, in whole pages. A memfit worker answers its
budget in whole pages plus a mark in the bits that a page leaves over, and as free what its peak leaves of
the budget. So a client that knows nothing of it still reads sensible numbers.
"""

from __future__ import annotations

from memfit.units import KIB

__all__ = ["LATER_BYTES", "decode_lending", "encode_lending", "whole_pages"]

# Of a worker that computes, beyond what it held while idle and what it is asked for: pages of the kernels'
# code (measured: 0.8 MiB), a stack.
LATER_BYTES = 1280 * KIB

_PAGE_BYTES = 4096
_MARK = 0x6D6  # below a page


def whole_pages(size_bytes: int) -> int:
    """Rounded down: a budget must not grow."""
    return size_bytes // _PAGE_BYTES * _PAGE_BYTES


def encode_lending(budget_bytes: int, peak_bytes: int) -> tuple[int, int]:
    """Free and total bytes that say a budget and the most that the server has held in this session.

    A peak above the budget reads as the budget: free cannot be less than nothing.
    """
    budget = whole_pages(budget_bytes)
    return max(0, budget - peak_bytes), budget + _MARK


def decode_lending(free_bytes: int, total_bytes: int) -> tuple[int, int] | None:
    """Budget and peak bytes of a memfit worker, or None where another server answered."""
    budget = total_bytes - _MARK
    if budget < 0 or budget % _PAGE_BYTES or free_bytes > budget:
        return None
    return budget, budget - free_bytes
