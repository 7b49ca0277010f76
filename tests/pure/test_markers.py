"""Long texts are cut only where their tokens stay the same."""

from __future__ import annotations

import re

from memfit.engines.llamacpp.markers import find_markers, longest_piece, pieces_of

_CONTROL, _STRIPS_LEFT, _NORMAL = 1 << 3, 1 << 7, 1 << 2


class _Library:
    """A vocabulary of (text, attributes), of one of llama.cpp's types."""

    def __init__(self, *tokens: tuple[str, int], kind: int = 2, ends: bool = False) -> None:
        self._tokens, self._kind, self._ends = tokens, kind, ends

    def llama_vocab_type(self, _: int) -> int:
        return self._kind

    def llama_vocab_get_add_eos(self, _: int) -> bool:
        return self._ends

    def llama_vocab_n_tokens(self, _: int) -> int:
        return len(self._tokens)

    def llama_vocab_get_attr(self, _: int, token: int) -> int:
        return self._tokens[token][1]

    def llama_vocab_get_text(self, _: int, token: int) -> bytes:
        return self._tokens[token][0].encode()


_TOKENS = (
    ("<s>", _CONTROL),
    ("<s>>", _CONTROL),
    ("<m>", _CONTROL | _STRIPS_LEFT),
    ("word", _NORMAL),
    ("", _CONTROL),
)


def test_markers_are_control_tokens_that_take_nothing_before_them() -> None:
    markers = find_markers(_Library(*_TOKENS), 0)
    assert markers and markers.findall("a<s>>b<m>word<s>") == ["<s>>", "<s>"]
    assert find_markers(_Library(*_TOKENS, ends=True), 0) is None
    assert find_markers(_Library(*_TOKENS, kind=4), 0) is None
    assert find_markers(_Library(("word", _NORMAL)), 0) is None


def test_pieces_are_all_of_the_text_and_begin_with_markers() -> None:
    markers = re.compile("<s>")
    text = "".join(f"<s>{'x' * (37 * number % 500)}" for number in range(2000))
    pieces = list(pieces_of(text, lambda: markers))
    assert "".join(pieces) == text and len(pieces) > 10
    assert all(one.startswith("<s>") for one in pieces[1:])
    assert all(len(one) >= 16 * 1024 for one in pieces[:-1])
    assert list(pieces_of(text, lambda: None)) == [text]
    assert list(pieces_of("<s>a<s>b", lambda: markers)) == ["<s>a<s>b"], "it is short"
    assert list(pieces_of("", lambda: markers)) == [""]
    assert list(pieces_of("x" * 100_000, lambda: markers)) == ["x" * 100_000]


def test_the_longest_piece_is_known_where_tokens_leave_nothing_out() -> None:
    assert longest_piece(_Library(*_TOKENS), 0) == 4
    assert longest_piece(_Library(*_TOKENS, kind=3), 0) == 0
    assert longest_piece(_Library(), 0) == 0
