"""Arguments: tools' schemas, raw text → a value of the type that its schema wants, values → JSON text.

Nothing here raises for what a model wrote: what is no JSON of the wanted type stays a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from memfit.engines.chat_format.literals import read_literal

__all__ = ["Tools", "as_object", "json_text", "strict_object", "typed"]

_MISSING = object()
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_PYTHON_NAMES = {"True": True, "False": False, "None": None}
_REFERENCES_LIMIT = 8


class Tools:
    """The tools of a request: their names, and what each wants as arguments."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
                parameters = function.get("parameters")
                self._parameters[name] = parameters if isinstance(parameters, Mapping) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._parameters)

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The schema of a tool's arguments, which are an object."""
        found = self._parameters.get(name, {})
        return found if found.get("type") == "object" else {**found, "type": "object"}

    def properties(self, name: str) -> Mapping[str, Any]:
        found = self._parameters.get(name, {}).get("properties")
        return found if isinstance(found, Mapping) else {}

    def types(self, name: str, argument: str) -> frozenset[str]:
        """The JSON types that an argument may have; empty: any, or not known."""
        root = self._parameters.get(name, {})
        return _types(self.properties(name).get(argument), root, _REFERENCES_LIMIT)


def _types(schema: Any, root: Mapping[str, Any], references: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or references == 0:
        return frozenset()
    if isinstance(declared := schema.get("type"), str):
        return frozenset({declared})
    if isinstance(declared, list):
        return frozenset(one for one in declared if isinstance(one, str))
    if isinstance(place := schema.get("$ref"), str):
        return _types(_referred(place, root), root, references - 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(key), list):
            return frozenset().union(*(_types(one, root, references - 1) for one in options))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else []
    values = [*values, *([schema["const"]] if "const" in schema else [])]
    return frozenset(_TYPE_NAMES.get(type(value), "") for value in values)


_TYPE_NAMES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


def _referred(place: str, root: Any) -> Any:
    for step in place.removeprefix("#/").split("/"):
        root = root.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def typed(text: str, types: frozenset[str]) -> Any:
    """What a model meant by raw text where one of these types is wanted."""
    if types == {"string"}:
        return text
    value = _value(text.strip())
    if value is _MISSING or isinstance(value, str):
        return value if isinstance(value, str) and not types else text
    if not types or "string" not in types or _TYPE_NAMES[type(value)] in types:
        return value
    return (
        value
        if isinstance(value, int) and "number" in types and value is not True and value is not False
        else text
    )


def _value(text: str) -> Any:
    if text in _PYTHON_NAMES:
        return _PYTHON_NAMES[text]
    try:
        return json.loads(text, parse_constant=_refuse, strict=False)
    except (ValueError, RecursionError):
        pass
    if text[:1] in ("{", "["):
        try:
            return read_literal(text)
        except ValueError:
            pass
    return _MISSING


def strict_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, control characters in strings allowed; None: it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_object(value: Any) -> dict[str, Any] | None:
    """Arguments as a model gave them: an object, the text of one, or nothing at all."""
    if value is None:
        return {}
    if isinstance(value, str):
        return strict_object(value) if value.strip() else {}
    return value if isinstance(value, dict) else None


def json_text(value: Any) -> str | None:
    """A value as JSON, fit for UTF-8; None: it has none (infinity)."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if _HALF_PAIR.search(text):  # it has no UTF-8
            text = json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return text


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
