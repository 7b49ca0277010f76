"""What a schema says of texts beside a pattern: formats and encodings, mostly as patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfit.engines.json_schema.keywords import (
    FORMATS,
    INTEGER_FORMATS,
    NEEDS_PATTERN,
    NUMBER_FORMATS,
    PATTERNS_OF_FORMATS,
    VACUOUS_FORMATS,
)
from memfit.engines.json_schema.refusal import Refusal
from memfit.strict_json import shown

__all__ = ["encoding_pattern", "format_keywords", "media_type_rule", "names_pattern"]

_LONGEST = {"hostname": 253, "duration": 40}  # the standard's; and beyond what anybody means
_ENCODINGS = ("base64", "base64url", "base16")  # each a format of that name
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")
_PLAIN_MEDIA_TYPES = ("text/plain", "application/octet-stream")


def format_keywords(value: Any, types: Sequence[str], has_pattern: bool, pointer: str) -> dict[str, Any]:
    """The keywords that say what a format does; none where any value will do.

    `types` are those that the value may have, none for any; `has_pattern`: a pattern stands beside.
    """
    if not isinstance(value, str):
        raise Refusal(pointer, f"got {shown(value)}, needed a text")
    numbers = {"integer", "number"} & set(types)
    if numbers and "string" not in types:
        if value in INTEGER_FORMATS:
            return dict(zip(("minimum", "maximum"), INTEGER_FORMATS[value], strict=True))
        if value in NUMBER_FORMATS and "number" in numbers:
            return {}
        raise Refusal(pointer, f"{shown(value)} is no format of numbers that memfit knows; leave it out")
    if types and "string" not in types:
        raise Refusal(pointer, "a format is for texts and numbers")
    if value in PATTERNS_OF_FORMATS:
        return {"pattern": PATTERNS_OF_FORMATS[value]}
    if value in FORMATS:
        longest = {"maxLength": _LONGEST[value]} if value in _LONGEST else {}
        return {"format": value, **longest}
    if value in VACUOUS_FORMATS or (value in NEEDS_PATTERN and has_pattern):
        return {}
    raise Refusal(pointer, f"the format {shown(value)} is not enforced; write a pattern, or leave it out")


def encoding_pattern(value: Any, pointer: str) -> str | None:
    if value in _ENCODINGS:
        return PATTERNS_OF_FORMATS[value]
    if value in _PLAIN_ENCODINGS:
        return None
    names = ", ".join((*_ENCODINGS, *_PLAIN_ENCODINGS))
    raise Refusal(pointer, f"{shown(value)} is not enforced; only {names} are")


def media_type_rule(value: Any, pointer: str) -> None:
    if value not in _PLAIN_MEDIA_TYPES:
        raise Refusal(pointer, f"what is inside of a text, {shown(value)}, is not enforced; leave it out")


def names_pattern(names: Any, pointer: str) -> str:
    """A pattern for names that a schema allows."""
    if isinstance(names, dict) and names.get("type", "string") == "string":
        words = names.keys() - {"type"}
        if words == {"pattern"}:
            return str(names["pattern"])
        if words and words <= {"minLength", "maxLength"}:
            return f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
    raise Refusal(pointer, "of names only a list, a pattern or a length is enforced")
