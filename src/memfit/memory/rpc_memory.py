"""How a memfit rpc-server tells a client its budget, peak and threads, within llama.cpp's RPC protocol.

The protocol has a single question about memory, answered by two numbers: a device's free and total bytes. A
plain server answers the machine's RAM or the GPU's memory, in whole pages. A memfit rpc-server answers as
total its budget in whole pages, plus a mark in the bits below a page; as free, the budget less its peak, plus
its number of threads in those bits. A client that does not know this still reads sensible numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from memfit.units import KIB

__all__ = ["LATER_BYTES", "RpcMemory", "decode_rpc_memory", "encode_rpc_memory", "whole_pages"]

# Of an RPC server that computes, beyond what it held while idle and what it is asked for: pages of the
# kernels' code (measured: 0.8 to 1.1 MiB), a stack.
LATER_BYTES = 1280 * KIB
_PAGE_BYTES = 4096
_MARK = 0x6D6  # below a page; more than the engine allows threads


class RpcMemory(NamedTuple):
    budget_bytes: int
    peak_bytes: int  # the most that the server has held in this session
    threads: int  # that it computes with, on a CPU; 0: on a GPU


def whole_pages(size_bytes: int) -> int:
    """Rounded down: a budget must not grow."""
    return size_bytes // _PAGE_BYTES * _PAGE_BYTES


def encode_rpc_memory(memory: RpcMemory) -> tuple[int, int]:
    """Free and total bytes that say this.

    A peak above the budget reads as the budget: free cannot be less than nothing.
    """
    budget = whole_pages(memory.budget_bytes)
    return whole_pages(max(0, budget - memory.peak_bytes)) + memory.threads, budget + _MARK


def decode_rpc_memory(free_bytes: int, total_bytes: int) -> RpcMemory | None:
    """What a memfit rpc-server said, its peak in whole pages; None where another server answered."""
    budget, free = total_bytes - _MARK, whole_pages(free_bytes)
    if budget < 0 or budget % _PAGE_BYTES or free > budget:
        return None
    return RpcMemory(budget_bytes=budget, peak_bytes=budget - free, threads=free_bytes - free)
