"""An RPC server's two numbers: what it says comes out again, and no other server is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.memory.rpc_memory import RpcMemory, decode_rpc_memory, encode_rpc_memory, whole_pages
from memfit.units import GIB, MIB


def test_by_hand() -> None:
    free, total = encode_rpc_memory(RpcMemory(budget_bytes=4 * GIB + 1, peak_bytes=20 * MIB, threads=6))
    assert (free, total) == (4 * GIB - 20 * MIB + 6, 4 * GIB + 0x6D6)
    assert decode_rpc_memory(free, total) == (4 * GIB, 20 * MIB, 6)


@given(st.integers(0, 2**62), st.integers(0, 2**50), st.integers(0, 512))
def test_what_is_said_comes_out_again(budget: int, peak_pages: int, threads: int) -> None:
    peak = 4096 * peak_pages
    free, total = encode_rpc_memory(RpcMemory(budget_bytes=budget, peak_bytes=peak, threads=threads))
    assert 0 <= free <= total
    assert decode_rpc_memory(free, total) == (whole_pages(budget), min(peak, whole_pages(budget)), threads)


def test_a_peak_is_rounded_up() -> None:
    """A GPU's driver counts in any unit."""
    free, total = encode_rpc_memory(RpcMemory(budget_bytes=GIB, peak_bytes=MIB + 1, threads=0))
    assert decode_rpc_memory(free, total) == (GIB, MIB + 4096, 0)


def test_a_budget_is_rounded_down() -> None:
    assert [whole_pages(size) for size in (0, 4095, 4096, 8191)] == [0, 0, 4096, 4096]


@pytest.mark.parametrize(
    ("free", "total"),
    [
        (24 * GIB, 24 * GIB),  # llama.cpp on a CPU: all of it is free
        (0, 0),
        (1, 0x6D5),
        (4 * GIB + 4096, 4 * GIB + 0x6D6),  # more free than there is
        (0, 4 * GIB + 0x6D7),
    ],
)
def test_other_servers_are_not_taken_for_ours(free: int, total: int) -> None:
    assert decode_rpc_memory(free, total) is None
