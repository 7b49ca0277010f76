"""Suggestions where what fits is a sum by hand: 10 MiB, and 4 KiB per token and sequence as f16.

So 26 MiB for 4,096 tokens; 18 with q8_0, taken as half of it, and 14 with q4_0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.suggest import suggestions
from memfit.units import GIB, KIB, MIB

_SMALLEST = LlamaConfig(
    paths=(Path("/models/toy.gguf"),),
    context=4096,
    parallel=1,
    kv_type="f16",
    ubatch=32,
    threads=4,
    repack=False,
    load_mode="mmap",
)


def _needs(one: LlamaConfig) -> int:
    token = {"f16": 4, "q8_0": 2, "q4_0": 1}[one.kv_type] * KIB
    return 10 * MIB + one.context * one.parallel * token


def _suggested(one: LlamaConfig, limit_mib: int, free: int = GIB, *, room: int = 0) -> list[str]:
    found = suggestions(
        one,
        lambda changed, ram: _needs(changed) + room <= ram,
        needs_bytes=_needs(one),
        room_bytes=room,
        limit_bytes=limit_mib * MIB,
        free_bytes=free,
    )
    return list(found)


def test_every_option_by_hand() -> None:
    assert _suggested(_SMALLEST, 20) == ["--ctx 2560", "--kv-type q8_0", "--ram 32MiB"]
    assert _suggested(_SMALLEST, 17) == ["--ctx 1792", "--kv-type q4_0", "--ram 32MiB"]
    two = replace(_SMALLEST, parallel=2)  # 42 MiB
    assert _suggested(two, 26) == ["--ctx 2048", "--kv-type q8_0", "--parallel 1", "--ram 48MiB"]
    assert _suggested(two, 25) == ["--ctx 1792", "--kv-type q4_0", "--ram 48MiB"]


def test_a_type_more_exact_than_the_one_asked_for_is_not_suggested() -> None:
    assert _suggested(replace(_SMALLEST, kv_type="q4_0"), 13) == ["--ctx 3072", "--ram 16MiB"]


def test_a_context_that_does_not_get_shorter_is_not_suggested() -> None:
    assert _suggested(replace(_SMALLEST, context=256), 10) == ["--ram 16MiB"]


@pytest.mark.parametrize(
    ("free", "expected"), [(32, ["--ram 32MiB"]), (27, ["--ram 27MiB"]), (26, ["--ram 26MiB"]), (25, [])]
)
def test_no_more_ram_than_is_free(free: int, expected: list[str]) -> None:
    """In whole MiB, and in steps of 16 where there is room for them."""
    assert _suggested(_SMALLEST, 20, free * MIB + 5)[2:] == expected


def test_room_is_wanted_on_top() -> None:
    assert _suggested(_SMALLEST, 24, room=6 * MIB)[-1] == "--ram 32MiB"
    assert _suggested(_SMALLEST, 24, room=6 * MIB + 1)[-1] == "--ram 48MiB"


def test_where_the_larger_budget_needs_more_a_larger_one_yet_is_tried() -> None:
    """Another placement is found there, which may need more of it."""
    tried: list[int] = []

    def fits(one: LlamaConfig, ram: int) -> bool:
        tried.append(ram)
        return ram >= 1100 * MIB

    found = suggestions(
        _SMALLEST, fits, needs_bytes=1000 * MIB, room_bytes=0, limit_bytes=MIB, free_bytes=8 * GIB
    )
    assert list(found) == ["--ram 1104MiB"]
    assert [ram // MIB for ram in tried if ram > MIB] == [1008, 1024, 1104]


def test_a_smaller_model_where_nothing_else_helps() -> None:
    assert _suggested(_SMALLEST, 9, 20 * MIB) == ["a smaller quantization of this model"]
    assert "a smaller quantization of this model" not in _suggested(_SMALLEST, 20, 20 * MIB)
