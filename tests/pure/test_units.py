"""Sizes as text, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.units import format_bytes, format_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1024", 1024),
        ("17B", 17),
        ("1KiB", 1_024),
        ("800MiB", 838_860_800),
        ("11.5GiB", 12_348_030_976),
        ("11.5GB", 11_500_000_000),
        ("2 TiB", 2_199_023_255_552),
        ("3kb", 3_000),
        ("11.5G", 12_348_030_976),  # binary, as llama.cpp and Docker read a letter alone
        ("12g", 12_884_901_888),
        ("8192M", 8_589_934_592),
        ("64k", 65_536),
        ("2T", 2_199_023_255_552),
        ("8Gi", 8_589_934_592),  # Kubernetes' spelling
        (" 1.5gib ", 1_610_612_736),
        ("0.0015KiB", 1),  # 1.536 bytes: a budget must not grow by rounding
        ("8388607TiB", 9_223_370_937_343_148_032),  # the last whole TiB below 2^63
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a size"),
        (" ", "not a size"),
        ("-1", "not a size"),
        ("+1GiB", "not a size"),
        ("1 0", "not a size"),
        ("1e400", "not a size"),
        ("nan", "not a size"),
        ("inf", "not a size"),
        ("GiB", "not a size"),
        (".5GiB", "not a size"),
        ("1.GiB", "not a size"),
        ("1,5GiB", "not a size"),
        ("0x10", "not a size"),
        ("1_000", "not a size"),
        ("1GiB\x00", "not a size"),
        ("٣GiB", "not a size"),  # an Arabic three
        ("３GiB", "not a size"),  # noqa: RUF001 - a full-width three
        ("12GiBB", "unknown unit 'GiBB'"),
        ("-5GiB", "not a size; a size must be above zero"),
        ("12Gib/s", "not a size"),
        ("1e4", "not a size"),
        ("0", "above zero"),
        ("0GiB", "above zero"),
        ("0.5", "above zero"),
        ("8388608TiB", "larger than any machine"),  # 2^63 exactly
        ("9999999999999999999GiB", "not a size"),
        ("999999999999999999GiB", "larger than any machine"),
    ],
)
def test_nonsense_is_refused_and_repeated(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("11,5GiB", "write 11.5GiB"),
        (".5GiB", "write 0.5GiB"),
        (",5g", "write 0.5g"),
        ("1.GiB", "write 1GiB"),
        ("+8 GiB", "write 8GiB"),
        ("1_000", "write 1000"),
        ("1e9", "write 1000000000"),
        ("1.5e3 MiB", "write 1500MiB"),
        ("1,024MiB", "write 1024MiB or 1.024MiB"),  # which of both was meant is not guessed
        ("33,3%", "write 33.3%"),
        ("1,5fathoms", "write 11.5GiB, 800MiB"),
        ("1e99GiB", "write 11.5GiB, 800MiB"),
    ],
)
def test_what_is_nearly_a_size_is_answered_with_the_spelling_that_works(text: str, spelling: str) -> None:
    with pytest.raises(ValueError, match="not a size") as caught:
        parse_size(text, free_bytes=1000)
    assert str(caught.value).partition("; ")[2].startswith(spelling)
    if " or " not in spelling and "," not in spelling:
        assert parse_size(spelling.removeprefix("write "), free_bytes=1000) > 0


def test_percentages_are_of_what_is_free() -> None:
    assert parse_size("90%", free_bytes=1_000) == 900
    assert parse_size("100 %", free_bytes=7) == 7
    assert parse_size("33.3%", free_bytes=1_000) == 333
    assert parse_size("50%", free_bytes=3) == 1  # cut off, not rounded


@pytest.mark.parametrize(
    ("text", "free_bytes", "problem"),
    [
        ("90%", None, "makes no sense here"),
        ("101%", 1_000, "more than 100%"),
        ("100.1%", 1_000, "more than 100%"),
        ("0%", 1_000, "above zero"),
        ("90%", 0, "above zero"),
    ],
)
def test_percentages_refused(text: str, free_bytes: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_size(text, free_bytes=free_bytes)


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size_bytes = parse_size(text, free_bytes=1_000)
    except ValueError:
        return
    assert 0 < size_bytes < 2**63


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (10_239, "10239 B"),
        (10_240, "0.01 MiB"),
        (1_048_576, "1.00 MiB"),
        (98_361_344, "93.80 MiB"),
        (1_073_741_823, "1024.00 MiB"),
        (1_073_741_824, "1.00 GiB"),
        (1_610_612_736, "1.50 GiB"),
        (-1_610_612_736, "-1.50 GiB"),
        (-512, "-512 B"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(142.4, "142 tok/s"), (100.0, "100 tok/s"), (7.26, "7.3 tok/s"), (0.824, "0.82 tok/s")],
)
def test_format_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text
