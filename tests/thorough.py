"""How often random trials are repeated: a few times in `make test`, many times in `make test-all`."""

from __future__ import annotations

import os

__all__ = ["THOROUGH", "times"]

THOROUGH = os.environ.get("MEMFIT_THOROUGH", "") not in ("", "0")


def times(few: int, many: int) -> int:
    """How many trials: `many` with MEMFIT_THOROUGH=1, which `make test-all` sets."""
    return many if THOROUGH else few
