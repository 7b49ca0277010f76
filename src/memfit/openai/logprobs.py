"""A token with its probability, as OpenAI's APIs and Ollama's write it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memfit.engines.requests import ChosenToken

__all__ = ["token_logprobs"]

_NONE = -9999.0  # OpenAI's word for a token that could not have been chosen; JSON has no infinity


def token_logprobs(tokens: Iterable[ChosenToken]) -> list[dict[str, Any]]:
    return [
        {
            **_entry(token.piece, _NONE if token.logprob is None else token.logprob),
            "top_logprobs": [_entry(piece, logprob) for _, piece, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    """A token may be a part of a character: `bytes` has what it is."""
    return {
        "token": piece.decode(errors="replace"),
        "logprob": max(logprob, _NONE),
        "bytes": list(piece),
    }
