"""JSON Schemas as the server's document has them, and one path's entry in it. Knows no API.

A field of a request that may be left out may also be null, as clients write it. Fields that a reader ignores
stand in no schema: whatever they hold is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ANYTHING",
    "BOOLEAN",
    "NULL",
    "SHARE",
    "ApiOperation",
    "Schema",
    "closed",
    "either",
    "integer",
    "list_of",
    "named",
    "needs_tools",
    "number",
    "optional",
    "record",
    "request",
    "text",
    "words",
]

Schema = dict[str, Any]

BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
ANYTHING: Schema = {}


@dataclass(frozen=True, kw_only=True)
class ApiOperation:
    """One method of one path."""

    path: str  # without /v1 where clients know it both ways
    summary: str
    answer: Schema | None  # what 200 brings; None: nothing
    method: Literal["get", "post", "delete"] = "get"
    body: str | None = None  # a component
    examples: tuple[Mapping[str, Any], ...] = ()  # bodies that work
    media: str = "application/json"  # the answer's type
    stream: str | None = None  # its type where the body asks for a stream
    prefixes: tuple[str, ...] = ("",)
    parameters: tuple[Schema, ...] = ()
    errors: tuple[int, ...] = ()
    error: str = "Error"  # the schema of the errors that the path itself writes
    public: bool = False  # no API key is needed
    needs: str | None = None  # what not every server can do


def named(name: str) -> Schema:
    """One of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(**limits: Any) -> Schema:
    return {"type": "string", **limits}


def integer(least: int | None = None, most: int | None = None) -> Schema:
    return {"type": "integer", **_bounds(least, most)}


def number(least: float | None = None, most: float | None = None, **limits: Any) -> Schema:
    return {"type": "number", **_bounds(least, most), **limits}


def words(*allowed: Any) -> Schema:
    return {"enum": list(allowed)}


def list_of(items: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": items, **limits}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def optional(schema: Schema) -> Schema:
    """That, or null."""
    kind = schema.get("type")
    if kind == "null":
        return schema
    if isinstance(kind, str):
        return {**schema, "type": [kind, "null"]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {"anyOf": [*schema["anyOf"], NULL] if set(schema) == {"anyOf"} else [schema, NULL]}


def record(fields: Mapping[str, Schema], /, **rare: Schema) -> Schema:
    """An object of an answer: `fields` are always there, `rare` ones not."""
    return {"type": "object", "properties": {**fields, **rare}, "required": list(fields)}


def request(required: Mapping[str, Schema], others: Mapping[str, Schema] | None = None) -> Schema:
    """An object of a request: of `others` each may be left out or null; what has no name is ignored."""
    properties = {**required, **{name: optional(schema) for name, schema in (others or {}).items()}}
    return {"type": "object", "properties": properties, "required": list(required)}


def closed(required: Mapping[str, Schema], others: Mapping[str, Schema] | None = None) -> Schema:
    """A request's object that refuses what has no name, but for null."""
    return {**request(required, others), "additionalProperties": NULL}


def needs_tools(*others: Any) -> Schema:
    """A rule of a body: where its tool_choice is none of the `others`, there are tools."""
    return either(
        {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
        {"properties": {"tool_choice": words(*others, None)}},
    )


def _bounds(least: float | None, most: float | None) -> Schema:
    found = {"minimum": least, "maximum": most}
    return {name: bound for name, bound in found.items() if bound is not None}
