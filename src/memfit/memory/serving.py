"""What a server holds beyond a command that loads a model.

    bytes = libraries + calls

A body becomes texts here and in the worker, and values of Python's. How large bodies may be follows from what
the budget has left (server/settings.py); a plan leaves room for those of usual calls.
"""

from __future__ import annotations

from memfit.units import MIB

__all__ = ["SERVING_BYTES"]

_LIBRARIES_BYTES = 8 * MIB  # Starlette, uvicorn, and what of 64 answers is on its way
_CALLS_BYTES = 24 * MIB  # bodies of 3 MiB
SERVING_BYTES = _LIBRARIES_BYTES + _CALLS_BYTES
