"""The text that is not read yet, read by generators: each waits where more text could change its mind.

Every character is looked at a bounded number of times: what is read moves to `held`, and only the beginning
of a possible marker stays in the window.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["BRACES", "JSON", "PYTHON", "Nesting", "Steps", "Window", "braces"]

_T = TypeVar("_T")
Steps: TypeAlias = Generator[None, None, _T]  # yields where it waits for more text

_SPACE = re.compile(r"\s*")
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_LOOK = 96  # characters that are looked ahead at most
_DEPTH_LIMIT = 100  # brackets inside brackets: what parses them afterwards is recursive


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """A notation of nested values: where its strings begin, and what may stand outside of them."""

    quotes: tuple[str, ...]
    escapes: bool  # a backslash in a string takes the next character with it
    outside: re.Pattern[str]  # what is neither bracket nor string
    opening: str  # the brackets that it has


JSON = Nesting(quotes=('"',), escapes=True, outside=re.compile(r"[\s\w.+\-:,]*", re.ASCII), opening="[{")
PYTHON = Nesting(quotes=('"', "'"), escapes=True, outside=re.compile(r"""[^'"()\[\]{}]*"""), opening="([{")
BRACES = Nesting(quotes=(), escapes=False, outside=re.compile(r"[^<\[\]{}]*"), opening="[{")


@functools.lru_cache(maxsize=64)
def braces(quote: str) -> Nesting:
    """BRACES with this marker on both sides of a string; it begins with "<"."""
    return Nesting(quotes=(quote,), escapes=False, outside=BRACES.outside, opening=BRACES.opening)


@dataclass(frozen=True)
class _Search:
    pattern: re.Pattern[str]
    beginnings: frozenset[str]  # each marker's proper prefixes
    longest: int


@functools.lru_cache(maxsize=256)
def _search(markers: tuple[str, ...]) -> _Search:
    ordered = sorted(markers, key=len, reverse=True)
    return _Search(
        re.compile("|".join(re.escape(marker) for marker in ordered)),
        frozenset(marker[:size] for marker in ordered for size in range(1, len(marker))),
        len(ordered[0]),
    )


class Window:
    """`text[at:]` is not read yet; `held` is what was read since the last `forget`."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.held: list[str] = []

    def add(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    def take(self, size: int) -> str:
        piece = self.text[self.at : self.at + size]
        self.at += size
        if piece:
            self.held.append(piece)
        return piece

    def forget(self) -> str:
        """What was held, which is thereby done with."""
        text = "".join(self.held)
        self.held.clear()
        return text

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """As much as matches; the pattern is a repeated class of characters."""
        pieces = []
        while True:
            match = pattern.match(self.text, self.at)
            pieces.append(self.take((match.end() if match else self.at) - self.at))
            if self.at < len(self.text) or self.ended:
                return "".join(pieces)
            yield

    def space(self) -> Steps[str]:
        return (yield from self.run(_SPACE))

    def next(self) -> Steps[str]:
        """The next character, which stays; empty at the end."""
        while self.at == len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def literal(self, options: tuple[str, ...]) -> Steps[str | None]:
        """The longest option with which the text goes on; None: with none of them."""
        while True:
            rest = len(self.text) - self.at
            found = max(
                (one for one in options if one and self.text.startswith(one, self.at)), key=len, default=""
            )
            longer = any(
                len(one) > max(rest, len(found)) and self.text.startswith(one[:rest], self.at)
                for one in options
            )
            if self.ended or not longer:
                return self.take(len(found)) or None
            yield

    def passing(self, markers: tuple[str, ...]) -> tuple[str, str | None, bool]:
        """The text up to the first marker and that marker, as far as they are there; whether that is all."""
        search = _search(markers)
        match = search.pattern.search(self.text, self.at)
        if match is not None and (self.ended or not self._may_be_longer(search, match.start())):
            return self.take(match.start() - self.at), self.take(len(match.group())), True
        kept = 0 if self.ended else self._beginning(search)  # also of a longer marker than was found
        return self.take(len(self.text) - self.at - kept), None, self.ended

    def until(self, markers: tuple[str, ...]) -> Steps[tuple[str, str | None]]:
        """The text up to the first marker, and that marker; None: the text ended before one."""
        pieces = []
        while True:
            piece, marker, done = self.passing(markers)
            pieces.append(piece)
            if done:
                return "".join(pieces), marker
            yield

    def looks(self, whole: re.Pattern[str], beginning: re.Pattern[str]) -> Steps[bool]:
        """Whether the text goes on with `whole`, which stays; `beginning` is what may still become it."""
        while True:
            text = self.text[self.at : self.at + _LOOK]
            if whole.match(text):
                return True
            if self.ended or len(text) == _LOOK or not beginning.fullmatch(text):
                return False
            yield

    def nested(self, form: Nesting) -> Steps[str | None]:
        """A bracketed value; None: it is not one, or not whole."""
        first = len(self.held)
        closers: list[str] = []
        while True:
            yield from self.run(form.outside)
            if (quote := (yield from self.literal(form.quotes))) is not None:
                if not (yield from self._string(quote, form.escapes)):
                    return None
                continue
            letter = yield from self.next()
            if letter and letter in form.opening and len(closers) < _DEPTH_LIMIT:
                closers.append(_CLOSERS[letter])
            elif closers and letter == closers[-1]:
                closers.pop()
            else:
                return None
            self.take(1)
            if not closers:
                return "".join(self.held[first:])

    def _string(self, quote: str, escapes: bool) -> Steps[bool]:
        """The rest of a string; whether it ended."""
        if not escapes:
            return (yield from self.until((quote,)))[1] is not None
        while True:
            yield from self.run(_INSIDE[quote])
            letter = yield from self.next()
            if letter != "\\":
                return bool(self.take(len(letter)))
            while len(self.text) - self.at < 2 and not self.ended:
                yield
            self.take(2)

    def _may_be_longer(self, search: _Search, place: int) -> bool:
        """Whether a marker that ends the text may become a longer one."""
        return len(self.text) - place < search.longest and self.text[place:] in search.beginnings

    def _beginning(self, search: _Search) -> int:
        """How many of the last characters may be the beginning of a marker."""
        for size in range(min(search.longest - 1, len(self.text) - self.at), 0, -1):
            if self.text[-size:] in search.beginnings:
                return size
        return 0


_INSIDE = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
