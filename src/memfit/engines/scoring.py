"""How likely the tokens of a text are, from the logits that a model gives before each. In the worker.

logprob = logit - log(sum of exp(logits))       in float32, the largest logit taken off first
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memfit.engines.requests import TokenScore
from memfit.errors import EngineError

__all__ = ["score_rows"]


def score_rows(rows: Any, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """`rows` are logits, float32 [tokens, vocabulary]: each what the token in its place was chosen from.

    Raises:
        EngineError: a logit is no number.
    """
    scores = []
    for row, token in zip(rows, tokens, strict=True):  # one by one: what they need beside is a row's
        most = row.max()  # NaN where any is
        if np.isnan(most):
            raise EngineError("the model computes NaN, which is no number, for this text")
        total = most + np.log(np.exp(row - most).sum())
        best = _largest(row, min(top, len(row)))
        scores.append(
            TokenScore(
                logprob=float(row[token] - total),
                is_greedy=bool(row[token] >= most),
                top=tuple((int(one), float(row[one] - total)) for one in best),
            )
        )
    return scores


def _largest(row: Any, count: int) -> Any:
    """Where the `count` largest are, the best first; of equal ones the first. Sorting all would be slow."""
    if not count:
        return ()
    least = np.partition(row, len(row) - count)[len(row) - count]
    candidates = np.flatnonzero(row >= least)
    return candidates[np.argsort(-row[candidates], kind="stable")][:count]
