"""A schema's regular expression (ECMA-262's, as JSON Schema has it) → the same for the engine's library.

The two read many signs differently, without an error: "&&" and "[" inside a class, "." and a line
end, "\\s" beyond ASCII. What is written here means one thing to both, never more than the author wrote.
"""

from __future__ import annotations

import re

__all__ = ["PatternError", "translate_pattern"]


class PatternError(ValueError):
    """A pattern that cannot be enforced; the message says why."""


# Patterns of wide-spread exporters that look ahead → the same strings without that.
_KNOWN = {
    # Pydantic's Decimal.
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
    # zod's email.
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
}
_MOST_CHARACTERS = 4096
_MOST_REPEATS = 100_000  # of one part, repetitions of repetitions multiplied
_META = set("\\.+*?()|[]{}^$#&-~")
_SPACE = " \\t\\n\\r\\f\\v"
# All that any dialect counts as white space.
_WIDE_SPACE = (
    r" \t\n\r\f\v\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
)
# What ECMA-262 does.
_ECMA_SPACE = r" \t\n\r\f\v\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_"}
_QUANTIFIER = re.compile(r"\{([0-9]+)(,([0-9]+)?)?\}")
_GROUP = re.compile(r"\(\?(?:P?<([A-Za-z_][A-Za-z0-9_]*)>|:)")


def translate_pattern(pattern: str, *, exact: bool = False) -> str:
    """`exact`: as ECMA-262 reads it, and not what all dialects read; of a name that does not match, something
    else holds.

    Raises PatternError.
    """
    pattern = _KNOWN.get(pattern, pattern)
    if len(pattern) > _MOST_CHARACTERS:
        raise PatternError(f"it has more than {_MOST_CHARACTERS} characters")
    return _PatternReader(pattern, exact).read()


class _PatternReader:
    def __init__(self, pattern: str, exact: bool) -> None:
        self._text = pattern
        self._exact = exact
        self._at = 0
        self._out: list[str] = []
        # Repetitions inside each open group, the outermost first.
        self._repeats = [1]
        self._last = 1  # inside what a quantifier would repeat

    def read(self) -> str:
        while self._at < len(self._text):
            self._step(self._text[self._at])
        if len(self._repeats) > 1:
            raise PatternError('a "(" is not closed')
        return "".join(self._out)

    def _step(self, sign: str) -> None:
        if sign in "*+?" or (sign == "{" and _QUANTIFIER.match(self._text, self._at)):
            self._quantifier(sign)
            return
        self._last = 1
        if sign == "\\":
            self._out.append(self._escape(in_class=False, negated=False))
        elif sign == "[":
            self._class()
        elif sign == "(":
            self._open()
        elif sign == ")":
            if len(self._repeats) == 1:
                raise PatternError('a ")" closes nothing')
            self._last = self._repeats.pop()
            self._repeats[-1] = max(self._repeats[-1], self._last)
            self._emit(sign)
        elif sign == ".":
            self._emit(r"[^\n\r\x{2028}\x{2029}]")
        else:
            # A "{" that begins no quantifier, "}" and "]" stand for themselves.
            self._emit(sign if sign in "^$|" or sign not in _META else f"\\{sign}")

    def _emit(self, text: str, width: int = 1) -> None:
        self._out.append(text)
        self._at += width

    def _open(self) -> None:
        self._repeats.append(1)
        if self._text.startswith(("(?=", "(?!", "(?<=", "(?<!"), self._at):
            raise PatternError("looking ahead or back is not enforced")
        if not self._text.startswith("(?", self._at):
            self._emit("(?:")
        elif found := _GROUP.match(self._text, self._at):
            self._emit("(?:", len(found[0]))
        else:
            raise PatternError(f"{self._text[self._at : self._at + 4]!r} is no group that ECMA-262 has")

    def _quantifier(self, sign: str) -> None:
        if not self._out or self._out[-1] in ("(?:", "|", "^"):
            raise PatternError(f"nothing is there for {sign!r} to repeat")
        text, most = sign, 1
        if sign == "{" and (found := _QUANTIFIER.match(self._text, self._at)):
            text = found[0]
            least, most = int(found[1]), int(found[3] or found[1])
            if found[3] and least > most:
                raise PatternError(f"{text} is the wrong way round")
        self._emit(text, len(text))
        repeats = self._last * max(1, most)
        if repeats > _MOST_REPEATS:
            raise PatternError(f"it repeats a part more than {_MOST_REPEATS} times")
        self._repeats[-1] = max(self._repeats[-1], repeats)
        if self._text.startswith("?", self._at):
            self._emit("", 1)  # lazy: the same strings
        following = self._text[self._at : self._at + 1]
        if (following and following in "*+?") or _QUANTIFIER.match(self._text, self._at):
            raise PatternError(f"{text + following!r}: a repetition is repeated")

    def _class(self) -> None:
        negated = self._text.startswith("[^", self._at)
        self._at += 2 if negated else 1
        if self._text.startswith("]", self._at):
            if not negated:
                raise PatternError('"[]" matches nothing')
            self._emit("(?s:.)")
            return
        parts: list[str] = []
        while True:
            if self._at >= len(self._text):
                raise PatternError('a "[" is not closed')
            sign = self._text[self._at]
            if sign == "]":
                break
            if sign == "\\":
                parts.append(self._escape(in_class=True, negated=negated))
                continue
            self._at += 1
            if sign == "-" and self._makes_range(parts):
                parts.append("-")
            else:
                parts.append(f"\\{sign}" if sign in _META else sign)
        self._emit(f"[{'^' if negated else ''}{''.join(parts)}]")

    def _makes_range(self, parts: list[str]) -> bool:
        """Whether a "-" that was read stands between two signs; anywhere else it is itself."""
        if not parts or parts[-1] == "-" or self._text.startswith("]", self._at):
            return False
        is_after_range = len(parts) > 1 and parts[-2] == "-"
        return not is_after_range and parts[-1] not in _SETS and not parts[-1].startswith(("\\p", "\\P"))

    def _escape(self, *, in_class: bool, negated: bool) -> str:
        """The escape at the current place; `negated`: inside a class that begins with "^"."""
        sign = self._text[self._at + 1 : self._at + 2]
        if not sign:
            raise PatternError("it ends in a backslash")
        self._at += 2
        if sign in "dDwWsS":
            return _set_of(sign, in_class=in_class, negated=negated, exact=self._exact)
        if sign in "tnrfv":
            return f"\\{sign}"
        if sign in "pP":
            end = self._text.find("}", self._at)
            if not self._text.startswith("{", self._at) or end < 0:
                raise PatternError(f"\\{sign} needs a property in braces")
            name, self._at = self._text[self._at : end + 1], end + 1
            return f"\\{sign}{name}"
        if sign == "b" and in_class:
            return r"\x{8}"
        if sign in "xucC0":
            return f"\\x{{{self._number(sign):x}}}"
        if sign in "bB":
            raise PatternError(f"\\{sign}, a word's edge, is not enforced")
        if sign.isdigit() or sign == "k":
            raise PatternError(f"\\{sign}, what a group has found, is not enforced")
        if sign.isascii() and sign.isalpha():
            raise PatternError(f"\\{sign} is no escape that ECMA-262 has")
        return f"\\{sign}" if sign in _META else sign

    def _number(self, sign: str) -> int:
        """The character of an escape by number; its letter is read."""
        if sign == "0":
            if self._text[self._at : self._at + 1].isdigit():
                raise PatternError("octal escapes are not supported")
            return 0
        if sign in "cC":
            letter = self._text[self._at : self._at + 1]
            if sign == "C" or not (letter.isascii() and letter.isalpha()):
                raise PatternError("\\c needs a letter")
            self._at += 1
            return ord(letter) % 32
        found = re.compile(_HEX[sign]).match(self._text, self._at)
        if not found:
            raise PatternError(f"\\{sign} needs a number in hexadecimal digits")
        self._at = found.end()
        number = int(found[0].strip("{}"), 16)
        if 0xD800 <= number < 0xDC00 and (low := _LOW.match(self._text, self._at)):
            self._at = low.end()
            number = 0x10000 + (number - 0xD800) * 0x400 + int(low[1], 16) - 0xDC00
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise PatternError(f"\\{sign}{found[0]} is no character")
        return number


_HEX = {"x": r"[0-9a-fA-F]{2}", "u": r"\{[0-9a-fA-F]{1,6}\}|[0-9a-fA-F]{4}"}
_LOW = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def _set_of(sign: str, *, in_class: bool, negated: bool, exact: bool) -> str:
    """\\d, \\w and \\s and their opposites. Where dialects differ, what all of them mean."""
    inside = _CLASSES.get(sign.lower(), "")
    is_opposite = sign.isupper()
    if not inside and exact:
        inside = _ECMA_SPACE
    elif not inside:
        # Of white space the least is allowed and the most is excluded.
        inside = _WIDE_SPACE if is_opposite != (in_class and negated) else _SPACE
    if is_opposite:
        return f"[^{inside}]"
    return inside if in_class else f"[{inside}]"


_SETS = {
    _set_of(sign, in_class=True, negated=negated, exact=exact)
    for sign in "dDwWsS"
    for negated in (False, True)
    for exact in (False, True)
}
