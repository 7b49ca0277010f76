"""The way in which llama.cpp embeds: as many waiting texts as fit a pass are computed at once, and dropped.

In the worker, in place of request_loop.py where a model was loaded to embed. Nothing is sampled and nothing
shared: every text is a sequence of its own, that begins at nothing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.engines.channel import Aborted, Channel
from memfit.engines.inbox import Inbox
from memfit.engines.llamacpp.decode_batch import DecodeBatch
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.pair import pair_tokens
from memfit.engines.llamacpp.prompt import describe_prompt, prompt_tokens
from memfit.engines.requests import Completion, Request, Speed, Status, StreamTotals
from memfit.engines.results import send_answer, send_embedding, send_failure, send_prompt, send_rows
from memfit.errors import EngineError, MemfitError, UsageError

__all__ = ["MOST_SENT_BYTES", "EmbeddingLoop"]

_STATUS_SECONDS = 0.5
_NUMBERS = 65_536  # sent at once, without pooling
MOST_SENT_BYTES = 5 * 4 * _NUMBERS  # which are there as bytes, as base64 and as JSON meanwhile
# With these the last pass of a text in parts gives what one pass would; a mean, and a first token, do not.
_OF_THE_END = ("none", "last", "rank")


@dataclass(frozen=True)
class _Text:
    number: int
    tokens: Sequence[int]


class EmbeddingLoop:
    """Answers the requests of one stream after the other."""

    def __init__(self, model: LlamaModel, api: Any, channel: Channel) -> None:
        self._model, self._channel = model, channel
        self._batch = DecodeBatch(api, model.ubatch)
        self._pooling = model.pooling
        self._width = 1 if self._pooling == "rank" else model.embedding_width
        in_parts = model.cache.is_there and model.is_causal and self._pooling in _OF_THE_END
        # Beyond what it was trained for, an encoder may have no positions.
        longest = min(model.sequence_tokens, model.trained_tokens)
        self.longest = longest if in_parts else min(longest, model.ubatch)
        self._inbox = Inbox(channel, lambda: model.is_aborted)
        self._waiting: deque[_Text] = deque()

    def warm_up(self) -> None:
        """Allocate now what a pass takes at most."""
        left = self._model.ubatch
        texts: list[list[int]] = []
        while left and len(texts) < self._model.config.parallel:
            texts.append([0] * min(left, self.longest))
            left -= len(texts[-1])
        self._batch.fill_sequences(texts)
        self._model.reserve_outputs(self._batch.pointer)

    def run(self, expected: float) -> dict[str, Any]:
        """Embed what comes until "end" has come and all is answered; returns what it came to. Nothing is
        `expected` to be generated."""
        self._inbox.open()
        self._tokens, self._told_at, self._decode_seconds = 0, 0.0, 0.0
        self._running: list[_Text] = []  # of the pass that is being computed
        self._model.threads.restart()
        cancelled = False
        try:
            while self._listen():
                self._pass()
        except Aborted:
            cancelled = True
            self._cancel()
        except BaseException:
            self.forget()
            raise
        self._tell()
        return {"cancelled": cancelled, "totals": vars(self._totals())}

    def forget(self) -> None:
        """Drop what waits, and what a text in parts has left in the KV cache."""
        self._waiting.clear()
        self._inbox.waiting.clear()
        self._model.cache.clear()

    def _cancel(self) -> None:
        """Every request ends with nothing."""
        nothing = Completion(
            text="", finish_reason="cancelled", prompt_tokens=0, completion_tokens=0, speed=Speed()
        )
        for text in (*self._running, *self._waiting):
            send_answer(self._channel, text.number, nothing)
        self._inbox.cancel()
        self.forget()

    def _totals(self) -> StreamTotals:
        threads = self._model.threads
        return StreamTotals(
            prompt_tokens=self._tokens,
            seconds=self._inbox.seconds,
            decode_seconds=self._decode_seconds,
            passes=threads.passes,
            thread_passes=threads.thread_passes,
        )

    def _tell(self) -> None:
        """How busy it is."""
        self._told_at = time.monotonic()
        self._inbox.tell(Status(waiting=len(self._waiting), running=len(self._running)), self._totals())

    # -- requests --------------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Take what the parent has sent; False once nothing is left to do."""
        while True:
            for request, _ in self._inbox.waiting:
                self._admit(request)
            self._inbox.waiting.clear()
            idle = not self._waiting
            if idle and self._inbox.is_ending:
                return False
            if not self._inbox.take(self._drop, idle=idle):
                return True

    def _admit(self, request: Request) -> None:
        try:
            if request.describes:
                send_prompt(self._channel, request.number, describe_prompt(self._model, request))
                return
            tokens = (
                pair_tokens(self._model, *request.pair)
                if request.pair
                else prompt_tokens(self._model, request)
            )
            self._require_room(len(tokens))
        except MemfitError as error:
            send_failure(self._channel, request.number, error)
        else:
            self._waiting.append(_Text(request.number, tokens))

    def _require_room(self, tokens: int) -> None:
        if tokens > self.longest:
            raise UsageError(
                f"the input is too large: it has {tokens} tokens, the model reads at most {self.longest}",
                field="input",
                got=tokens,
                needed=f"at most {self.longest} tokens",
            )

    def _drop(self, number: int) -> None:
        self._waiting = deque(text for text in self._waiting if text.number != number)

    # -- one pass --------------------------------------------------------------------------------

    def _pass(self) -> None:
        """Embed those that wait longest, as many as a ubatch holds; or one that is longer, in parts."""
        if not self._waiting:
            return
        self._running = [self._waiting.popleft()]
        room = self._model.ubatch - len(self._running[0].tokens)
        while (
            self._waiting
            and len(self._running) < self._model.config.parallel
            and (room := room - len(self._waiting[0].tokens)) >= 0
        ):
            self._running.append(self._waiting.popleft())
        first, *_ = self._running
        if len(first.tokens) > self._model.ubatch:
            self._send(first, self._rows_in_parts(first.tokens))
        else:
            self._decode([text.tokens for text in self._running])
            at = 0
            for sequence, text in enumerate(self._running):
                self._send(text, self._rows(sequence, at, len(text.tokens)))
                at += len(text.tokens)
        self._model.cache.clear()
        self._running = []
        if time.monotonic() - self._told_at >= _STATUS_SECONDS:
            self._tell()

    def _decode(self, texts: Sequence[Sequence[int]], start: int = 0) -> None:
        self._batch.fill_sequences(texts, start)
        began = time.monotonic()
        self._model.decode_batch(self._batch.pointer)
        self._decode_seconds += time.monotonic() - began
        self._tokens += sum(map(len, texts))

    def _rows(self, sequence: int, first: int, tokens: int) -> Iterator[bytes]:
        """What came out of the last pass for one text, whose tokens were there from the `first` on: one row,
        or without pooling all of them, some at a time."""
        if self._pooling != "none":
            yield self._model.sequence_embedding(sequence, self._width)
            return
        most = max(1, _NUMBERS // self._width)
        for start in range(first, first + tokens, most):
            yield self._model.token_embeddings(start, min(most, first + tokens - start))

    def _rows_in_parts(self, tokens: Sequence[int]) -> Iterator[bytes]:
        """Likewise of a text that is computed in several passes."""
        step = self._model.ubatch
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            self._decode([part], start)
            if self._pooling == "none" or start + step >= len(tokens):
                yield from self._rows(0, 0, len(part))

    def _send(self, text: _Text, rows: Iterator[bytes]) -> None:
        before = b""
        for data in rows:
            if not math.isfinite(sum(memoryview(data).cast("f"))):
                self._model.cache.may_hold_nan = True
                error = EngineError("the model computes what is no number for this text: its file is damaged")
                send_failure(self._channel, text.number, error)
                return
            if before:
                send_rows(self._channel, text.number, before)
            before = data
        send_embedding(
            self._channel,
            text.number,
            before,
            width=self._width,
            prompt_tokens=len(text.tokens),
            totals=self._totals(),
        )
