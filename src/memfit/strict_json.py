"""A stranger's JSON: read whole and strictly, then made into dataclasses by the types of their fields.

Every refusal is a UsageError with field, got and needed. Knows nothing of what the fields mean.

msgspec was measured for this and is not used. Its import takes 0.5 MiB of every plan's RAM. It takes a key
that is there twice, and fields that a dataclass has not. Its errors have field and type in a sentence only,
an unknown field without its path, and one bound of two.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Set
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from memfit.errors import UsageError, WrongValueError, readable
from memfit.units import MIB, format_bytes

__all__ = [
    "Between",
    "JsonReader",
    "Length",
    "Matching",
    "parse_json",
    "read_bytes",
    "refusal",
    "shown",
    "tupled",
]

_FILE_LIMIT_BYTES = MIB


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


@dataclass(frozen=True)
class Between:
    """Of a number: `Annotated[int, Between(1, 256)]`."""

    least: float
    most: float
    above: bool = False  # `least` itself is too little

    @property
    def needed(self) -> str:
        least = f"above {self.least:g}" if self.above else f"from {self.least:g}"
        return f"a number {least} and up to {self.most:g}"


@dataclass(frozen=True)
class Length:
    """Of a text, in characters; of a list, in items."""

    most: int
    least: int = 0


@dataclass(frozen=True)
class Matching:
    """Of a text: all of it has the form of `pattern`."""

    pattern: str
    needed: str  # in words


_LINE = Length(1000, least=1)
_LIST = Length(64)
_WHOLE = Between(0, 2**60)
_RATE = Between(0, 1e18)  # bytes, operations or tokens per second, or seconds


class JsonReader:
    """Makes values of JSON by types: dataclasses, tuples, literals, texts, numbers, paths, each or None.

    An object has exactly the fields of its dataclass. Those with a default may be left out, and any object
    may have a "note". What a dataclass itself refuses is said of the field in the JSON.
    """

    def __init__(self, where: str, *, line: Length = _LINE, items: Length = _LIST) -> None:
        """`where` begins every message; `line` and `items` bound each text and list that has no own bound."""
        self._where, self._line, self._items = where, line, items

    def read(self, kind: Any, value: Any, field: str = "") -> Any:
        """A `kind` of what stands in `field`; "" is the whole file.

        Raises:
            UsageError: names the field that is wrong, missing or not known.
        """
        kind, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        origin, inner = get_origin(kind), get_args(kind)
        if is_dataclass(kind):
            return self.read_object(kind, value, field)
        if NoneType in inner:
            return None if value is None else self.read(inner[inner[0] is NoneType], value, field)
        if origin is tuple:
            return self._list(inner, value, field, *limits)
        if origin is Literal:
            if not isinstance(value, str) or value not in inner:
                self.refuse(field, value, f"one of {', '.join(inner)}")
            return value
        return _READERS[kind](self, field, value, *limits)

    def read_object(self, kind: Any, value: Any, field: str = "", **given: Any) -> Any:
        """A dataclass, of whose fields some are `given`."""
        parts = {part.name: part for part in fields(kind) if part.name not in given}
        needed = {
            name
            for name, part in parts.items()
            if part.default is MISSING and part.default_factory is MISSING
        }
        found = self.keys(value, field, needed, parts.keys() - needed)
        kinds = _kinds_of(kind)
        values = {
            name: self.read(kinds[name], found[name], f"{field}.{name}") for name in parts if name in found
        }
        try:
            return kind(**values, **given)
        except WrongValueError as error:
            name, said = f"{field}.{error.name}", error.said
            raise self._wrong(name, said, got=error.got, needed=error.needed) from None

    def keys(
        self, value: Any, field: str, needed: Set[str], optional: Set[str] = frozenset()
    ) -> dict[str, Any]:
        """An object with the keys that it must have, and no other than it may have."""
        if not isinstance(value, dict):
            self.refuse(field, value, "an object")
        known = needed | optional | {"note"}
        for key in value.keys() - known:
            raise self._wrong(f"{field}.{key}", f" is not a field; here are {', '.join(sorted(known))}")
        for key in sorted(needed - value.keys()):
            raise self._wrong(f"{field}.{key}", " is missing")
        if "note" in value:
            self.read(str, value["note"], f"{field}.note")
        return value

    def _wrong(self, field: str, said: str, **facts: Any) -> UsageError:
        path = _path(field)
        return UsageError(f"{self._where}: {path}{said}", field=path, **facts)

    def refuse(self, field: str, found: Any, needed: str) -> NoReturn:
        raise refusal(_path(field), found, needed, self._where)

    def _list(
        self, kinds: tuple[Any, ...], value: Any, field: str, limit: Length | None = None
    ) -> tuple[Any, ...]:
        """`tuple[X, ...]`, or a tuple of a kind for each of its items."""
        most = (limit or self._items).most
        if not isinstance(value, list) or len(value) > most:
            self.refuse(field, value, f"a list of at most {most}")
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        elif len(value) != len(kinds):
            self.refuse(field, value, "a list of two")
        return tuple(
            self.read(kind, one, f"{field}[{index}]")
            for index, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )

    def _text(self, field: str, value: Any, *limits: Length | Matching) -> str:
        size = next((one for one in limits if isinstance(one, Length)), self._line)
        if not isinstance(value, str) or not value.isprintable() or not size.least <= len(value) <= size.most:
            self.refuse(field, value, f"one line of text, at most {size.most} characters")
        for one in limits:
            if isinstance(one, Matching) and not re.fullmatch(one.pattern, value, re.ASCII):
                self.refuse(field, value, one.needed)
        return value

    def _path(self, field: str, value: Any) -> Path:
        path = Path(self._text(field, value))
        if not path.is_absolute():
            self.refuse(field, value, "an absolute path")
        return path

    def _boolean(self, field: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.refuse(field, value, "true or false")
        return value

    def _integer(self, field: str, value: Any, limit: Between = _WHOLE) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not limit.least <= value <= limit.most:
            self.refuse(field, value, f"a whole number from {limit.least} to {limit.most}")
        return value

    def _float(self, field: str, value: Any, limit: Between = _RATE) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Which no NaN passes.
        if not number or not limit.least <= value <= limit.most or (limit.above and value == limit.least):
            self.refuse(field, value, limit.needed)
        return float(value)


_READERS: dict[Any, Callable[..., Any]] = {
    str: JsonReader._text,
    Path: JsonReader._path,
    bool: JsonReader._boolean,
    int: JsonReader._integer,
    float: JsonReader._float,
}


_kinds_of = functools.cache(functools.partial(get_type_hints, include_extras=True))


def tupled(value: Any) -> Any:
    """JSON's lists as the tuples that frozen values have."""
    return tuple(map(tupled, value)) if isinstance(value, list | tuple) else value


def _path(field: str) -> str:
    return readable(field.strip("."), most=200, kept="") or "the whole file"


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
        return "a list" if found else "an empty list"
    if isinstance(found, int) and abs(found) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to print very long ones
    return readable(json.dumps(found, ensure_ascii=False), most=100, kept="")
