"""Numbers and constants of a schema: as exact as the engine reads them, or refused.

The engine holds numbers as doubles, so whole numbers beyond 2^53 lose their last digits. Bounds move inwards
to where every number is exact; larger constants are refused.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from memfit.engines.json_schema.refusal import Refusal, escaped
from memfit.strict_json import shown

__all__ = ["bound", "constant", "count", "multiple"]

_MOST_EXACT = 2**53 - 1
_LEAST = 1e-9  # numbers nearer to 0 have too many digits for the engine's expressions
_MOST_MULTIPLE = 10_000  # the engine counts remainders, one state each
_MOST_PLACES = 9


def count(value: Any, pointer: str) -> int:
    """A number of items, characters or properties; JSON Schema takes 2.0 for 2."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refusal(pointer, f"got {shown(value)}, needed a whole number from 0")
    return value


def _number(value: Any, pointer: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 10**300:
        raise Refusal(pointer, f"got {shown(value)}, needed a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def bound(value: Any, pointer: str, *, is_lower: bool) -> int | float:
    """A minimum or maximum, moved inwards where it is none that the engine holds exactly."""
    number = _number(value, pointer)
    if 0 < abs(number) < _LEAST:
        raise Refusal(pointer, f"got {shown(value)}, bounds nearer to 0 than {_LEAST:g} are not enforced")
    if abs(number) <= _MOST_EXACT:
        return number
    if is_lower == (number > 0):
        raise Refusal(pointer, f"got {shown(value)}, numbers beyond 2^53 are not enforced")
    return -_MOST_EXACT if is_lower else _MOST_EXACT


def multiple(value: Any, pointer: str) -> int | float:
    number = _number(value, pointer)
    if number <= 0:
        raise Refusal(pointer, f"got {shown(value)}, needed a number above 0")
    sign = Decimal(str(number)).normalize().as_tuple()
    places = -min(0, int(sign.exponent))
    if places > _MOST_PLACES or number * 10**places > _MOST_MULTIPLE:
        raise Refusal(
            pointer,
            f"got {shown(value)}, what is enforced has at most {_MOST_PLACES} decimal places, and at most "
            f"{_MOST_MULTIPLE} of the last of them",
        )
    return number


def constant(value: Any, pointer: str, left: list[int]) -> Any:
    """A value as the engine writes it exactly; `left` counts down objects and lists that may still come."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        number = _number(value, pointer)
        if abs(number) > _MOST_EXACT or 0 < abs(number) < _LEAST:
            raise Refusal(pointer, f"got {shown(value)}, a number that cannot be enforced exactly")
        return number if number else 0
    if isinstance(value, str):
        for sign in value:
            if (sign < " " and sign not in "\n\r\t\b\f") or sign == "\x7f":
                raise Refusal(pointer, f"it holds the control character \\u{ord(sign):04x}")
        return value
    left[0] -= 1
    if left[0] < 0:
        raise Refusal(pointer, "the constants have too many parts")
    if isinstance(value, list):
        return [constant(one, f"{pointer}/{index}", left) for index, one in enumerate(value)]
    return {key: constant(one, f"{pointer}/{escaped(key)}", left) for key, one in value.items()}
