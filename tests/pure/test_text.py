"""From tokens' bytes to text: however the bytes are cut, the text is the same and ends before a stop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from memfit.engines.text import TextAssembler


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def _assemble(pieces: list[bytes], stops: list[str]) -> tuple[str, bool]:
    """The text, and whether a stop ended it; driven as the worker does."""
    assembler = TextAssembler(stops)
    shown = ""
    for piece in pieces:
        shown += assembler.feed(piece)
        if assembler.stopped:
            return shown, True
    return shown + assembler.finish(), False


def _occurrences(text: str, stops: list[str]) -> list[tuple[int, int]]:
    """(start, end) of the first occurrence of each stop string in `text`."""
    return [(text.find(stop), text.find(stop) + len(stop)) for stop in stops if stop and stop in text]


_LETTERS = st.text(alphabet="abé€😀\n", max_size=30)
_STOPS = st.lists(st.text(alphabet="abé€😀", max_size=5), max_size=3)


@given(text=_LETTERS, stops=_STOPS, cuts=st.lists(st.integers(0, 200), max_size=20))
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3])
@example(text="abab", stops=["abac", "ba"], cuts=[1, 2, 3])
def test_any_split_gives_the_text_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    found = _occurrences(text, stops)
    # Where one stop string begins first and another ends first: the test after this one.
    assume(not found or min(found)[0] == min(found, key=lambda one: (one[1], one[0]))[0])
    expected = text[: min(found)[0]] if found else text
    result, stopped = _assemble(_pieces(text.encode(), cuts), stops)
    assert (result, stopped) == (expected, bool(found))


def test_the_text_does_not_depend_on_the_split_when_stops_overlap() -> None:
    stops = ["abcd", "bc"]
    letter_by_letter = _assemble([b"a", b"b", b"c", b"d"], stops)[0]
    assert _assemble([b"abcd"], stops)[0] == letter_by_letter == "a"


@given(text=_LETTERS, cuts=st.lists(st.integers(0, 200), max_size=20))
def test_without_stops_all_whole_characters_are_shown_at_once(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler([])
    fed = b""
    shown = ""
    for piece in _pieces(text.encode(), cuts):
        fed += piece
        shown += assembler.feed(piece)
        assert shown == fed.decode(errors="ignore")
    assert shown + assembler.finish() == text


def test_a_character_over_four_tokens() -> None:
    assembler = TextAssembler([])
    assert [assembler.feed(bytes([byte])) for byte in "😀!".encode()] == ["", "", "", "😀", "!"]


def test_a_possible_stop_is_held_back_only_as_long_as_it_may_be_one() -> None:
    assembler = TextAssembler(["</s>"])
    assert [assembler.feed(piece) for piece in (b"a<", b"/", b"x", b"</s")] == ["a", "", "</x", ""]
    assert assembler.feed(b">b") == ""
    assert assembler.stopped


def test_an_unfinished_stop_is_shown_at_the_end() -> None:
    assembler = TextAssembler(["END"])
    assert assembler.feed(b"the EN") == "the "
    assert assembler.finish() == "EN"
    assert not assembler.stopped


def test_a_stop_may_begin_with_a_multi_byte_character() -> None:
    start, rest = "€x".encode()[:2], "€x".encode()[2:]
    assert _assemble([b"a", start, rest, b"b"], ["€x"]) == ("a", True)


def test_empty_stops_are_no_stops() -> None:
    assert _assemble([b"ab"], ["", ""]) == ("ab", False)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "�"),
        (b"a\xe2\x82", "a�"),  # an unfinished euro sign at the end
        (b"\xe2\x82a", "�a"),
        (b"\x80\x80", "��"),
        (b"\xed\xa0\x80", "���"),  # a surrogate is no character
        (b"\xf0\x9f\x98", "�"),
    ],
)
def test_invalid_utf8_becomes_replacement_characters(data: bytes, text: str) -> None:
    assert _assemble([data[at : at + 1] for at in range(len(data))], [])[0] == text
    assert _assemble([data], [])[0] == text


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_are_decoded_as_python_does(data: bytes, cuts: list[int]) -> None:
    assert _assemble(_pieces(data, cuts), [])[0] == data.decode(errors="replace")
