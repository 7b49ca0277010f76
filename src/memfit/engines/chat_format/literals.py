"""Values as Python writes them, and as Gemma writes them: read from a whole text, with no evaluation.

    pythonic: [f(a=1, b='x'), g()]        braced: {city:<|"|>Paris<|"|>,days:3,tags:[<|"|>a<|"|>]}

Whoever calls these has bounded the depth of the brackets. A ValueError: the text is something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["read_braced", "read_calls", "read_literal"]

_T = TypeVar("_T")

_NAME = re.compile(r"\s*([^\W\d][\w.\-]*)\s*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_LETTERS |= {"\\": "\\", "'": "'", '"': '"', "\n": ""}
_DIGITS_LIMIT = 4000  # Python refuses to read longer whole numbers


def read_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a list as Python writes it."""
    reader = _Reader(text)
    reader.expect("[")
    calls = reader.items("]", reader.call)
    reader.end()
    return calls


def read_literal(text: str) -> Any:
    """The value of a Python literal."""
    reader = _Reader(text)
    value = reader.value()
    reader.end()
    return value


def read_braced(text: str, quote: str) -> dict[str, Any]:
    """The object of a braced text, whose strings stand between two `quote`."""
    reader = _Reader(text, quote)
    value = reader.value()
    reader.end()
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


class _Reader:
    def __init__(self, text: str, quote: str = "") -> None:
        self.text = text
        self.quote = quote
        self.at = 0

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def got(self, literal: str) -> bool:
        self.space()
        if not self.text.startswith(literal, self.at):
            return False
        self.at += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.got(literal):
            raise ValueError(f"no {literal} at {self.at}")

    def end(self) -> None:
        self.space()
        if self.at != len(self.text):
            raise ValueError(f"more text at {self.at}")

    def items(self, closer: str, item: Callable[[], _T]) -> list[_T]:
        found: list[_T] = []
        while not self.got(closer):
            if found:
                self.expect(",")
                if self.got(closer):
                    break
            found.append(item())
        return found

    def name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise ValueError(f"no name at {self.at}")
        self.at = match.end()
        return match[1]

    def call(self) -> tuple[str, dict[str, Any]]:
        name = self.name()
        self.expect("(")
        return name, dict(self.items(")", self._keyword))

    def _keyword(self) -> tuple[str, Any]:
        name = self.name()
        self.expect("=")
        return name, self.value()

    def value(self) -> Any:
        if self.got("{"):
            return dict(self.items("}", self._pair))
        for opener, closer in (("[", "]"), ("(", ")")):
            if self.got(opener):
                return self.items(closer, self.value)
        return self._braced_scalar() if self.quote else self._scalar()

    def _pair(self) -> tuple[str, Any]:
        if self.quote:
            key = self._quoted() if self.got(self.quote) else self._bare(":")
        else:
            self.space()
            key = self._string()
        self.expect(":")
        return key, self.value()

    def _scalar(self) -> Any:
        self.space()
        if self.text[self.at : self.at + 1] in ("'", '"'):
            pieces = [self._string()]
            while self.text[self.at : self.at + 1] in ("'", '"') and self.at < len(self.text):
                pieces.append(self._string())  # strings side by side are one
            return "".join(pieces)
        if (match := _NUMBER.match(self.text, self.at)) is not None:
            self.at = match.end()
            return _number(match[0])
        name = self.name()
        if name not in _CONSTANTS:
            raise ValueError(f"{name} is no value")
        return _CONSTANTS[name]

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise ValueError(f"no string at {self.at}")
        self.at = match.end()
        self.space()
        return _unescaped(match[0])

    def _braced_scalar(self) -> Any:
        if self.got(self.quote):
            return self._quoted()
        text = self._bare(",}]")
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        return _number(text) if _NUMBER.fullmatch(text) else text

    def _quoted(self) -> str:
        end = self.text.find(self.quote, self.at)
        if end < 0:
            raise ValueError("a string without an end")
        text = self.text[self.at : end]
        self.at = end + len(self.quote)
        return text

    def _bare(self, ends: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        text = self.text[start : self.at].strip()
        if not text:
            raise ValueError(f"nothing at {start}")
        return text.strip("\"'")


def _number(text: str) -> int | float:
    if len(text) > _DIGITS_LIMIT:
        raise ValueError("a number too long")
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unescaped(text: str) -> str:
    """A quoted string's value: escapes as Python reads them, unknown ones as they stand."""
    return _ESCAPE.sub(_letter, text[1:-1])


def _letter(match: re.Match[str]) -> str:
    kind = match[1]
    if kind[0] in "xuU":
        number = int(kind[1:], 16) if len(kind) > 1 else -1
        return chr(number) if 0 <= number < 0x110000 else match[0]
    return _LETTERS.get(kind, match[0])
