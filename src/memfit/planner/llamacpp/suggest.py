"""What to do when nothing fits: changes of what was asked that do fit, one option each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace

from memfit.memory.estimate import LlamaConfig
from memfit.planner.request import KV_TYPES
from memfit.units import MIB

__all__ = ["suggestions"]

_CONTEXT_STEP = 256  # the engine rounds up to it
_RAM_STEP = 16 * MIB
_SPARES = (0.0, 0.02, 0.1, 0.3)  # another budget is another placement, which may need more


def suggestions(
    smallest: LlamaConfig,
    fits: Callable[[LlamaConfig, int], bool],
    *,
    needs_bytes: int,
    room_bytes: int,
    limit_bytes: int,
    free_bytes: int,
) -> Iterator[str]:
    """Options of the command line.

    `smallest` is the smallest configuration of what was asked, not placed yet. Of RAM it `needs_bytes`
    and `room_bytes` more, may use `limit_bytes`, and `free_bytes` are free. Whether a configuration
    `fits` is asked with a limit of RAM.
    """
    context = _longest_context(smallest, lambda one: fits(one, limit_bytes))
    if context:
        yield f"--ctx {context}"
    for kv_type in KV_TYPES[KV_TYPES.index(smallest.kv_type) + 1 :]:
        if fits(replace(smallest, kv_type=kv_type), limit_bytes):
            yield f"--kv-type {kv_type}"
            break
    if smallest.parallel > 1 and not smallest.embeds and fits(replace(smallest, parallel=1), limit_bytes):
        yield "--parallel 1"
    enough = _enough_ram(needs_bytes, room_bytes, free_bytes, lambda limit: fits(smallest, limit))
    if enough:
        yield f"--ram {enough // MIB}MiB"
    elif not context:
        yield "a smaller quantization of this model"


def _longest_context(smallest: LlamaConfig, fits: Callable[[LlamaConfig], bool]) -> int | None:
    """The largest multiple of 256 below the context that fits, or None; memory grows with it."""
    contexts = range((smallest.context - 1) // _CONTEXT_STEP * _CONTEXT_STEP, 0, -_CONTEXT_STEP)
    found = bisect_left(contexts, True, key=lambda context: fits(replace(smallest, context=context)))
    return contexts[found] if found < len(contexts) else None


def _enough_ram(
    needs_bytes: int, room_bytes: int, free_bytes: int, fits: Callable[[int], bool]
) -> int | None:
    """A RAM budget, in whole MiB, that is free and enough; None if none."""
    most = free_bytes // MIB * MIB
    for spare in _SPARES:
        least = int(needs_bytes * (1 + spare)) + room_bytes
        enough = min(-(-least // _RAM_STEP) * _RAM_STEP, most)
        if enough >= least and fits(enough):
            return enough
    return None
