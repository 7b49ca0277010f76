"""Tokens with their probabilities, as OpenAI's APIs, Ollama's and llama-server's write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from memfit.engines.requests import ChosenToken

__all__ = ["chat_logprobs", "completion_logprobs", "llama_probabilities", "token_logprobs"]

_NEVER = -9999.0  # OpenAI's word for a token that could not have been chosen; JSON has no infinity


def chat_logprobs(tokens: Sequence[ChosenToken]) -> dict[str, Any]:
    return {"content": token_logprobs(tokens), "refusal": None}


def token_logprobs(tokens: Iterable[ChosenToken]) -> list[dict[str, Any]]:
    return [
        {
            **_token(one.piece, one.logprob),
            "top_logprobs": [_token(piece, logprob) for _, piece, logprob in one.top],
        }
        for one in tokens
    ]


def llama_probabilities(tokens: Iterable[ChosenToken], *, after: bool) -> list[dict[str, Any]]:
    """llama-server's: with ids, and where they are of what is left `after` sampling no logarithms."""
    return [
        {
            **_numbered(one.token, one.piece, one.logprob, after=after),
            "top_probs" if after else "top_logprobs": [_numbered(*each, after=after) for each in one.top],
        }
        for one in tokens
    ]


def completion_logprobs(tokens: Sequence[ChosenToken], *, offset: int) -> dict[str, Any]:
    """The legacy form; texts begin at `offset`. Nothing stands before a prompt's first token: it is given,
    with a logprob of 0 and no others, since OpenAI's own client takes no null in either list."""
    texts = [_text(one.piece) for one in tokens]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [0.0 if one.logprob is None else max(one.logprob, _NEVER) for one in tokens],
        "top_logprobs": [
            {_text(piece): max(logprob, _NEVER) for _, piece, logprob in reversed(one.top)} for one in tokens
        ],
        "text_offset": offsets[:-1],
    }


def _numbered(token: int, piece: bytes, logprob: float | None, *, after: bool) -> dict[str, Any]:
    found = {"id": token, **_token(piece, logprob)}
    return {**found, "prob": math.exp(found.pop("logprob"))} if after else found


def _token(piece: bytes, logprob: float | None) -> dict[str, Any]:
    """A token may be a part of a character: `bytes` has what it is."""
    return {
        "token": _text(piece),
        "logprob": _NEVER if logprob is None else max(logprob, _NEVER),
        "bytes": list(piece),
    }


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="replace")
