"""The way in which llama.cpp embeds: as many waiting texts as fit a pass are computed at once, and dropped.

In the worker, in place of request_loop.py where a model was loaded to embed. Nothing is sampled and nothing
shared: every text is a sequence of its own, that begins at nothing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfit.engines.channel import Aborted, Channel
from memfit.engines.embedding import Embedding
from memfit.engines.inbox import Inbox
from memfit.engines.llamacpp.decode_batch import DecodeBatch
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.pair import pair_tokens
from memfit.engines.llamacpp.prompt import describe_prompt, prompt_tokens
from memfit.engines.requests import Completion, Request, Speed, Status, StreamTotals
from memfit.engines.results import send_answer, send_embedding, send_failure, send_prompt
from memfit.errors import EngineError, MemfitError, UsageError

__all__ = ["EmbeddingLoop"]

_STATUS_SECONDS = 0.5
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
        self._inbox.tell(Status(waiting=len(self._waiting), running=len(self._running)))

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
        for text, data in zip(
            self._running, self._computed([one.tokens for one in self._running]), strict=True
        ):
            self._send(text, data)
        self._running = []
        if time.monotonic() - self._told_at >= _STATUS_SECONDS:
            self._tell()

    def _computed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The rows of each text."""
        if len(texts[0]) <= self._model.ubatch:
            parts, pieces = [texts], [0]
        else:
            (tokens,), step = texts, self._model.ubatch
            pieces = list(range(0, len(tokens), step))
            parts = [[tokens[start : start + step]] for start in pieces]
        found: list[bytes] = []
        for start, part in zip(pieces, parts, strict=True):
            self._batch.fill_sequences(part, start)
            began = time.monotonic()
            self._model.decode_batch(self._batch.pointer)
            self._decode_seconds += time.monotonic() - began
            count = sum(map(len, part))
            self._tokens += count
            if self._pooling == "none":
                found.append(self._model.token_embeddings(count))
        if self._pooling == "none":
            rows = _divided(b"".join(found), [4 * self._width * len(one) for one in texts])
        else:
            rows = [self._model.sequence_embedding(number, self._width) for number in range(len(texts))]
        self._model.cache.clear()
        return rows

    def _send(self, text: _Text, data: bytes) -> None:
        embedding = Embedding.of(data, self._width, len(text.tokens))
        if not math.isfinite(sum(memoryview(data).cast("f"))):
            self._model.cache.may_hold_nan = True
            self._model.cache.clear()
            error = EngineError("the model computes what is no number for this text: its file is damaged")
            send_failure(self._channel, text.number, error)
            return
        send_embedding(self._channel, text.number, embedding, self._totals())


def _divided(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return found
