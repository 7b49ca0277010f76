"""What a worker sends of a request: its answer, its scores, its embedding, or its error. request_stream.py
reads it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memfit.engines.channel import Channel
from memfit.engines.requests import Completion, StreamTotals, TokenScore
from memfit.errors import MemfitError
from memfit.processes.carried_errors import carry_error

__all__ = ["send_answer", "send_embedding", "send_failure", "send_logits", "send_rows", "send_scores"]


def send_answer(
    channel: Channel, number: int, completion: Completion, totals: StreamTotals | None = None
) -> None:
    """`totals` are the stream's so far, where they are known."""
    channel.send("answer", number=number, completion=asdict(completion), totals=totals and vars(totals))


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
