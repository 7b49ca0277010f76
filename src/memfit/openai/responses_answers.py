"""Answers as OpenAI's Responses has them: as numbered events, and whole.

An answer is a list of items: texts, thoughts, calls, in the order in which they come. Events
have llama-server's telemetry where it is asked for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from memfit.engines.chat_format import CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Progress, Speed
from memfit.errors import MemfitError, UsageError
from memfit.openai.answers import Answer, Frame
from memfit.openai.ask import Ask
from memfit.openai.logprobs import token_logprobs
from memfit.openai.responses_api import wants_telemetry
from memfit.openai.responses_object import (
    ResponseStatus,
    call_item,
    message_item,
    reasoning_item,
    reasoning_part,
    response_fields,
    response_object,
    text_part,
)
from memfit.openai.timings import prompt_progress, running_timings, timings

__all__ = ["ResponsesWriter", "responses_token_count"]

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_EVENTS = {
    "message": "output_text",
    "reasoning": "reasoning_text",
    "function_call": "function_call_arguments",
}
_Kind = Literal["message", "reasoning", "function_call"]


@dataclass(kw_only=True)
class _Item:
    """One item of the output, as far as it has come."""

    kind: _Kind
    index: int
    id: str
    call: str = ""
    function: str = ""
    pieces: list[str] = field(default_factory=list)  # of its text; a call's are its arguments
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def as_json(self, status: str, *, begins: bool = False) -> dict[str, Any]:
        """`begins`: before its first part."""
        if self.kind == "function_call":
            return call_item(self.id, status, call=self.call, function=self.function, arguments=self.text)
        text = None if begins else self.text
        if self.kind == "reasoning":
            return reasoning_item(self.id, status, text)
        return message_item(self.id, status, text, self.logprobs)

    @property
    def part(self) -> dict[str, Any]:
        return reasoning_part(self.text) if self.kind == "reasoning" else text_part(self.text, self.logprobs)

    @property
    def place(self) -> dict[str, Any]:
        """Which of the texts in the output its events are about."""
        place: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}


def _item(kind: _Kind, *pieces: str, index: int = 0, **facts: Any) -> _Item:
    return _Item(kind=kind, index=index, id=_new_id(_PREFIXES[kind]), pieces=list(pieces), **facts)


class ResponsesWriter:
    """Writes one response. `body` is what `ask` was read from: a response repeats what was asked."""

    def __init__(self, body: Mapping[str, Any], ask: Ask, *, model: str) -> None:
        self._fields = response_fields(body, ask, model=model)
        self._id, self._created = _new_id("resp"), time.time()
        self._has_logprobs = ask.logprobs is not None
        self._telemetry = wants_telemetry(body)
        self._timer = _Timer() if ask.names_tokens else None
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []  # items that have ended
        self._items = 0  # that have begun
        self._item: _Item | None = None  # that is being written

    def begin(self, prompt_tokens: int) -> Iterator[Frame]:
        for event in ("response.created", "response.in_progress"):
            yield self._frame(event, response=self._response("in_progress"))

    def progress(self, choice: int, progress: Progress) -> Iterator[Frame]:
        if self._timer:
            self._timer.progress = progress
        response = self._response("in_progress")
        yield self._frame(
            "response.in_progress", response=response, prompt_progress=prompt_progress(progress)
        )

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterator[Frame]:
        if isinstance(part, CallBegins):
            yield from self._begin("function_call", call=part.id or _new_id("call"), function=part.name)
            return
        if isinstance(part, TextPart | ReasoningPart):
            yield from self._go_on("message" if isinstance(part, TextPart) else "reasoning")
        assert self._item
        self._item.pieces.append(part.text)
        fields: dict[str, Any] = {}
        if isinstance(part, TextPart):
            fields["logprobs"] = token_logprobs(tokens) if self._has_logprobs else []
            self._item.logprobs += fields["logprobs"]
        if self._timer:
            fields["timings"] = self._timer.count(len(tokens))
        event = f"response.{_EVENTS[self._item.kind]}.delta"
        yield self._frame(event, **self._item.place, delta=part.text, **fields)

    def finish(self, choice: int, answer: Answer) -> Iterator[Frame]:
        if not self._items:  # an output has an item, if only an empty one
            yield from self._begin("message")
        yield from self._end(_status(answer))

    def end(self, answers: Sequence[Answer]) -> Iterator[Frame]:
        (answer,) = answers
        status = _status(answer)
        response = self._response(status, output=self._output, usage=answer.usage)
        # llama-server's clients, who alone ask for telemetry, know no other last event.
        event = "completed" if self._telemetry else status
        fields: dict[str, Any] = {}
        if self._timer:
            fields["timings"] = timings(answer)
        yield self._frame(f"response.{event}", response=response, **fields)

    def fail(self, error: MemfitError) -> Iterator[Frame]:
        yield from self._end("incomplete")
        code = "invalid_prompt" if isinstance(error, UsageError) else "server_error"
        failure = {"code": code, "message": str(error)}
        yield self._frame(
            "response.failed", response=self._response("failed", output=self._output, error=failure)
        )

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        (answer,) = answers
        items = [_item("reasoning", answer.reasoning)] if answer.reasoning else []
        if answer.text or not (items or answer.calls):
            logprobs = token_logprobs(answer.tokens) if self._has_logprobs else []
            items.append(_item("message", answer.text, logprobs=logprobs))
        for call in answer.calls:
            items.append(_item("function_call", call.arguments, call=call.id, function=call.name))
        status = _status(answer)
        output = [item.as_json("completed") for item in items[:-1]] + [items[-1].as_json(status)]
        return self._response(status, output=output, usage=answer.usage)

    def _response(self, status: ResponseStatus, **facts: Any) -> dict[str, Any]:
        return response_object(self._fields, name=self._id, created=self._created, status=status, **facts)

    def _frame(self, event: str, **data: Any) -> Frame:
        self._number += 1
        return Frame(event=event, data={"type": event, "sequence_number": self._number - 1, **data})

    def _go_on(self, kind: _Kind) -> Iterator[Frame]:
        """Begin an item of this kind, unless one is being written."""
        if self._item is None or self._item.kind != kind:
            yield from self._begin(kind)

    def _begin(self, kind: _Kind, *, call: str = "", function: str = "") -> Iterator[Frame]:
        yield from self._end("completed")
        self._item = item = _item(kind, index=self._items, call=call, function=function)
        self._items += 1
        yield self._frame(
            "response.output_item.added",
            output_index=item.index,
            item=item.as_json("in_progress", begins=True),
        )
        if kind != "function_call":
            yield self._frame("response.content_part.added", **item.place, part=item.part)

    def _end(self, status: str) -> Iterator[Frame]:
        item, self._item = self._item, None
        if item is None:
            return
        event = f"response.{_EVENTS[item.kind]}.done"
        if item.kind == "function_call":
            yield self._frame(event, **item.place, name=item.function, arguments=item.text)
        else:
            logprobs = {"logprobs": item.logprobs} if item.kind == "message" else {}
            yield self._frame(event, **item.place, text=item.text, **logprobs)
            yield self._frame("response.content_part.done", **item.place, part=item.part)
        done = item.as_json(status)
        self._output.append(done)
        yield self._frame("response.output_item.done", output_index=item.index, item=done)


class _Timer:
    """How fast an answer comes while it comes, by the clock."""

    def __init__(self) -> None:
        self.progress: Progress | None = None  # the prompt's last
        self._tokens = 0
        self._first: float | None = None  # when the first part came

    def count(self, tokens: int) -> dict[str, Any]:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        self._tokens += tokens
        told = self.progress
        speed = Speed(
            prompt_tokens=told.processed - told.shared if told else 0,
            prompt_seconds=told.seconds if told else 0.0,
            generated_tokens=self._tokens,
            generation_seconds=now - self._first,
        )
        return running_timings(speed, told.shared if told else 0)


def responses_token_count(tokens: int) -> dict[str, Any]:
    return {"object": "response.input_tokens", "input_tokens": tokens}


def _status(answer: Answer) -> Literal["completed", "incomplete"]:
    return "incomplete" if answer.reason == "length" else "completed"


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
