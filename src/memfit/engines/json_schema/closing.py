"""Closes what a schema leaves open: objects get no further properties, and numbers get an end.

An answer with fewer names satisfies the schema as well, while a small model that may add names does so until
its tokens are used up. Schemas that are joined stay open: each would exclude the names of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.engines.json_schema.meaning import definition_name, inner_schemas

__all__ = ["close_objects"]


def close_objects(root: Any, definitions: Mapping[str, Any]) -> None:
    """Change a checked schema in place."""
    joined: set[str] = set()  # definitions that are joined with something
    alone: list[dict[str, Any]] = []
    for schema in (root, *definitions.values()):
        _sort(schema, False, alone, joined)
    reached = set(joined)
    while joined:  # and those that they are in turn
        following = set(_references(definitions[joined.pop()])) - reached
        reached |= following
        joined |= following
    kept = {id(inner) for name in reached for inner in _inside(definitions[name])}
    for schema in alone:
        if id(schema) not in kept:
            _close(schema)


def _sort(schema: Any, is_joined: bool, alone: list[dict[str, Any]], joined: set[str]) -> None:
    """Which schemas describe a value by themselves, and which definitions do it together with others."""
    if not isinstance(schema, dict):
        return
    parts = len([word for word in ("$ref", "allOf", "anyOf") if word in schema])
    is_joined = is_joined or parts > 1 or (parts == 1 and len(schema) > 1)
    if "$ref" in schema and is_joined:
        joined.add(definition_name(schema))
    if not parts and not is_joined:
        alone.append(schema)
    for word, inner in inner_schemas(schema):
        _sort(inner, is_joined or (word == "allOf" and len(schema[word]) > 1), alone, joined)


def _inside(schema: Any) -> Iterator[Any]:
    """A schema, and all schemas inside of it. Constants are none, however they look."""
    if isinstance(schema, dict):
        yield schema
        for _, inner in inner_schemas(schema):
            yield from _inside(inner)


def _references(schema: Any) -> Iterator[str]:
    """All definitions that a schema refers to, anywhere inside."""
    for one in _inside(schema):
        if "$ref" in one:
            yield definition_name(one)


def _close(schema: dict[str, Any]) -> None:
    if "number" in schema.get("type", ()) and schema.keys().isdisjoint(_EXACT):
        schema["multipleOf"] = _DECIMALS
    if schema.keys().isdisjoint(_NAMING) or not schema.keys().isdisjoint(_OPEN):
        return
    for name in schema.get("required", ()):
        schema.setdefault("properties", {}).setdefault(name, True)
    schema["additionalProperties"] = False


_DECIMALS = 1e-9  # digits behind the point that a number may have: a small model writes them for ever
_EXACT = {"multipleOf", "const", "enum"}
_NAMING = {"properties", "patternProperties"}
_OPEN = {"additionalProperties", "minProperties"}
