"""Reads a call whose name and arguments stand in tags: <function=f><parameter=a>1</parameter></function>.

Values are raw text, which may hold the tags itself: a value's end counts only where the call goes on after it
as a call would. Models leave ends out; then the next argument's start, or the call's own end, is one.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.chat_format.calls import Call, CallReader
from memfit.engines.chat_format.values import json_text, typed
from memfit.engines.chat_format.window import Steps

__all__ = ["read_tagged"]

_NAME = re.compile(r"[\w.:/\-]*")
_KEY = re.compile(r'[^"<>\n]*')
_ATTRIBUTES = re.compile(r"[^<>\n]*")
_TYPE = re.compile(r'\b(?:type|string)="(\w+)"')
_RAW = ("<![CDATA[", "]]>")
_JSON_TYPES = {"true": "string", "false": ""}  # string="true"


@dataclass
class _Arguments:
    """One call's name and arguments, as far as they were read."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)


def read_tagged(reader: CallReader) -> Steps[bool]:
    """The rest of a call, from its name on."""
    window, syntax = reader.window, reader.syntax
    yield from window.space()
    name = yield from window.run(_NAME)
    if not name or (syntax.name_end and (yield from window.literal((syntax.name_end,))) is None):
        return False
    if not syntax.name_end and name not in reader.tools:  # "<tool_call> and </tool_call>" in a sentence
        return False
    call = _Arguments(html.unescape(name) if syntax.entities else name)
    if syntax.body_start:
        attributes = yield from window.run(_ATTRIBUTES)
        if (yield from window.literal((syntax.body_start,))) is None:
            return False
        if attributes.endswith("/"):  # <invoke name="f"/>
            return _give(reader, call)
    marker = yield from _go_on(reader)
    while marker == syntax.key_start:
        marker = yield from _argument(reader, call)
    return marker is not None and _give(reader, call)


def _give(reader: CallReader, call: _Arguments) -> bool:
    text = json_text(call.values)
    if text is None:
        return False
    reader.give(Call(call.name, None, text))
    return True


def _go_on(reader: CallReader) -> Steps[str | None]:
    """What follows an argument: the next one's start, or the call's or the section's end."""
    syntax = reader.syntax
    yield from reader.window.space()
    return (yield from reader.window.literal((syntax.key_start, *syntax.end[:1], syntax.section_end)))


def _argument(reader: CallReader, call: _Arguments, key: str | None = None) -> Steps[str | None]:
    """Reads one argument after its start; what follows it, None: it is not one."""
    window, syntax = reader.window, reader.syntax
    while True:
        if key is None:
            key = yield from window.run(_KEY)
            if not key or (yield from window.literal((syntax.key_end,))) is None:
                return None
        attributes = ""
        if syntax.value_start:
            attributes = yield from window.run(_ATTRIBUTES)
            yield from window.space()
            if (yield from window.literal((syntax.value_start,))) is None:
                return None
        text, marker, following = yield from _value(reader, call, key)
        call.values[_unescaped(key, reader)] = _typed(reader, call, key, text, attributes)
        if following is None:
            return marker
        key = following


def _unescaped(key: str, reader: CallReader) -> str:
    return html.unescape(key) if reader.syntax.entities else key.strip()


def _value(reader: CallReader, call: _Arguments, key: str) -> Steps[tuple[str, str | None, str | None]]:
    """A value's text, the marker after it, and the key of an argument that began where its end is missing."""
    window, syntax = reader.window, reader.syntax
    pieces: list[str] = []
    while True:
        text, marker = yield from window.until((syntax.value_end, syntax.key_start))
        pieces.append(text)
        if marker is None:
            return _cut(reader, "".join(pieces))
        first = len(window.held) - 1
        if marker == syntax.value_end:
            if (after := (yield from _go_on(reader))) is not None:
                return "".join(pieces), after, None
        elif syntax.padded and text.endswith("\n"):
            following = yield from window.run(_KEY)
            known = following in reader.tools.properties(call.name) and following not in call.values
            if known and following != key and (yield from window.literal((syntax.key_end,))) is not None:
                return "".join(pieces), syntax.key_start, following
        pieces += window.held[first:]


def _cut(reader: CallReader, text: str) -> tuple[str, str | None, str | None]:
    """A value that the text's end ended: whole, where the call's own end stands there."""
    syntax = reader.syntax
    rest = text.rstrip().removesuffix(syntax.section_end).rstrip()
    for end in syntax.end[:1]:
        if rest.endswith(end):
            return rest.removesuffix(end), end, None
    return text, None, None


def _typed(reader: CallReader, call: _Arguments, key: str, text: str, attributes: str) -> Any:
    if reader.syntax.padded and text.startswith("\n"):
        text = text[1:].removesuffix("\n")
    if text.startswith(_RAW[0]) and text.endswith(_RAW[1]):
        return text[len(_RAW[0]) : -len(_RAW[1])]
    said = _TYPE.search(attributes)
    if said is None:
        return typed(text, reader.tools.types(call.name, _unescaped(key, reader)))
    kind = _JSON_TYPES.get(said[1], said[1])
    return text if kind == "string" else typed(text, frozenset())
