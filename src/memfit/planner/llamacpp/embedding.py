"""What a plan for embeddings is made of: how long a text may be, and how many are computed at once. Pure.

A pass of the engine takes texts whole, unless each token attends only to those before it and the last one
tells: then a text may be longer than a pass, in parts through the KV cache.
"""

from __future__ import annotations

from dataclasses import replace

from memfit.errors import WrongValueError
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import embeds, has_cache
from memfit.planner.request import POOLINGS, Workload

__all__ = ["for_model", "longest_text", "reads_whole", "texts_at_once"]

_TEXT = 512  # tokens, where nobody says how long texts are
_TEXTS = 64  # at once: a pass of 512 tokens is full with texts of eight
_IN_PARTS = ("none", "last", "rank")


def for_model(workload: Workload, spec: ModelSpec) -> Workload:
    """The workload as this model serves it: one that can only embed does, whatever was asked.

    Raises:
        UsageError: a pooling that makes no sense here.
    """
    if embeds(spec):
        workload = replace(workload, embeds=True)
    if not workload.embeds:
        if workload.pooling:
            raise WrongValueError("pooling", " is for embeddings; it goes with --embeddings")
        return workload
    if workload.pooling == "rank" and not any(one.name.startswith("cls.") for one in spec.tensors):
        raise WrongValueError("pooling", " is 'rank'; this model has no head that scores", got="rank")
    workload = replace(workload, grammars=False, outputs=0, importance=False, probes=False)
    return replace(workload, generated_tokens=0, depth=None, kv_unified=True)


def reads_whole(workload: Workload, spec: ModelSpec) -> bool:
    """Whether a text has to fit one pass."""
    stored = spec.architecture_value("pooling_type")
    known = isinstance(stored, int) and 0 <= stored < len(POOLINGS)
    pooling = workload.pooling or (POOLINGS[stored] if known and isinstance(stored, int) else "none")
    looks_ahead = spec.architecture_value("attention.causal") is False
    return not has_cache(spec) or looks_ahead or pooling not in _IN_PARTS


def longest_text(workload: Workload, spec: ModelSpec) -> int:
    """Tokens, where texts are read whole: the context asked for, at most what the model was trained for."""
    return min(workload.context or _TEXT, spec.context_length)


def texts_at_once(workload: Workload, ubatch: int) -> int:
    """Of a pass, at most. The engine reserves for a ubatch that is divided evenly, and aborts otherwise."""
    most = min(ubatch, max(workload.parallel, _TEXTS))
    return next(count for count in range(most, 0, -1) if ubatch % count == 0)
