"""Checks a schema as a whole: some finite answer satisfies it, no reference runs in a circle, and
alternatives exclude each other where they must. Takes schemas as check.py makes them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from memfit.engines.json_schema.keywords import TYPES
from memfit.engines.json_schema.refusal import Refusal

__all__ = ["Meaning", "definition_name", "inner_schemas"]

_MOST_COMBINATIONS = 1000  # of alternatives that must hold together: the engine multiplies them out
_MOST_COMMON_MULTIPLE = 100_000
_MOST_COMPARISONS = 20_000  # of alternatives with each other, in all of a schema: half a second
_MOST_PATTERN_PAIRS = 10_000  # of names in one object: the engine proves that no name matches both
_DEPTH = 8  # of references and alternatives that are looked through to tell two schemas apart


class Meaning:
    """`places` are the schemas with their pointers, inner ones first, the whole one among them."""

    def __init__(self, root: Any, definitions: Mapping[str, Any], places: Sequence[tuple[str, Any]]) -> None:
        self._root = root
        self._definitions = definitions
        self._places = places
        self._productive = dict.fromkeys(definitions, False)
        self._widths: dict[str, int] = {}
        self._comparisons = 0

    def check(self) -> None:
        """Raises Refusal. Optional parts that no finite answer could have are forbidden."""
        self._check_circles()
        self._check_combinations()
        self._find_productive()
        if not self._is_productive(self._root):
            # The innermost place that nothing satisfies, among those that the whole needs.
            dead_ends = (pointer for pointer, made in self._places if not self._is_productive(made))
            raise Refusal(
                next(dead_ends, "#"), "nothing satisfies it: it would have to hold itself, or nothing at all"
            )
        for schema in (self._root, *self._definitions.values()):
            self._cut_endless(schema)

    def _check_circles(self) -> None:
        """Refuse a definition that refers to itself with nothing around it."""
        state: dict[str, int] = {}

        def visit(name: str) -> None:
            if state.get(name) == 1:
                made = self._definitions[name]
                pointer = next((pointer for pointer, one in self._places if one is made), "#")
                raise Refusal(pointer, "it refers to itself, and to nothing else")
            if name in state:
                return
            state[name] = 1
            for following in _in_place(self._definitions[name]):
                visit(following)
            state[name] = 2

        for name in self._definitions:
            visit(name)

    def _find_productive(self) -> None:
        """The definitions that some finite value satisfies, from those without references up."""
        changed = True
        while changed:
            changed = False
            for name, schema in self._definitions.items():
                if not self._productive[name] and self._is_productive(schema):
                    self._productive[name] = changed = True

    def _is_productive(self, schema: Any) -> bool:
        if isinstance(schema, bool):
            return schema
        if "$ref" in schema and not self._productive[definition_name(schema)]:
            return False
        if not all(map(self._is_productive, schema.get("allOf", ()))):
            return False
        if "anyOf" in schema and not any(map(self._is_productive, schema["anyOf"])):
            return False
        if "const" in schema or "enum" in schema:
            return True
        return any(self._has_values(kind, schema) for kind in _types(schema) or TYPES)

    def _has_values(self, kind: str, schema: Mapping[str, Any]) -> bool:
        if kind == "object":
            properties = schema.get("properties", {})
            others = schema.get("additionalProperties", True)
            patterns = schema.get("patternProperties")
            return all(
                self._is_productive(properties[name])
                if name in properties
                else bool(patterns) or self._is_productive(others)
                for name in schema.get("required", ())
            )
        if kind == "array":
            first = schema.get("prefixItems", ())
            least = schema.get("minItems", 0)
            if least > len(first) and not self._is_productive(schema.get("items", True)):
                return False
            return all(map(self._is_productive, first[:least]))
        return True

    def _cut_endless(self, schema: Any) -> None:
        """Forbid optional parts that no finite answer can have: an answer that began one would never end."""
        if not isinstance(schema, dict):
            return
        for _, inner in inner_schemas(schema):
            self._cut_endless(inner)
        for word in ("properties", "patternProperties"):
            for name, inner in schema.get(word, {}).items():
                if not self._is_productive(inner):
                    schema[word][name] = False
        for word in ("additionalProperties", "items"):
            if not self._is_productive(schema.get(word, True)):
                schema[word] = False
        if "anyOf" in schema:
            schema["anyOf"] = [one for one in schema["anyOf"] if self._is_productive(one)]
        if "prefixItems" in schema:
            schema["prefixItems"] = [
                one if self._is_productive(one) else False for one in schema["prefixItems"]
            ]

    def _check_combinations(self) -> None:
        multiples: set[Decimal] = set()
        meets = False
        pairs = 0
        for pointer, schema in self._places:
            if self._width(schema) > _MOST_COMBINATIONS:
                raise Refusal(
                    pointer,
                    f"its alternatives come to more than {_MOST_COMBINATIONS} combinations; say less at once",
                )
            if isinstance(schema, dict):
                pairs += len(schema.get("patternProperties", ())) ** 2
                if pairs > _MOST_PATTERN_PAIRS:
                    raise Refusal(f"{pointer}/patternProperties", "too many patterns; write fewer, with |")
                meets = meets or "allOf" in schema or ("$ref" in schema and len(schema) > 1)
                if "multipleOf" in schema:
                    multiples.add(Decimal(str(schema["multipleOf"])))
        if meets and _common_multiple(multiples) > _MOST_COMMON_MULTIPLE:
            raise Refusal("#", "its multipleOf have too large a common multiple")

    def _width(self, schema: Any) -> int:
        """Alternatives that the engine multiplies out, at most one more than is allowed."""
        if not isinstance(schema, dict):
            return 1
        factors = [self._width(one) for one in schema.get("allOf", ())]
        if "anyOf" in schema:
            factors.append(sum(map(self._width, schema["anyOf"])))
        if "$ref" in schema and len(schema) > 1:
            name = definition_name(schema)
            if name not in self._widths:
                self._widths[name] = 1  # of a circle
                self._widths[name] = self._width(self._definitions[name])
            factors.append(self._widths[name])
        return min(math.prod(factors), _MOST_COMBINATIONS + 1)

    def overlap(self, options: Sequence[Any], pointer: str) -> tuple[int, int] | None:
        """Two alternatives of which it cannot be told that never both hold; None where there are none.

        Raises:
            Refusal: telling takes too long.
        """
        if self._have_tags(options):
            return None
        for (first, one), (second, other) in itertools.combinations(enumerate(options), 2):
            is_disjoint = self._disjoint(one, other, _DEPTH)
            if self._comparisons > _MOST_COMPARISONS:
                raise Refusal(
                    pointer,
                    "its alternatives are too many to tell apart; use anyOf, or give each a required field "
                    "with a constant of its own",
                )
            if not is_disjoint:
                return first, second
        return None

    def _have_tags(self, options: Sequence[Any]) -> bool:
        """Whether each has constants of its own, or all require a property that has; no pairs are made."""
        tags = [self._tags(one) for one in options]
        for name in set(tags[0]).intersection(*tags[1:]):
            values = [value for each in tags for value in each[name]]
            if len(values) == len(set(values)):
                return True
        return False

    def _tags(self, schema: Any) -> dict[str | None, set[str]]:
        """By None the constants that it may be; of an object alone, those of properties that it requires."""
        parts = list(self._together(schema))
        for part in parts:
            if constants := _constants(part):
                return {None: constants}
        if not any(_types(part) == ("object",) for part in parts):
            return {}
        required = {name for part in parts for name in part.get("required", ())}
        return {
            name: constants
            for part in parts
            for name, value in part.get("properties", {}).items()
            if name in required and isinstance(value, dict) and (constants := _constants(value))
        }

    def _disjoint(self, one: Any, other: Any, depth: int) -> bool:
        self._comparisons += 1
        if one is False or other is False:
            return True
        if self._comparisons > _MOST_COMPARISONS:
            return False
        if depth == 0 or one is True or other is True:
            return False
        mine, theirs = list(self._together(one)), list(self._together(other))
        sides = [*((part, other) for part in mine), *((part, one) for part in theirs)]
        for part, that in sides:
            if "anyOf" in part and all(self._disjoint(each, that, depth - 1) for each in part["anyOf"]):
                return True
        if any(_constants_differ(this, that) for this in mine for that in theirs):
            return True
        common = set(TYPES).intersection(*map(_widened, (*mine, *theirs)))
        if not common:
            return True
        return common == {"object"} and self._properties_differ(mine, theirs, depth)

    def _together(self, schema: Any) -> Iterator[Mapping[str, Any]]:
        """A schema and what must hold with it."""
        if isinstance(schema, dict):
            yield schema
            if "$ref" in schema:
                yield from self._together(self._definitions[definition_name(schema)])
            for inner in schema.get("allOf", ()):
                yield from self._together(inner)

    def _properties_differ(
        self, mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], depth: int
    ) -> bool:
        """Whether a property that one of them requires has no value that both allow."""
        required = {name for part in (*mine, *theirs) for name in part.get("required", ())}
        return any(
            self._disjoint(this["properties"][name], that["properties"][name], depth - 1)
            for this in mine
            for that in theirs
            for name in required & this.get("properties", {}).keys() & that.get("properties", {}).keys()
        )


def _common_multiple(numbers: Collection[Decimal]) -> int:
    """The least common multiple of decimal numbers, in units of their last decimal place."""
    places = max((-int(one.normalize().as_tuple().exponent) for one in numbers), default=0)
    return math.lcm(*(int(one.scaleb(max(0, places))) for one in numbers))


def definition_name(schema: Mapping[str, Any]) -> str:
    """Of the definition that a schema refers to."""
    return str(schema["$ref"]).rpartition("/")[2]


def inner_schemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas that stand directly in a schema, each with its keyword."""
    for word in ("allOf", "anyOf", "prefixItems"):
        yield from ((word, inner) for inner in schema.get(word, ()))
    for word in ("properties", "patternProperties"):
        yield from ((word, inner) for inner in schema.get(word, {}).values())
    yield from ((word, schema[word]) for word in ("additionalProperties", "items") if word in schema)


def _in_place(schema: Any) -> Iterator[str]:
    """Definitions that a schema refers to for the same value."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield definition_name(schema)
        for word in ("allOf", "anyOf"):
            for inner in schema.get(word, ()):
                yield from _in_place(inner)


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    found = schema.get("type", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _constants(schema: Mapping[str, Any]) -> set[str] | None:
    """The only values that a schema allows, as text; None where they are not counted."""
    if "const" in schema:
        return {_text(schema["const"])}
    if "enum" in schema:
        return set(map(_text, schema["enum"]))
    return None


def _constants_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    mine, theirs = _constants(one), _constants(other)
    return mine is not None and theirs is not None and mine.isdisjoint(theirs)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _widened(schema: Mapping[str, Any]) -> set[str]:
    """Types that a schema's values may have; a whole number is a number."""
    constants = [schema["const"]] if "const" in schema else schema.get("enum")
    types = set(map(_type, constants)) if constants is not None else set(_types(schema) or TYPES)
    if "number" in types or "integer" in types:
        types |= {"number", "integer"}
    return types


def _type(value: Any) -> str:
    return next((kind for kind, python in _PYTHON.items() if isinstance(value, python)), "null")


# In this order: a Python bool is an int, too.
_PYTHON: dict[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
}
