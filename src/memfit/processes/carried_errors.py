"""Errors that cross from one process to another: as JSON there, and of the same class again here."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from memfit import errors
from memfit.errors import MemfitError

__all__ = ["carry_error", "rebuild_error"]


def carry_error(error: MemfitError) -> dict[str, Any]:
    """`error` as a JSON object: its class, its text and what else it holds."""
    kind = next(one for one in type(error).__mro__ if one.__module__ == errors.__name__)
    values = {
        name: value if isinstance(value, (int, float, tuple, dict, NoneType)) else str(value)
        for name, value in vars(error).items()
    }
    return {"kind": kind.__name__, "text": str(error), "values": values}


def rebuild_error(carried: Mapping[str, Any], more: str = "") -> MemfitError:
    """The error as it was raised, with `more` after its text."""
    kind: type[MemfitError] = getattr(errors, carried["kind"])
    text = carried["text"] + more
    error = kind.__new__(kind, text)
    # Not by its own __init__, which makes the text of the parts.
    Exception.__init__(error, text)
    for name, value in carried.get("values", {}).items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error
