"""What a user may ask for: every limit, and that nonsense names the option it came from."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import make_ram
from hypothesis import given
from hypothesis import strategies as st

from memfit.engines.protocol import Sampling
from memfit.errors import UsageError
from memfit.planner.request import RESERVE_BYTES, Budget, Workload
from memfit.units import GIB


@pytest.mark.parametrize(
    ("field", "option", "least", "most"),
    [
        ("context", "--ctx", 1, 2**31 - 1),
        ("parallel", "--parallel", 1, 256),
        ("threads", "--threads", 1, 512),
        ("prompt_tokens", "prompt tokens", 1, 2**31 - 1),
        ("generated_tokens", "generated tokens", 1, 2**31 - 1),
    ],
)
def test_the_workloads_limits(field: str, option: str, least: int, most: int) -> None:
    for allowed in (least, most):
        assert getattr(Workload(**{field: allowed}), field) == allowed
    for refused in (least - 1, most + 1, -(10**30), 10**30):
        with pytest.raises(
            UsageError, match=f"^{option} is {refused}; it must be between {least} and {most}"
        ):
            Workload(**{field: refused})


@pytest.mark.parametrize("kv_type", ["auto", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("repack", ["auto", "on", "off"])
def test_the_workloads_words(kv_type: str, repack: str) -> None:
    workload = Workload(kv_type=kv_type, repack=repack)
    assert (workload.kv_type, workload.repack) == (kv_type, repack)


@pytest.mark.parametrize("word", ["", "F16", "q5_0", "f16 ", "none"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match=r"--kv-type is .*auto, f16, q8_0, q4_0"):
        Workload(kv_type=word)
    with pytest.raises(UsageError, match=r"--repack is .*auto, on or off"):
        Workload(repack=word)


def test_the_defaults() -> None:
    workload = Workload()
    assert (workload.context, workload.threads) == (None, None)
    assert (workload.parallel, workload.kv_type, workload.repack) == (1, "auto", "auto")


@pytest.mark.parametrize(
    ("ram", "size_bytes"),
    [("8GiB", 8_589_934_592), ("11.5GB", 11_500_000_000), (1024, 1024), ("90%", 9_000), ("100%", 10_000)],
)
def test_a_budget_in_bytes(ram: str | int, size_bytes: int) -> None:
    assert Budget(ram=ram).ram_bytes(make_ram(10_000)) == size_bytes


def test_no_budget_leaves_the_reserve() -> None:
    assert RESERVE_BYTES == 536_870_912
    assert Budget().ram_bytes(make_ram(4 * GIB)) == 4 * GIB - 536_870_912
    assert Budget().ram_bytes(make_ram(1000)) == 1  # nothing fits, which the plan then says


@pytest.mark.parametrize("ram", ["", "lots", "0", 0, -1, "101%", "5Gi", 2**63, True])
def test_a_nonsense_budget_names_its_option(ram: Any) -> None:
    with pytest.raises(UsageError, match=r"^--ram: ") as caught:
        Budget(ram=ram).ram_bytes(make_ram(GIB))
    assert str(ram) in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_a_usage_error(text: str) -> None:
    try:
        assert Budget(ram=text).ram_bytes(make_ram(GIB)) > 0
    except UsageError as error:
        assert str(error).startswith("--ram: ")


@pytest.mark.parametrize(
    ("field", "option", "allowed", "refused"),
    [
        ("max_tokens", "--max-tokens", [None, 1], [0, -1]),
        ("temperature", "--temperature", [0, 0.8, 100], [-0.1, 100.1, float("nan"), float("inf")]),
        ("top_k", "--top-k", [0, 40], [-1]),
        ("top_p", "--top-p", [0.01, 1], [0, -1, 1.01, float("nan")]),
        ("min_p", "--min-p", [0, 1], [-0.01, 1.01, float("nan")]),
        ("repeat_penalty", "--repeat-penalty", [0.1, 1, 100], [0, -1, 101, float("nan")]),
        ("seed", "--seed", [0, 2**32 - 1], [-1, 2**32]),
    ],
)
def test_the_samplings_limits(field: str, option: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        assert getattr(Sampling(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(UsageError, match=f"^{option} is {value}; it must be "):
            Sampling(**{field: value})


def test_a_top_k_beyond_32_bits_is_refused() -> None:
    with pytest.raises(UsageError):
        Sampling(top_k=2**32 + 1)  # would be 1: greedy
