"""The parent's side of a batch: requests go to the worker as they come, answers back as they are ready."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from memfit.engines.client import WorkerProcess
from memfit.engines.protocol import BatchTotals, Completion, Idle, Request, RequestResult, Speed, TextDelta
from memfit.processes.carried_errors import rebuild_error

__all__ = ["LlamaBatch", "speed_of"]

_QUIET_SECONDS = 1.0


class LlamaBatch:
    """Satisfies protocol.Batch."""

    def __init__(
        self,
        worker: WorkerProcess,
        *,
        expected_tokens: float,
        explaining_death: Callable[[], AbstractContextManager[None]],
        on_totals: Callable[[BatchTotals], None],
        require_schemas: Callable[[], None],
    ) -> None:
        """`require_schemas` raises UsageError where no memory is planned for them."""
        self.totals = BatchTotals()
        self.was_cancelled = False
        self._worker = worker
        self._explaining_death = explaining_death
        self._on_totals = on_totals
        self._require_schemas = require_schemas
        self._conversation = worker.converse("batch", expected=expected_tokens)

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        if request.schema is not None:
            self._require_schemas()
        with self._explaining_death():
            self._worker.tell(
                "add",
                number=request.number,
                prompt=request.prompt,
                messages=[dict(one) for one in request.messages],
                sampling=asdict(request.sampling),
                schema=request.schema,
                sends_text=sends_text,
            )

    def drop(self, number: int) -> None:
        with self._explaining_death():
            self._worker.tell("drop", number=number)

    def end(self) -> None:
        with self._explaining_death():
            self._worker.tell("end")

    def events(self) -> Generator[RequestResult | TextDelta | Idle]:
        events = self._events()
        next(events)  # closing one that has not begun would end nothing
        return events

    def _events(self) -> Generator[RequestResult | TextDelta | Idle]:
        with (
            self._conversation,
            self._worker.cancels_on_interrupt(),
            self._explaining_death(),
        ):
            yield Idle()
            while True:
                while not self._worker.has_message(_QUIET_SECONDS):
                    yield Idle()
                if (found := next(self._conversation, None)) is None:
                    break
                kind, event = found
                if kind == "text":
                    yield TextDelta(number=event["number"], text=event["text"])
                elif kind == "failed":
                    yield RequestResult(number=event["number"], completion=None, error=rebuild_error(event))
                else:
                    yield self._answer(event)
        assert self._conversation.answer is not None
        self.was_cancelled = self._conversation.answer.pop("cancelled")
        self._set_totals(self._conversation.answer)

    def _set_totals(self, values: dict[str, Any]) -> None:
        self.totals = BatchTotals(**values)
        self._on_totals(self.totals)

    def _answer(self, event: dict[str, Any]) -> RequestResult:
        self._set_totals(event["totals"])
        return RequestResult(
            number=event["number"],
            completion=Completion(
                text=event["text"],
                finish_reason=event["finish_reason"],
                prompt_tokens=event["prompt_tokens"],
                completion_tokens=event["completion_tokens"],
                speed=speed_of(self.totals),
            ),
        )


def speed_of(totals: BatchTotals) -> Speed:
    """Prompts and answers are computed in the same passes, so both rates are over the whole time."""
    return Speed(
        prompt_tokens=totals.prompt_tokens,
        prompt_seconds=totals.seconds,
        generated_tokens=totals.generated_tokens,
        generation_seconds=totals.seconds,
    )
