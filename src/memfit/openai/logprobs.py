"""Tokens with their probabilities, as OpenAI's chats and completions and llama-server write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memfit.engines.requests import ChosenToken

__all__ = ["LOWEST", "chat_logprobs", "completion_logprobs", "llama_probabilities"]

LOWEST = -3.4028234663852886e38  # for -inf, which JSON has not


def chat_logprobs(tokens: Sequence[ChosenToken]) -> dict[str, Any]:
    return {"content": [_entry(one, "logprob", "top_logprobs") for one in tokens], "refusal": None}


def llama_probabilities(tokens: Sequence[ChosenToken], *, after: bool) -> list[dict[str, Any]]:
    """llama-server's: with ids, and `after` sampling as probabilities."""
    return [
        _entry(one, "prob", "top_probs") if after else _entry(one, "logprob", "top_logprobs")
        for one in tokens
    ]


def completion_logprobs(tokens: Sequence[ChosenToken], *, offset: int) -> dict[str, Any]:
    """The legacy form; texts begin at `offset`. The first token of a prompt has no probability."""
    texts = [_text(one.piece) for one in tokens]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [None if one.logprob is None else _finite(one.logprob) for one in tokens],
        "top_logprobs": [
            None
            if one.logprob is None
            else {_text(piece): _finite(logprob) for _, piece, logprob in reversed(one.top)}
            for one in tokens
        ],
        "text_offset": offsets[:-1],
    }


def _entry(chosen: ChosenToken, value: str, top: str) -> dict[str, Any]:
    assert chosen.logprob is not None, "probabilities were asked for"
    return {
        **_token(chosen.token, chosen.piece, chosen.logprob, value),
        top: [_token(token, piece, logprob, value) for token, piece, logprob in chosen.top],
    }


def _token(token: int, piece: bytes, logprob: float, value: str) -> dict[str, Any]:
    chance = math.exp(logprob) if value == "prob" else _finite(logprob)
    return {"id": token, "token": _text(piece), "bytes": list(piece), value: chance}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
