"""A session without a model whose streams say what a test tells them to, when it tells them to.

Beside the protocol: `add`, `drop` and `end` are remembered, events come from a queue, and a worker's death is
an error in it.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from typing import Any

from memfit.engines.report import Report
from memfit.engines.requests import (
    Begun,
    Completion,
    Idle,
    Request,
    RequestResult,
    Speed,
    Status,
    StreamTotals,
    TextDelta,
)
from memfit.engines.served import Served
from memfit.engines.session import Session, StreamEvent
from memfit.errors import MemfitError, WorkerDiedError
from memfit.planner.plan import Plan

__all__ = ["ScriptedSession", "ScriptedStream", "completion"]

_LOOK_SECONDS = 0.02
_SPEED = Speed(prompt_tokens=4, prompt_seconds=0.5, generated_tokens=2, generation_seconds=0.5)

Answering = Callable[["ScriptedStream", Request, bool], None]


def completion(
    text: str = "", *, reason: str = "stop", stop: str | None = None, tokens: int = 3
) -> Completion:
    return Completion(
        text=text, finish_reason=reason, prompt_tokens=4, completion_tokens=tokens, speed=_SPEED, stop=stop
    )


class ScriptedStream:
    """Satisfies session.RequestStream. Each request is answered by `answering`, or by the test."""

    def __init__(self, answering: Answering | None) -> None:
        self.totals = StreamTotals()
        self.was_cancelled = False
        self.added: list[Request] = []
        self.dropped: list[int] = []
        self.is_closed = self.is_dead = False
        self.refuses: MemfitError | None = None  # what `add` raises
        self._answering = answering
        self._events: queue.SimpleQueue[StreamEvent | MemfitError | Exception | None] = queue.SimpleQueue()

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        if self.refuses or self.is_dead:
            raise self.refuses or WorkerDiedError("dead")
        self.added.append(request)
        if self._answering:
            self._answering(self, request, sends_text)

    def drop(self, number: int) -> None:
        self.dropped.append(number)

    def end(self) -> None:
        self._events.put(None)

    def events(self) -> Generator[StreamEvent]:
        try:
            while True:
                try:
                    event = self._events.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    event = Idle()
                if event is None:
                    return
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.is_closed = True

    # -- what a test says ----------------------------------------------------------------------------

    def say(self, *events: StreamEvent) -> None:
        for event in events:
            self._events.put(event)

    def begin(self, number: int, ending: str = "") -> None:
        self.say(Begun(number=number, prompt_tokens=4, ending=ending))

    def finish(self, number: int, text: str = "", **values: Any) -> None:
        self.say(RequestResult(number=number, completion=completion(text, **values)))

    def write(self, number: int, *texts: str) -> None:
        self.say(*(TextDelta(number=number, text=text) for text in texts))

    def die(self, error: Exception | None = None) -> None:
        self.is_dead = True
        self._events.put(error or WorkerDiedError("the engine's worker ended: it was killed"))


class ScriptedSession(Session):
    """Remembers its streams; the last one is open."""

    def __init__(self, answering: Answering | None = None, *, served: Served | None = None) -> None:
        self.streams: list[ScriptedStream] = []
        self.is_closed = False
        self.has_chat_template = True
        self.served = served or Served()
        self._answering = answering

    @property
    def plan(self) -> Plan:  # type: ignore[override]
        raise NotImplementedError

    @property
    def stream_now(self) -> ScriptedStream:
        return self.streams[-1]

    def open(self, *, expected_tokens: float = 0) -> ScriptedStream:
        self.streams.append(ScriptedStream(self._answering))
        return self.streams[-1]

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        raise NotImplementedError

    def status(self) -> Status:
        return Status(running=1)

    def report(self) -> Report:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed = True
