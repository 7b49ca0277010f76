"""What becomes of each keyword of a schema, a rule for each. check.py walks through inner schemas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from memfit.engines.json_schema.keywords import TYPES
from memfit.engines.json_schema.numbers import bound, constant, count, multiple
from memfit.engines.json_schema.pattern import PatternError, translate_pattern
from memfit.engines.json_schema.refusal import Refusal, escaped
from memfit.engines.json_schema.strings import (
    encoding_pattern,
    format_keywords,
    media_type_rule,
    names_pattern,
)
from memfit.strict_json import shown

__all__ = ["Walk", "apply_rules"]

_MOST_PROPERTIES = 1000  # of one object
_MOST_CONSTANTS = 10_000  # of one enum
_MOST_PARTS = 3000  # objects and lists inside of them
_MOST_REQUIRED_ITEMS = 10_000
_MOST_REQUIRED_LENGTH = 1_000_000
_MOST_STEPS = 8  # from reference to reference, to a list of names
_ENDLESS = 10**6  # longer than any answer: no limit
# Keywords that the engine applies to what stands before them; the others are one group to it.
_APPLICATORS = ("$ref", "const", "enum", "allOf", "anyOf")


class Walk(Protocol):
    """check.py, which walks through the whole schema."""

    choices: list[tuple[str, list[Any]]]

    def subschema(self, value: Any, pointer: str, depth: int) -> Any: ...

    def reference(self, text: Any, pointer: str) -> str: ...

    def referred(self, text: Any, pointer: str) -> tuple[Any, str]: ...


def apply_rules(value: Mapping[str, Any], pointer: str, depth: int, walk: Walk) -> Any:
    """A schema of the keywords that the engine knows; False where nothing can satisfy it.

    Raises:
        Refusal: a keyword that is wrong or cannot be enforced.
    """
    return _Rules(value, pointer, depth, walk).apply()


class _Rules:
    def __init__(self, value: Mapping[str, Any], pointer: str, depth: int, walk: Walk) -> None:
        self._value, self._pointer, self._depth, self._walk = value, pointer, depth, walk
        self._made: dict[str, Any] = {}
        self._all_of: list[Any] = []  # what must hold as well
        self._never = False

    def apply(self) -> Any:
        types = self._types()
        if types:
            self._made["type"] = types[0] if len(types) == 1 else types
        for word in self._value:
            value, pointer = self._value[word], f"{self._pointer}/{word}"
            if rule := _RULES.get(word):
                rule(self, value, pointer)
            elif taken := _VALUES.get(word):
                self._made[word] = taken(self, value, pointer)
        if self._never:
            return False
        if self._all_of:
            self._made["allOf"] = self._all_of
        made = self._ordered()
        if self._nullable and not types:
            made = {"anyOf": [made, {"type": "null"}]}
        return made

    def _ordered(self) -> dict[str, Any]:
        """Keywords of one group side by side: the engine would else intersect halves of an object. Properties
        keep their place before or after those that are referred to, as answers have them."""
        words = [word for word in self._made if word != "type"]
        own = [word for word in words if word not in _APPLICATORS]
        first = words.index(own[0]) if own else 0
        before = [word for word in words[:first] if word in _APPLICATORS]
        after = [word for word in words[first:] if word in _APPLICATORS]
        kinds = ["type"] if "type" in self._made else []
        return {word: self._made[word] for word in (*before, *kinds, *own, *after)}

    def _refuse(self, word: str, why: str) -> Any:
        raise Refusal(f"{self._pointer}/{word}", why)

    def _inner(self, value: Any, pointer: str) -> Any:
        return self._walk.subschema(value, pointer, self._depth + 1)

    # -- types -------------------------------------------------------------------------------------

    @property
    def _nullable(self) -> bool:
        """The value of OpenAPI 3.0's keyword `nullable`."""
        found = self._value.get("nullable", False)
        if not isinstance(found, bool):
            self._refuse("nullable", f"got {shown(found)}, needed true or false")
        return bool(found)

    def _types(self) -> list[str]:
        """The allowed types; empty where all are allowed."""
        found = self._value.get("type", [])
        types = [found] if isinstance(found, str) else found
        if not isinstance(types, list) or ("type" in self._value and not types):
            self._refuse("type", f"got {shown(found)}, needed a type or a list of types")
        for one in types:
            if one not in TYPES:
                self._refuse("type", f"got {shown(one)}, needed one of {', '.join(TYPES)}")
        if not types:
            # Who describes properties or items wants an object or a list.
            if "properties" in self._value:
                types = ["object"]
            elif "items" in self._value or "prefixItems" in self._value:
                types = ["array"]
        if types and self._nullable and "null" not in types:
            types = [*types, "null"]
        return list(dict.fromkeys(types))

    # -- any value ---------------------------------------------------------------------------------

    def _enum(self, value: Any, pointer: str) -> None:
        if not isinstance(value, list) or not value:
            raise Refusal(pointer, f"got {shown(value)}, needed a list of values")
        if len(value) > _MOST_CONSTANTS:
            raise Refusal(pointer, f"it has {len(value)} values, at most {_MOST_CONSTANTS} are enforced")
        left = [_MOST_PARTS]
        self._made["enum"] = [constant(one, f"{pointer}/{index}", left) for index, one in enumerate(value)]

    def _schemas(self, value: Any, pointer: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise Refusal(pointer, f"got {shown(value)}, needed a list of schemas")
        return [self._inner(one, f"{pointer}/{index}") for index, one in enumerate(value)]

    def _all(self, value: Any, pointer: str) -> None:
        self._all_of += self._schemas(value, pointer)
        self._made.setdefault("allOf", None)  # its place

    def _any(self, value: Any, pointer: str) -> None:
        self._also("anyOf", self._schemas(value, pointer))

    def _one(self, value: Any, pointer: str) -> None:
        options = self._schemas(value, pointer)
        self._walk.choices.append((pointer, options))  # to be proved once all is known
        self._also("anyOf", options)

    def _also(self, word: str, value: Any) -> None:
        """Set a keyword; where it is set already, both must hold."""
        if word in self._made:
            self._all_of.append({word: value})
            self._made.setdefault("allOf", None)
        else:
            self._made[word] = value

    def _not(self, value: Any, pointer: str) -> None:
        made = self._inner(value, pointer)
        if made is True or made == {}:
            self._never = True
        elif made is not False:
            raise Refusal(pointer, "exclusions are not enforced; say what is allowed instead")

    def _reference(self, value: Any, pointer: str) -> str:
        return f"#/$defs/{self._walk.reference(value, pointer)}"

    # -- objects -----------------------------------------------------------------------------------

    def _named(self, value: Any, pointer: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Refusal(pointer, f"got {shown(value)}, needed an object of schemas")
        if len(value) > _MOST_PROPERTIES:
            raise Refusal(pointer, f"it has {len(value)} entries, at most {_MOST_PROPERTIES} are enforced")
        return {name: self._inner(one, f"{pointer}/{escaped(name)}") for name, one in value.items()}

    def _properties(self, value: Any, pointer: str) -> None:
        self._made["properties"] = {**self._named(value, pointer), **self._made.get("properties", {})}

    def _pattern_properties(self, value: Any, pointer: str) -> None:
        made: dict[str, Any] = {}
        for pattern, one in self._named(value, pointer).items():
            key = _translated(pattern, f"{pointer}/{escaped(pattern)}", exact=True)
            if key in made:
                raise Refusal(pointer, f"{shown(pattern)} is there twice")
            made[key] = one
        self._made["patternProperties"] = made

    def _additional(self, value: Any, pointer: str) -> None:
        if "propertyNames" not in self._value:
            self._made["additionalProperties"] = self._inner(value, pointer)

    def _required(self, value: Any, pointer: str) -> None:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise Refusal(pointer, f"got {shown(value)}, needed a list of names")
        if len(value) > _MOST_PROPERTIES:
            raise Refusal(pointer, f"it has {len(value)} names, at most {_MOST_PROPERTIES} are enforced")
        self._made["required"] = list(dict.fromkeys(value))

    def _property_names(self, value: Any, pointer: str) -> None:
        """Names by a list, a pattern or a length become properties, or a pattern of properties."""
        depth = 0
        while isinstance(value, dict) and "$ref" in value and depth < _MOST_STEPS:
            value, pointer, depth = *self._walk.referred(value["$ref"], f"{pointer}/$ref"), depth + 1
        names = self._inner(value, pointer)
        other = self._value.get("additionalProperties", True)
        others = self._inner(other, f"{self._pointer}/additionalProperties")
        if names in (True, {}, {"type": "string"}):
            self._made["additionalProperties"] = others
            return
        if "patternProperties" in self._value:
            raise Refusal(pointer, "it is not enforced beside patternProperties")
        declared = self._value.get("properties", {})
        if not isinstance(declared, dict):
            return  # its own rule refuses it
        if isinstance(names, dict) and not names.keys() - {"type", "enum", "const"}:
            allowed = names.get("enum", [names["const"]] if "const" in names else [])
            if any(not isinstance(one, str) for one in allowed) or names.get("type", "string") != "string":
                raise Refusal(pointer, "names of properties are texts")
            if any(name not in allowed for name in declared):
                raise Refusal(pointer, "properties has names that it excludes")
            more = {name: others for name in allowed if name not in declared}
            self._made["properties"] = {**self._made.get("properties", {}), **more}
            self._made["additionalProperties"] = False
            return
        if declared or self._value.get("required"):
            raise Refusal(pointer, "beside properties and required only a list of names is enforced")
        self._made["patternProperties"] = {names_pattern(names, pointer): others}
        self._made["additionalProperties"] = False

    def _least_properties(self, value: Any, pointer: str) -> None:
        least, required = count(value, pointer), self._value.get("required")
        names = required if isinstance(required, list) else []
        known = len({name for name in names if isinstance(name, str)})
        if least > known + 1:
            # The engine counts a name that comes twice twice.
            raise Refusal(pointer, f"at most {known + 1} is enforced here; name more properties in required")
        if least > known:
            self._made["minProperties"] = least

    def _unevaluated(self, value: Any, pointer: str) -> None:
        """As additionalProperties or items, where no other schema beside it describes properties or items."""
        is_object = pointer.endswith("/unevaluatedProperties")
        word, other = ("additionalProperties", "propertyNames") if is_object else ("items", "contains")
        made = self._inner(value, pointer)
        if made is True or made == {}:
            return
        if not self._value.keys().isdisjoint((*_APPLICATORS, "oneOf", word, other)):
            raise Refusal(pointer, f"it is not enforced beside other schemas; use {word}")
        self._made[word] = made

    # -- lists -------------------------------------------------------------------------------------

    def _items(self, value: Any, pointer: str) -> None:
        if not isinstance(value, list):
            self._made["items"] = self._inner(value, pointer)
            return
        if "prefixItems" in self._value:
            raise Refusal(pointer, "beside prefixItems it is one schema, for the items after those")
        if value:
            self._made["prefixItems"] = self._schemas(value, pointer)
        rest = self._value.get("additionalItems", True)
        self._made["items"] = self._inner(rest, f"{self._pointer}/additionalItems")

    def _additional_items(self, value: Any, pointer: str) -> None:
        if not isinstance(self._value.get("items"), list):
            raise Refusal(pointer, "it means something beside a list of items only; use items")

    def _unique(self, value: Any, pointer: str) -> None:
        if not isinstance(value, bool):
            raise Refusal(pointer, f"got {shown(value)}, needed true or false")
        if value and self._value.get("maxItems") not in (0, 1):
            raise Refusal(pointer, "that items differ is not enforced; leave it out and check the answer")

    def _contains(self, value: Any, pointer: str) -> None:
        least = self._value.get("minContains", 1)
        if least != 0 or "maxContains" in self._value:
            raise Refusal(pointer, "it is not enforced; describe the items by items or prefixItems")

    def _contains_count(self, value: Any, pointer: str) -> None:
        if "contains" not in self._value:
            raise Refusal(pointer, "it means something beside contains only")

    def _most_inside(self, value: Any, pointer: str) -> None:
        """maxItems and maxProperties."""
        most = count(value, pointer)
        if most < _ENDLESS:
            self._made[pointer.rpartition("/")[2]] = most

    # -- texts and numbers -------------------------------------------------------------------------

    def _most_length(self, value: Any, pointer: str) -> None:
        most = min(count(value, pointer), self._made.get("maxLength", math.inf))
        if most < _ENDLESS:
            self._made["maxLength"] = int(most)

    def _pattern(self, value: Any, pointer: str) -> None:
        if not isinstance(value, str):
            raise Refusal(pointer, f"got {shown(value)}, needed a regular expression")
        self._also("pattern", _translated(value, pointer))

    def _format(self, value: Any, pointer: str) -> None:
        has_pattern = "pattern" in self._value
        for word, found in format_keywords(value, self._types(), has_pattern, pointer).items():
            if word == "maxLength":
                self._most_length(found, pointer)
            elif word in ("minimum", "maximum"):
                self._bounded(word, found)
            else:
                self._also(word, found)

    def _encoding(self, value: Any, pointer: str) -> None:
        if pattern := encoding_pattern(value, pointer):
            self._also("pattern", pattern)

    def _bounded(self, word: str, value: float) -> None:
        pick: Callable[..., float] = max if word == "minimum" else min
        self._made[word] = pick(value, self._made.get(word, value))

    def _bound(self, value: Any, pointer: str) -> None:
        """minimum and maximum."""
        word = pointer.rpartition("/")[2]
        if self._value.get(f"exclusive{word.capitalize()}") is not True:  # draft 4's way to say it
            self._bounded(word, bound(value, pointer, is_lower=word == "minimum"))

    def _exclusive_bound(self, value: Any, pointer: str) -> None:
        """exclusiveMinimum and exclusiveMaximum."""
        if value is False:
            return
        word = pointer.rpartition("/")[2]
        number = self._value.get(word.removeprefix("exclusive").lower()) if value is True else value
        self._made[word] = bound(number, pointer, is_lower=word == "exclusiveMinimum")


def _at_most(most: int) -> Callable[[_Rules, Any, str], int]:
    def check(_: _Rules, value: Any, pointer: str) -> int:
        number = count(value, pointer)
        if number > most:
            raise Refusal(pointer, f"got {number}, at most {most} is enforced")
        return number

    return check


def _translated(pattern: str, pointer: str, *, exact: bool = False) -> str:
    try:
        return translate_pattern(pattern, exact=exact)
    except PatternError as error:
        raise Refusal(pointer, str(error)) from None


_RULES: dict[str, Callable[[_Rules, Any, str], None]] = {
    "enum": _Rules._enum,
    "allOf": _Rules._all,
    "anyOf": _Rules._any,
    "oneOf": _Rules._one,
    "not": _Rules._not,
    "properties": _Rules._properties,
    "patternProperties": _Rules._pattern_properties,
    "additionalProperties": _Rules._additional,
    "required": _Rules._required,
    "propertyNames": _Rules._property_names,
    "minProperties": _Rules._least_properties,
    "maxProperties": _Rules._most_inside,
    "unevaluatedProperties": _Rules._unevaluated,
    "items": _Rules._items,
    "additionalItems": _Rules._additional_items,
    "unevaluatedItems": _Rules._unevaluated,
    "maxItems": _Rules._most_inside,
    "uniqueItems": _Rules._unique,
    "contains": _Rules._contains,
    "minContains": _Rules._contains_count,
    "maxContains": _Rules._contains_count,
    "maxLength": _Rules._most_length,
    "pattern": _Rules._pattern,
    "format": _Rules._format,
    "contentEncoding": _Rules._encoding,
    "contentMediaType": lambda _, value, pointer: media_type_rule(value, pointer),
    "minimum": _Rules._bound,
    "maximum": _Rules._bound,
    "exclusiveMinimum": _Rules._exclusive_bound,
    "exclusiveMaximum": _Rules._exclusive_bound,
}
# Of keywords that stay: the value that the engine takes.
_VALUES: dict[str, Callable[[_Rules, Any, str], Any]] = {
    "const": lambda _, value, pointer: constant(value, pointer, [_MOST_PARTS]),
    "$ref": _Rules._reference,
    "prefixItems": _Rules._schemas,
    "minItems": _at_most(_MOST_REQUIRED_ITEMS),
    "minLength": _at_most(_MOST_REQUIRED_LENGTH),
    "multipleOf": lambda _, value, pointer: multiple(value, pointer),
}
