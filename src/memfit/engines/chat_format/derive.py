"""Finds a call's syntax in what a template renders: where name and arguments stand shows the markers around.

A syntax counts only if the parser reads with it what the template wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from memfit.engines.chat_format.form import CallSyntax, ChatFormat, ReasoningSyntax
from memfit.engines.chat_format.parser import FormatParser
from memfit.engines.chat_format.parts import CallArguments, CallBegins
from memfit.engines.chat_format.probes import MARKER, NAMES, TOOLS, VALUES, Probes, shared

__all__ = ["find_calls", "reads_back"]

_FIRST, _SECOND = VALUES
_LONGEST = 2000  # letters of a rendered call; what is longer is none
_ID = re.compile(r"call0000\d")


def reads_back(form: ChatFormat, text: str, names: tuple[str, ...]) -> bool:
    """Whether a rendered answer's calls are these, with the arguments of the probes."""
    parser = FormatParser(form, tools=TOOLS)
    parts = parser.feed(text) + parser.finish()
    called = tuple(part.name for part in parts if isinstance(part, CallBegins))
    arguments = [json.loads(part.text) for part in parts if isinstance(part, CallArguments)]
    return called == names and all(one == VALUES for one in arguments) and parser.warning is None


def find_calls(probes: Probes, reasoning: ReasoningSyntax | None) -> CallSyntax | None:
    """The syntax of the calls that a template renders; None: it renders none, or none that could be read."""
    one, two = probes.called(1), probes.called(2)
    if one is None or NAMES[0] not in one or len(one) > _LONGEST:
        return None
    if two is None or NAMES[0] not in two or NAMES[1] not in two or len(two) > 2 * _LONGEST:
        two = ""  # it has one call an answer at most
    if reasoning is not None:  # some write it empty where there is none
        empty = re.compile(rf"\A\s*{re.escape(reasoning.start)}\s*{re.escape(reasoning.end)}\s*")
        one, two = empty.sub("", one), empty.sub("", two)
    for find in (_json, _named, _tagged, _pythonic):
        syntax = find(two or one)
        names = NAMES if two else NAMES[:1]
        if syntax is not None and reads_back(ChatFormat(calls=(syntax,)), two or one, names):
            return syntax
    return None


# --- one kind each: from the text of an answer with two calls, or with one ---


def _json(text: str) -> CallSyntax | None:
    spans = [_object(text, name) for name in NAMES if name in text]
    if None in spans:
        return None
    found = [span for span in spans if span is not None]
    start, end, value = found[0]
    before, after = text[:start].rstrip(), text[found[-1][1] :].lstrip()
    between = text[end : found[1][0]].strip() if len(found) == 2 else None
    array = before.endswith("[") and after.startswith("]")
    if array:
        before, after, between = before[:-1].rstrip(), after[1:].lstrip(), ""
    keys = _keys(value)
    if keys is None:
        return None
    name_key, arguments_key, id_key, function_key = keys
    shape = _around(before, between, after)
    if shape is None:
        return None
    section_start, opener, closer, section_end, separator = shape
    return CallSyntax(
        kind="json",
        section_start=section_start,
        start=opener,
        end=closer,
        section_end=section_end,
        separator=separator,
        name_key=name_key,
        arguments_key=arguments_key,
        id_key=id_key,
        function_key=function_key,
        array=array,
        bare=not before,
    )


def _object(text: str, name: str) -> tuple[int, int, dict[str, Any]] | None:
    """The outermost JSON object with a name in it: where it begins and ends, and what it is."""
    place = text.index(name)
    for start in [index for index, letter in enumerate(text[:place]) if letter == "{"]:
        try:
            value, size = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        if start + size > place and isinstance(value, dict):
            return start, start + size, value
    return None


def _keys(value: dict[str, Any]) -> tuple[str, str, str, str] | None:
    """The keys of the name, the arguments, the id, and the object that they lie in."""
    name = next((key for key, item in value.items() if item == NAMES[0]), None)
    arguments = next((key for key, item in value.items() if item == VALUES), None)
    number = next((key for key, item in value.items() if isinstance(item, str) and _ID.fullmatch(item)), "")
    if name is not None and arguments is not None:
        return name, arguments, number, ""
    if value.get(NAMES[0]) == VALUES:
        return "", "arguments", "", ""
    for key, inner in value.items():
        if isinstance(inner, dict) and (keys := _keys(inner)) is not None:
            return keys[0], keys[1], number, key
    return None


def _around(
    before: str, between: str | None, after: str
) -> tuple[str, str, tuple[str, ...], str, str] | None:
    """From what stands before, between and after two calls: a section's start, a call's start and ends, the
    section's end, and what separates calls."""
    if between is None:
        return "", before, tuple(after.split()), "", ""
    if between in ("", ",", ";"):
        return before, "", (), _first_marker(after) if before else "", between
    opener = _common_end(before, between)
    closer = between[: len(between) - len(opener)].strip()
    if not opener or not after.startswith(closer):
        return None
    section = before[: len(before) - len(opener)].strip()
    rest = after[len(closer) :] if section else ""
    return section, opener, tuple(closer.split()), _first_marker(rest), ""


def _first_marker(text: str) -> str:
    """The marker that a text begins with: what follows it ends the answer. Without one, the whole text."""
    match = MARKER.match(text := text.strip())
    return text if match is None else match[0]


def _common_end(one: str, other: str) -> str:
    """What both end with, from the start of a marker on."""
    size = shared(one[::-1], other[::-1])
    ending = one[len(one) - size :]
    starts = [place for mark in "<[" if (place := ending.find(mark)) >= 0]
    if starts:
        return ending[min(starts) :]
    return ending if size == len(one) else ""


def _named(text: str) -> CallSyntax | None:
    place = text.index(NAMES[0])
    body = text.find("{", place)
    found = _arguments(text, body)
    if found is None:
        return None
    name_end = text[place + len(NAMES[0]) : body].strip()
    id_start = ""
    if (number := _ID.search(name_end)) is not None:
        id_start, name_end = name_end[: number.start()].strip(), name_end[number.end() :].strip()
    before, between, after = text[:place], None, text[found:]
    if NAMES[1] in text:
        second = text.index(NAMES[1])
        last = _arguments(text, text.find("{", second))
        if last is None:
            return None
        between, after = text[found:second].lstrip(), text[last:]
    shape = _around(before.strip(), None if between is None else between.strip(), after.strip())
    if shape is None or not (shape[1] and name_end):
        return None
    section_start, opener, closer, section_end, _ = shape
    return CallSyntax(
        kind="named",
        section_start=section_start,
        start=opener,
        name_end=name_end,
        id_start=id_start,
        end=closer,
        section_end=section_end,
    )


def _arguments(text: str, start: int) -> int | None:
    """Where the JSON of the probes' arguments ends, if it begins here."""
    try:
        value, size = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except ValueError:
        return None
    return start + size if value == VALUES else None


def _tagged(text: str) -> CallSyntax | None:
    pieces = _split(text, NAMES[0], _FIRST, VALUES[_FIRST], _SECOND, VALUES[_SECOND])
    if pieces is None:
        return None
    before, name_key, key_value, value_key, _, after = pieces
    key_start = _common_end(name_key, value_key)
    value_end = value_key[: len(value_key) - len(key_start)]
    ends = after.removeprefix(value_end)
    if not key_start or not value_end.strip() or ends == after:
        return None
    inner: str = before
    if NAMES[1] in after:
        parts = _split(ends, NAMES[1], VALUES[_SECOND])
        if parts is None:
            return None
        inner = _common_end(before, parts[0])
        ends = parts[0][: len(parts[0]) - len(inner)]
        rest = parts[2].removeprefix(value_end).removeprefix(ends)
    else:
        rest = ""
    outer = before[: len(before) - len(inner)].strip()
    markers = ends.split()
    opener = inner.strip().split("\n")
    if len(opener) > 2 or not markers or (len(opener) == 2 and outer):
        return None
    key_end, value_start = _halves(key_value)
    name_end = name_key[: len(name_key) - len(key_start)].strip()
    section_end = (
        markers[-1] if len(opener) == 2 and len(markers) == 2 else _first_marker(rest if outer else "")
    )
    body_start = ""
    if name_end[:1] in ('"', "'") and len(name_end) > 1:
        name_end, body_start = name_end[:1], name_end[1:]
    return CallSyntax(
        kind="tagged",
        section_start=opener[0].strip() if len(opener) == 2 else outer,
        start=opener[-1].strip(),
        name_end=name_end,
        body_start=body_start,
        end=tuple(markers[:1]),
        section_end=section_end,
        key_start=key_start,
        key_end=key_end,
        value_start=value_start,
        value_end=value_end.strip(),
        padded=value_end.startswith("\n") and key_value.endswith("\n"),
    )


def _split(text: str, *needles: str) -> list[str] | None:
    """What stands before, between and after these, in this order."""
    pieces = []
    for needle in needles:
        piece, found, text = text.partition(needle)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _halves(text: str) -> tuple[str, str]:
    """The end of an argument's name and the start of its value, from what stands between them."""
    text = text.strip()
    if text[:1] in ('"', "'"):
        return text[:1], text[1:]
    match = MARKER.match(text)
    return (match[0], text[match.end() :].strip()) if match is not None else (text, "")


def _pythonic(text: str) -> CallSyntax | None:
    before, _, after = text.partition(NAMES[0] + "(")
    section_start, section_end = before.rstrip("[ \n"), after.rpartition("]")[2].strip()
    if "[" not in before or not section_start:
        return None
    return replace(CallSyntax(kind="pythonic"), section_start=section_start, section_end=section_end)
