"""A session without a model: gives the answers it was told and remembers what it was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from memfit.engines.report import Report
from memfit.engines.requests import Completion, Request, RequestResult, Speed, Status, StreamTotals, TextDelta
from memfit.engines.session import Session, StreamEvent
from memfit.errors import MemfitError, WorkerDiedError
from memfit.planner.plan import Plan

__all__ = ["FakeSession", "FakeStream"]

_SPEED = Speed(prompt_tokens=4, prompt_seconds=2.0, generated_tokens=6, generation_seconds=2.0)


class FakeStream:
    """Satisfies session.RequestStream: answers each request as it is asked for, in order."""

    def __init__(self, session: FakeSession) -> None:
        self.totals = StreamTotals()
        self.was_cancelled = False
        self._session = session
        self._requests: deque[Request] = deque()
        self._sends_text: set[int] = set()

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        self._requests.append(request)
        if sends_text:
            self._sends_text.add(request.number)

    def drop(self, number: int) -> None:
        self._requests = deque(one for one in self._requests if one.number != number)

    def end(self) -> None:
        """`events` ends by itself, once nothing is left."""

    def events(self) -> Generator[StreamEvent]:
        while self._requests:
            request = self._requests.popleft()
            try:
                done = self._session.answer(request)
            except WorkerDiedError:
                raise
            except MemfitError as error:
                yield RequestResult(number=request.number, error=error)
                continue
            if request.number in self._sends_text:
                for letter in done.text:
                    yield TextDelta(number=request.number, text=letter)
            yield RequestResult(number=request.number, completion=done)


class FakeSession(Session):
    """`answers` are given in order; an error among them is raised."""

    def __init__(self, answers: Sequence[str | MemfitError], report: Report) -> None:
        self._answers = list(answers)
        self._report = report
        self.asked: list[Any] = []  # a raw prompt or messages, one entry per request
        self.finish_reason = "stop"
        self.closed = False
        self.has_chat_template = True

    @property
    def plan(self) -> Plan:  # type: ignore[override]
        return self._report.plan

    def open(self, *, expected_tokens: float = 0) -> FakeStream:
        return FakeStream(self)

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        return _SPEED

    def status(self) -> Status:
        return Status()

    def report(self) -> Report:
        return self._report

    def close(self) -> None:
        self.closed = True

    def answer(self, request: Request) -> Completion:
        asked = request.prompt or [dict(one) for one in request.messages]
        self.asked.append(asked)
        answer = self._answers.pop(0)
        if isinstance(answer, MemfitError):
            raise answer
        return Completion(
            text=answer,
            finish_reason=self.finish_reason,
            prompt_tokens=len(asked),
            completion_tokens=len(answer),
            speed=_SPEED,
        )
