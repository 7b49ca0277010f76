"""How often random trials are repeated, and which cases tried: few in `make test`, all in `make test-all`."""

from __future__ import annotations

import os
from typing import TypeVar

__all__ = ["THOROUGH", "cases", "times"]

_T = TypeVar("_T")
THOROUGH = os.environ.get("MEMFIT_THOROUGH", "") not in ("", "0")


def times(few: int, many: int) -> int:
    """How many trials: `many` with MEMFIT_THOROUGH=1, which `make test-all` sets."""
    return many if THOROUGH else few


def cases(few: list[_T], *others: _T) -> list[_T]:
    """Which cases are tried: `others` too with MEMFIT_THOROUGH=1."""
    return [*few, *others] if THOROUGH else few
