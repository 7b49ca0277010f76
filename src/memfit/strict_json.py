"""A stranger's JSON file, read field by field: types, ranges and names are checked, sizes are bounded.

Every refusal is a UsageError that names the field. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NoReturn

from memfit.errors import UsageError, readable
from memfit.units import MIB, format_bytes

__all__ = ["Fields", "parse_json", "read_bytes", "refusal", "shown"]

_FILE_LIMIT_BYTES = MIB
_RATE_LIMIT = 1e18  # bytes, operations or tokens per second
_TEXT_LIMIT = 1000  # characters
_LIST_LIMIT = 64


def read_bytes(path: Path, where: str, hint: str = "") -> bytes:
    """A file of at most 1 MiB; `where` and `hint` are for the message.

    Raises:
        UsageError: there is none, it is too large or cannot be read.
    """
    try:
        if path.is_dir():
            raise UsageError(f"cannot read {where}: it is a folder{hint}")
        if not path.is_file():  # opening a pipe would wait for a writer
            found = "it is no plain file" if path.exists() else "there is no such file"
            raise UsageError(f"no {where}: {found}{hint}")
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {where}: {error.strerror}") from None
    if len(content) > _FILE_LIMIT_BYTES:
        raise UsageError(f"cannot read {where}: it is larger than {format_bytes(_FILE_LIMIT_BYTES)}")
    return content


def parse_json(content: bytes, where: str) -> Any:
    """The value, without NaN, infinities or a key that is there twice; a mark before it, which some editors
    write, is no part of it.

    Raises:
        UsageError: not JSON.
    """
    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {where}: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise UsageError(f"cannot read {where}: it is nested too deeply") from None
    except ValueError as error:  # not JSON, or from one of the two hooks
        raise UsageError(f"cannot read {where}: {readable(str(error), most=200)}") from None


class Fields:
    """One object of the file: exactly the `keys`, if its author likes the `optional` ones and a "note"."""

    def __init__(
        self, value: Any, where: str, field: str, keys: set[str], *, optional: Set[str] = frozenset()
    ) -> None:
        self._where, self._field = where, field
        if not isinstance(value, dict):
            self.refuse("", value, "an object")
        self._value: dict[str, Any] = value
        for key in value.keys() - keys - optional - {"note"}:
            names = ", ".join(sorted(keys | optional | {"note"}))
            raise UsageError(f"{where}: {self.path(key)} is not a field; here are {names}")
        for key in sorted(keys - value.keys()):
            raise UsageError(f"{where}: {self.path(key)} is missing")
        if "note" in value:
            self.text("note")

    def path(self, key: str) -> str:
        return readable(f"{self._field}.{key}".strip("."), most=200, kept="") or "the whole file"

    def refuse(self, key: str, found: Any, needed: str) -> NoReturn:
        raise UsageError(f"{self._where}: {self.path(key)}: got {shown(found)}, needed {needed}")

    def value(self, key: str) -> Any:
        """As it stands, unchecked."""
        return self._value[key]

    def has(self, key: str) -> bool:
        return key in self._value

    def is_null(self, key: str) -> bool:
        return self._value[key] is None

    def text(self, key: str, *, most: int = _TEXT_LIMIT) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= most:
            self.refuse(key, value, f"one line of text, at most {most} characters")
        return value

    def url(self, key: str) -> str:
        value = self.text(key)
        if not value.startswith(("https://", "http://")) or " " in value:
            self.refuse(key, value, "a URL: https://…")
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        value = self._value[key]
        if not isinstance(value, str) or value not in options:
            self.refuse(key, value, f"one of {', '.join(options)}")
        return value

    def boolean(self, key: str) -> bool:
        value = self._value[key]
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def rate(self, key: str) -> float:
        return self._number(key, above_zero=True)

    def seconds(self, key: str) -> float:
        return self._number(key, above_zero=False)

    def _number(self, key: str, *, above_zero: bool) -> float:
        value = self._value[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Which no NaN passes.
        if not number or not 0 <= value <= _RATE_LIMIT or (above_zero and not value):
            least = "above 0" if above_zero else "from 0"
            self.refuse(key, value, f"a number {least} and up to {_RATE_LIMIT:g}")
        return float(value)

    def child(self, key: str, keys: set[str], *, optional: Set[str] = frozenset()) -> Fields:
        return Fields(self._value[key], self._where, self.path(key), keys, optional=optional)

    def children(
        self, key: str, keys: set[str], *, most: int = _LIST_LIMIT, optional: Set[str] = frozenset()
    ) -> list[Fields]:
        return [
            Fields(each, self._where, f"{self.path(key)}[{index}]", keys, optional=optional)
            for index, each in enumerate(self._list(key, most))
        ]

    def pairs(self, key: str, *, most: int) -> list[Fields]:
        """A list of lists of two, each as an object with the keys "0" and "1"."""
        lists, indices = self.items(key, most=most)
        found = [lists.items(index)[0] for index in indices]
        for index, one in zip(indices, found, strict=True):
            if set(one._value) != {"0", "1"}:
                lists.refuse(index, lists.value(index), "a list of two")
        return found

    def items(self, key: str, *, most: int = _LIST_LIMIT) -> tuple[Fields, list[str]]:
        """A list of plain values as an object, and its keys: "0", "1", …"""
        values = {str(index): value for index, value in enumerate(self._list(key, most))}
        return Fields(values, self._where, self.path(key), set(values)), list(values)

    def _list(self, key: str, most: int) -> list[Any]:
        value = self._value[key]
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, value, f"a list of at most {most}")
        return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


def refusal(field: str, found: Any, needed: str, where: str = "") -> UsageError:
    """What is there in a `field`, and what it takes; `where` says of which file."""
    text = shown(found)
    plain = found is None or isinstance(found, bool | float) or (isinstance(found, int) and text.isdecimal())
    said = f"{where}: {field}" if where else field
    return UsageError(
        f"{said}: got {text}, needed {needed}", field=field, got=found if plain else text, needed=needed
    )


def shown(found: Any) -> str:
    """A stranger's value in a message: short and harmless."""
    if isinstance(found, dict):
        return "an object"
    if isinstance(found, list):
        return "a list"
    if isinstance(found, int) and abs(found) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to print very long ones
    return readable(json.dumps(found, ensure_ascii=False), most=100, kept="")
