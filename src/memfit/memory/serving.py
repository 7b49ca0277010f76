"""What a server holds beyond a command that loads a model: its libraries, and the bodies of its calls.

    bytes = base + factor * (held bodies) + values

A body becomes Python's texts, which take one to four times its bytes, and texts and tokens in the worker. So
the bytes of all bodies that are held at a time are limited, and the values of one: numbers, texts, lists.
"""

from __future__ import annotations

from memfit.units import MIB

__all__ = ["MOST_VALUES", "body_limit_bytes", "held_limit_bytes", "serving_bytes"]

_BASE_BYTES = 8 * MIB  # Starlette, uvicorn, and what of 64 answers is on its way
_BODY_BYTES = MIB  # beside the text: tools, schemas, names
_TOKEN_BYTES = 32  # of a body for each token of the context, escapes included
_FACTOR = 3
MOST_VALUES = 100_000  # of one body
_VALUE_BYTES = 80


def serving_bytes(context: int) -> int:
    """What a plan counts."""
    return _BASE_BYTES + _FACTOR * held_limit_bytes(context) + MOST_VALUES * _VALUE_BYTES


def body_limit_bytes(context: int) -> int:
    """Of one call."""
    return _BODY_BYTES + _TOKEN_BYTES * context


def held_limit_bytes(context: int) -> int:
    """Of all calls that are held at a time."""
    return body_limit_bytes(context) + MIB
