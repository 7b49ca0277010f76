"""The worker's two numbers: what it says comes out again, and no other server is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.memory.lending import decode_lending, encode_lending, whole_pages
from memfit.units import GIB, MIB


def test_by_hand() -> None:
    free, total = encode_lending(4 * GIB + 1, 20 * MIB)
    assert (free, total) == (4 * GIB - 20 * MIB, 4 * GIB + 0x6D6)
    assert decode_lending(free, total) == (4 * GIB, 20 * MIB)


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_what_is_said_comes_out_again(budget: int, peak: int) -> None:
    free, total = encode_lending(budget, peak)
    assert 0 <= free <= total
    assert decode_lending(free, total) == (whole_pages(budget), min(peak, whole_pages(budget)))


def test_a_budget_is_rounded_down() -> None:
    assert [whole_pages(size) for size in (0, 4095, 4096, 8191)] == [0, 0, 4096, 4096]


@pytest.mark.parametrize(
    ("free", "total"),
    [
        (24 * GIB, 24 * GIB),  # llama.cpp on a CPU: all of it is free
        (0, 0),
        (1, 0x6D5),
        (4 * GIB + 1, 4 * GIB + 0x6D6),  # more free than there is
        (0, 4 * GIB + 0x6D7),
    ],
)
def test_other_servers_are_not_taken_for_ours(free: int, total: int) -> None:
    assert decode_lending(free, total) is None
