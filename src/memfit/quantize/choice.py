"""Which type each tensor gets under a cap on the file: the least expected loss, by HiGHS. Pure.

    minimise  sum of losses    where  sum of bytes <= cap, and each tensor has one type

Losses of tensors are taken to add up. They do where each is small; where all are large, the order still holds
(docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memfit.planner.integer_program import IntegerProgram
from memfit.units import KIB

__all__ = ["Option", "choose"]

_SECONDS = 5.0
_ENOUGH = 1e-4  # the share at which the search ends


@dataclass(frozen=True, kw_only=True)
class Option:
    """A tensor in one type."""

    size_bytes: int
    loss: float  # expected, in nats a token


def choose(options: Mapping[str, Mapping[str, Option]], cap_bytes: int) -> dict[str, str] | None:
    """A type for each tensor, by name; None where even the smallest are larger than the cap."""
    smallest = sum(min(one.size_bytes for one in kinds.values()) for kinds in options.values())
    if smallest > cap_bytes:
        return None
    most = max((one.loss for kinds in options.values() for one in kinds.values()), default=0.0) or 1.0
    program = IntegerProgram(enough=_ENOUGH)
    columns: dict[str, dict[str, int]] = {}
    for name, kinds in options.items():
        columns[name] = {kind: program.column(one.loss / most, 1) for kind, one in _useful(kinds).items()}
        program.row(((column, 1) for column in columns[name].values()), 1, 1)
    sizes = [
        (column, options[name][kind].size_bytes / KIB)  # bytes would be large numbers beside ones
        for name, kinds in columns.items()
        for kind, column in kinds.items()
    ]
    program.row(sizes, 0, cap_bytes / KIB)
    values, _ = program.minimise(_SECONDS)
    if values is None:  # no time: all begin as the smallest
        chosen = {name: next(iter(kinds)) for name, kinds in columns.items()}
    else:
        chosen = {name: max(kinds, key=lambda kind: values[kinds[kind]]) for name, kinds in columns.items()}
    return _within(chosen, options, cap_bytes)


def _useful(kinds: Mapping[str, Option]) -> dict[str, Option]:
    """Without types that another beats in size and in loss."""
    found: dict[str, Option] = {}
    for kind, one in sorted(kinds.items(), key=lambda item: (item[1].size_bytes, item[1].loss)):
        if not found or one.loss < min(other.loss for other in found.values()):
            found[kind] = one
    return found


def _within(
    chosen: dict[str, str], options: Mapping[str, Mapping[str, Option]], cap_bytes: int
) -> dict[str, str]:
    """What the solver rounded a little above the cap, put right; and what it left, spent."""
    size = sum(options[name][kind].size_bytes for name, kind in chosen.items())
    while True:
        left = cap_bytes - size
        steps = [
            (name, kind, one.size_bytes - old.size_bytes, old.loss - one.loss)
            for name, had in chosen.items()
            for kind, one in options[name].items()
            for old in (options[name][had],)
            if (one.size_bytes < old.size_bytes if left < 0 else one.loss < old.loss)
            and (left < 0 or 0 < one.size_bytes - old.size_bytes <= left)
        ]
        if not steps:
            return chosen
        # The least loss for a byte that is saved; or the most gained.
        name, kind, more, _ = max(
            steps, key=lambda one: one[3] / abs(one[2]) if left >= 0 else one[3] / -one[2]
        )
        chosen[name] = kind
        size += more
