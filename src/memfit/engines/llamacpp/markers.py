"""Where a long text can be cut so that its tokens stay the same: before what stands for a control token.

For every special token that it finds the engine walks along all it has found before, so its time grows with
their square: a chat of 65,000 messages would take minutes, in which no other request goes on. Pieces of a
text are read in a time that grows with its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["find_markers", "longest_piece", "pieces_of"]

_PIECE = 16 * 1024  # characters that a piece has at least
# llama.cpp's LLAMA_VOCAB_TYPE_SPM and _BPE. Others look at what stands around a special token, or leave text
# out.
_PLAIN_TYPES = (1, 2)
_UNUSED = re.compile("unused|reserved", re.IGNORECASE)  # thousands in some vocabularies: MiB of patterns
_CONTROL, _STRIPS_LEFT = 1 << 3, 1 << 7  # llama.cpp's LLAMA_TOKEN_ATTR_*


def find_markers(api: Any, vocabulary: int) -> re.Pattern[str] | None:
    """Texts of control tokens before which a text can be cut; None where none can, or an end is added."""
    if api.llama_vocab_type(vocabulary) not in _PLAIN_TYPES or api.llama_vocab_get_add_eos(vocabulary):
        return None
    found = []
    for token in range(api.llama_vocab_n_tokens(vocabulary)):
        attributes = api.llama_vocab_get_attr(vocabulary, token)
        if attributes & _CONTROL and not attributes & _STRIPS_LEFT:
            found.append(api.llama_vocab_get_text(vocabulary, token).decode("utf-8", errors="replace"))
    found = [name for name in found if not _UNUSED.search(name)]
    longest_first = sorted(filter(None, found), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def longest_piece(api: Any, vocabulary: int) -> int:
    """Bytes of text that one token stands for at most; 0: any number.

    A vocabulary writes some bytes as two or three, so this is rather too much.
    """
    if api.llama_vocab_type(vocabulary) not in _PLAIN_TYPES:
        return 0
    tokens = range(api.llama_vocab_n_tokens(vocabulary))
    return max((len(api.llama_vocab_get_text(vocabulary, token)) for token in tokens), default=0)


def pieces_of(text: str, find: Callable[[], re.Pattern[str] | None]) -> Iterator[str]:
    """All of a text, in order; one that is not long, or has no markers, is a piece by itself. Markers are
    asked for only where the text is long."""
    start = 0
    markers = find() if len(text) > 2 * _PIECE else None
    if markers:
        for match in markers.finditer(text):
            if match.start() - start >= _PIECE:
                yield text[start : match.start()]
                start = match.start()
    yield text[start:]
