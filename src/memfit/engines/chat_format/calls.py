"""Reads calls in the syntax that a format has for them, one reader a kind.

A reader gives each call as soon as it is whole; what it cannot read stays held in the window. It has no say
in what becomes of the text around.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memfit.engines.chat_format.form import CallSyntax
from memfit.engines.chat_format.literals import read_braced, read_calls
from memfit.engines.chat_format.values import Tools, as_object, json_text, strict_object
from memfit.engines.chat_format.window import JSON, PYTHON, Steps, Window, braces

__all__ = ["READERS", "Call", "CallReader"]

_NAME = re.compile(r"[\w.:/\-]*")
_NUMBERED = re.compile(r"(?:functions\.)?(.+?):(\d+)")


@dataclass(frozen=True)
class Call:
    """A whole call. `arguments` is the text of a JSON object."""

    name: str
    id: str | None
    arguments: str


@dataclass(frozen=True)
class CallReader:
    """What every reader works with. `give` is called with each whole call."""

    window: Window
    syntax: CallSyntax
    tools: Tools
    give: Callable[[Call], None]

    def ends(self) -> Steps[None]:
        """The markers after a call, as far as they are there."""
        for marker in self.syntax.end:
            yield from self.window.space()
            yield from self.window.literal((marker,))


def _read_json(reader: CallReader) -> Steps[bool]:
    """An object, objects one after the other, or an array of them."""
    window = reader.window
    yield from window.space()
    array = (yield from window.literal(("[",))) is not None
    separators = (",",) if array else (reader.syntax.separator,)
    while True:
        yield from window.space()
        letter = yield from window.next()
        if letter != "{" or (text := (yield from window.nested(JSON))) is None:
            return False
        if (call := _call_of(strict_object(text), reader)) is None:
            return False
        reader.give(call)
        yield from window.space()
        if array and (yield from window.literal(("]",))) is not None:
            break
        more = yield from window.literal(separators)
        yield from window.space()
        if not array and (yield from window.next()) != "{":
            break
        if array and more is None:
            return False
    yield from reader.ends()
    return True


def _call_of(value: dict[str, Any] | None, reader: CallReader) -> Call | None:
    """The call that an object is. Models mix up the keys of families, so all of them count."""
    syntax = reader.syntax
    if value is None:
        return None
    if not syntax.name_key and len(value) == 1:
        value = {"name": next(iter(value)), "arguments": next(iter(value.values()))}
    for key in (syntax.function_key, "function"):
        if isinstance(inner := value.get(key), dict):
            value = {**value, **inner}
    name = _first(value, (syntax.name_key, "name", "tool_name", "function"))
    given = _first(value, (syntax.arguments_key, "arguments", "parameters"))
    known = not syntax.bare or (name in reader.tools and given is not None)
    arguments = as_object(given)
    if not isinstance(name, str) or not name or not known or arguments is None:
        return None
    number = _first(value, (syntax.id_key, "id", "tool_call_id"))
    text = json_text(arguments)
    return None if text is None else Call(name, None if number is None else str(number), text)


def _first(value: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value[key] for key in keys if value.get(key) is not None), None)


def _read_named(reader: CallReader) -> Steps[bool]:
    window, syntax = reader.window, reader.syntax
    yield from window.space()
    name = yield from window.run(_NAME)
    yield from window.space()
    number = None
    if syntax.id_start and (yield from window.literal((syntax.id_start,))) is not None:
        number = (yield from window.run(_NAME)) or None
    if not name or (yield from window.literal((syntax.name_end,))) is None:
        return False
    if syntax.numbered_names:
        match = _NUMBERED.fullmatch(name)
        name, number = (match[1], name) if match else (name.removeprefix("functions."), number)
    yield from window.space()
    text: str | None = "{}"
    if (yield from window.next()) == "{":
        text = yield from window.nested(JSON)
    elif not syntax.end or (yield from window.literal(syntax.end[:1])) is None:
        return False
    value = None if text is None else strict_object(text)
    arguments = None if value is None else json_text(value)
    if arguments is None:
        return False
    reader.give(Call(name, number, arguments))
    yield from reader.ends()
    return True


def _read_pythonic(reader: CallReader) -> Steps[bool]:
    window = reader.window
    yield from window.space()
    if (yield from window.next()) != "[" or (text := (yield from window.nested(PYTHON))) is None:
        return False
    try:
        calls = read_calls(text)
    except ValueError:
        return False
    texts = [json_text(arguments) for _, arguments in calls]
    strangers = reader.syntax.bare and any(name not in reader.tools for name, _ in calls)
    if strangers or not calls or None in texts:
        return False
    for (name, _), arguments in zip(calls, texts, strict=True):
        reader.give(Call(name, None, arguments or "{}"))
    yield from reader.ends()
    return True


def _read_braced(reader: CallReader) -> Steps[bool]:
    window, syntax = reader.window, reader.syntax
    name = yield from window.run(_NAME)
    if not name or (yield from window.next()) != "{":
        return False
    text = yield from window.nested(braces(syntax.quote))
    try:
        arguments = None if text is None else json_text(read_braced(text, syntax.quote))
    except ValueError:
        arguments = None
    if arguments is None:
        return False
    reader.give(Call(name, None, arguments))
    yield from reader.ends()
    return True


READERS: dict[str, Callable[[CallReader], Steps[bool]]] = {
    "json": _read_json,
    "named": _read_named,
    "pythonic": _read_pythonic,
    "braced": _read_braced,
}
