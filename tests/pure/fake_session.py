"""A session without a model: gives the answers it was told and remembers what it was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from memfit.engines.report import Report
from memfit.engines.requests import (
    Completion,
    Idle,
    LogitsBlock,
    Message,
    Request,
    RequestResult,
    Sampling,
    Speed,
    Status,
    StreamTotals,
    TextDelta,
    TokenScore,
)
from memfit.errors import MemfitError, WorkerDiedError
from memfit.planner.plan import Plan

__all__ = ["FakeSession", "FakeStream"]

_SPEED = Speed(prompt_tokens=4, prompt_seconds=2.0, generated_tokens=6, generation_seconds=2.0)


class FakeStream:
    """Satisfies protocol.RequestStream: answers each request as it is asked for, in order."""

    def __init__(self, session: FakeSession) -> None:
        self.totals = StreamTotals()
        self.was_cancelled = False
        self._session = session
        self._requests: deque[Request] = deque()

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        self._requests.append(request)

    def drop(self, number: int) -> None:
        self._requests = deque(one for one in self._requests if one.number != number)

    def end(self) -> None:
        """`events` ends by itself, once nothing is left."""

    def events(self) -> Generator[RequestResult | TextDelta | LogitsBlock | Idle]:
        while self._requests:
            request = self._requests.popleft()
            try:
                done = (
                    self._session.generate(request.prompt)
                    if request.prompt
                    else (self._session.chat(request.messages))
                )
            except WorkerDiedError:
                raise
            except MemfitError as error:
                yield RequestResult(number=request.number, error=error)
            else:
                yield RequestResult(number=request.number, completion=done)


class FakeSession:
    """Satisfies protocol.Session. `answers` are given in order; an error among them is raised."""

    def __init__(self, answers: Sequence[str | MemfitError], report: Report) -> None:
        self._answers = list(answers)
        self._report = report
        self.asked: list[str | list[dict[str, str]]] = []  # a raw prompt or messages, one entry per request
        self.finish_reason = "stop"
        self.closed = False
        self.has_chat_template = True

    @property
    def plan(self) -> Plan:
        return self._report.plan

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        return self._answer(prompt, on_text)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        return self._answer(messages, on_text)

    def stream(self, prompt: str | Sequence[Message], sampling: Sampling | None = None) -> Iterator[str]:
        yield from self._answer(prompt, None).text

    def open(self, *, expected_tokens: float = 0) -> FakeStream:
        return FakeStream(self)

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        return _SPEED

    def score(
        self,
        tokens: Sequence[int],
        *,
        first: int = 1,
        top: int = 0,
        on_logits: Callable[[LogitsBlock], None] | None = None,
    ) -> tuple[TokenScore, ...]:
        return tuple(TokenScore(logprob=-1.0, is_greedy=True) for _ in tokens[first:])

    def status(self) -> Status:
        return Status()

    def report(self) -> Report:
        return self._report

    def close(self) -> None:
        self.closed = True

    def _answer(self, prompt: str | Sequence[Any], on_text: Callable[[str], None] | None) -> Completion:
        asked = prompt if isinstance(prompt, str) else [dict(one) for one in prompt]
        self.asked.append(asked)
        answer = self._answers.pop(0)
        if isinstance(answer, MemfitError):
            raise answer
        if on_text:
            for letter in answer:
                on_text(letter)
        return Completion(
            text=answer,
            finish_reason=self.finish_reason,
            prompt_tokens=len(asked),
            completion_tokens=len(answer),
            speed=_SPEED,
        )
