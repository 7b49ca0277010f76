"""The parent's side of a stream of requests: they go to the worker as they come, results back as they are
ready. The same for both engines."""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from memfit.engines.client import WorkerProcess
from memfit.engines.embedding import Embedding
from memfit.engines.requests import (
    Begun,
    ChosenToken,
    Completion,
    Idle,
    LogitsBlock,
    Progress,
    PromptText,
    Request,
    RequestResult,
    Speed,
    Status,
    StreamTotals,
    TextDelta,
    TokenScore,
)
from memfit.engines.session import StreamEvent
from memfit.processes.carried_errors import rebuild_error

__all__ = ["WorkerStream"]

_QUIET_SECONDS = 1.0


class WorkerStream:
    """Satisfies session.RequestStream."""

    def __init__(
        self,
        worker: WorkerProcess,
        *,
        expected_tokens: float,
        vocabulary: int,
        explaining_death: Callable[[], AbstractContextManager[None]],
        check: Callable[[Request], None],
        on_speed: Callable[[Speed], None],
    ) -> None:
        """`check` raises UsageError where the plan has no memory for a request; `on_speed` hears how fast the
        stream was: its one request, or all together."""
        self.totals = StreamTotals()
        self.was_cancelled = False
        self._status = Status()  # as the worker last said
        self._worker, self._vocabulary = worker, vocabulary
        self._explaining_death, self._check, self._on_speed = explaining_death, check, on_speed
        self._answers = 0
        self._rows: dict[int, bytearray] = {}  # of embeddings that come in pieces, by number
        with explaining_death():
            self._conversation = worker.converse("open", expected=expected_tokens)

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        self._check(request)
        with self._explaining_death():
            self._worker.tell("add", request=request.to_json(), sends_text=sends_text)

    def drop(self, number: int) -> None:
        with self._explaining_death():
            self._worker.tell("drop", number=number)

    def end(self) -> None:
        with self._explaining_death():
            self._worker.tell("end")

    @property
    def status(self) -> Status:
        """Of one that is over, what it left in the KV cache."""
        return replace(self._status, waiting=0, running=0) if self._conversation.is_over else self._status

    def events(self) -> Generator[StreamEvent]:
        events = self._events()
        next(events)  # closing one that has not begun would end nothing
        return events

    def _events(self) -> Generator[StreamEvent]:
        with self._conversation, self._worker.cancels_on_interrupt(), self._explaining_death():
            yield Idle()
            while True:
                while not self._worker.has_message(_QUIET_SECONDS):
                    yield Idle()
                if (found := next(self._conversation, None)) is None:
                    break
                if event := self._event(*found):
                    yield event
        assert self._conversation.answer is not None
        self.was_cancelled = self._conversation.answer["cancelled"]
        self.totals = StreamTotals(**self._conversation.answer["totals"])
        if self._answers > 1:
            self._on_speed(self.totals.speed)

    def _event(self, kind: str, values: dict[str, Any]) -> StreamEvent | None:
        if kind == "status":
            self.totals = StreamTotals(**values.pop("totals"))
            self._status = Status(**values)
            return None
        if kind == "text":
            named = tuple(map(_chosen_token, values.pop("tokens", ())))
            return TextDelta(**values, tokens=named)
        if kind == "begun":
            return Begun(**values)
        if kind == "prompt_progress":
            return Progress(**values)
        number = values["number"]
        if kind == "rows":
            self._rows.setdefault(number, bytearray()).extend(base64.b64decode(values["data"]))
            return None
        before = bytes(self._rows.pop(number, b""))
        if kind == "failed":
            return RequestResult(number=number, error=rebuild_error(values))
        if kind == "logits":
            data = memoryview(base64.b64decode(values["data"]))
            rows = data.nbytes // (4 * self._vocabulary)
            logits: memoryview[Any] = data.cast("f", (rows, self._vocabulary))
            return LogitsBlock(number=number, first=values["first"], logits=logits)
        if kind == "prompt":
            return RequestResult(number=number, prompt=_prompt_text(values))
        if kind == "scores":
            return RequestResult(number=number, scores=tuple(map(_token_score, values["scores"])))
        if values["totals"]:
            self.totals = StreamTotals(**values["totals"])
        self._answers += 1
        if kind == "embedding":
            self._on_speed(self.totals.speed)
            numbers = before + base64.b64decode(values["data"])
            embedding = Embedding.of(numbers, values["width"], values["prompt_tokens"])
            return RequestResult(number=number, embedding=embedding)
        assert kind == "answer", kind
        completion = values["completion"]
        speed = Speed(**{**completion.pop("speed"), "threads": self.totals.threads})
        self._on_speed(speed if self._answers == 1 else self.totals.speed)
        return RequestResult(number=number, completion=Completion(**completion, speed=speed))


def _chosen_token(values: list[Any]) -> ChosenToken:
    token, piece, logprob, top = values
    likeliest = tuple((each, text.encode("latin-1"), one) for each, text, one in top)
    return ChosenToken(token=token, piece=piece.encode("latin-1"), logprob=logprob, top=likeliest)


def _prompt_text(values: dict[str, Any]) -> PromptText:
    pieces = tuple(one.encode("latin-1") for one in values["pieces"])
    return PromptText(text=values["text"], tokens=tuple(values["tokens"]), pieces=pieces)


def _token_score(values: list[Any]) -> TokenScore:
    logprob, is_greedy, top = values
    return TokenScore(logprob=logprob, is_greedy=is_greedy, top=tuple((token, one) for token, one in top))
