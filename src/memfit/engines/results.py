"""What a worker sends of a request: its answer, its scores, its embedding, or its error. request_stream.py
reads it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memfit.engines.channel import Channel
from memfit.engines.requests import (
    ChosenToken,
    Completion,
    Progress,
    PromptText,
    StreamTotals,
    TokenScore,
)
from memfit.errors import MemfitError
from memfit.processes.carried_errors import carry_error

__all__ = [
    "send_answer",
    "send_beginning",
    "send_embedding",
    "send_failure",
    "send_logits",
    "send_progress",
    "send_prompt",
    "send_rows",
    "send_scores",
    "send_text",
]


def send_answer(
    channel: Channel, number: int, completion: Completion, totals: StreamTotals | None = None
) -> None:
    """`totals` are the stream's so far, where they are known."""
    channel.send("answer", number=number, completion=asdict(completion), totals=totals and vars(totals))


def send_beginning(channel: Channel, number: int, prompt_tokens: int, ending: str) -> None:
    """A request is accepted; `ending` is the end of its prompt, where a template made it."""
    channel.send("begun", number=number, prompt_tokens=prompt_tokens, ending=ending)


def send_text(channel: Channel, number: int, text: str, tokens: Sequence[ChosenToken]) -> None:
    named = [
        [
            one.token,
            one.piece.decode("latin-1"),
            one.logprob,
            [[token, piece.decode("latin-1"), logprob] for token, piece, logprob in one.top],
        ]
        for one in tokens
    ]
    channel.send("text", number=number, text=text, **({"tokens": named} if named else {}))


def send_progress(channel: Channel, progress: Progress) -> None:
    channel.send("prompt_progress", **vars(progress))


def send_prompt(channel: Channel, number: int, prompt: PromptText) -> None:
    pieces = [one.decode("latin-1") for one in prompt.pieces]
    channel.send("prompt", number=number, text=prompt.text, tokens=prompt.tokens, pieces=pieces)


def send_rows(channel: Channel, number: int, data: bytes) -> None:
    """Rows of an embedding, float32, others to follow. As base64: decimals would take five times as long."""
    channel.send("rows", number=number, data=base64.b64encode(data).decode())


def send_embedding(
    channel: Channel, number: int, data: bytes, *, width: int, prompt_tokens: int, totals: StreamTotals
) -> None:
    """The last rows, or all of them, of `width` numbers each."""
    channel.send(
        "embedding",
        number=number,
        data=base64.b64encode(data).decode(),
        width=width,
        prompt_tokens=prompt_tokens,
        totals=vars(totals),
    )


def send_failure(channel: Channel, number: int, error: MemfitError) -> None:
    channel.send("failed", number=number, **carry_error(error))


def send_scores(channel: Channel, number: int, scores: Sequence[TokenScore]) -> None:
    channel.send("scores", number=number, scores=[[one.logprob, one.is_greedy, one.top] for one in scores])


def send_logits(channel: Channel, number: int, first: int, rows: Any) -> None:
    """`rows` are float32 [tokens, vocabulary], from the token `first` on."""
    channel.send("logits", number=number, first=first, data=base64.b64encode(rows.tobytes()).decode())
