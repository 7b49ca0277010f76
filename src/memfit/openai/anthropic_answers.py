"""Answers, errors and lists as Anthropic's Messages has them: as events, and whole.

The shapes are those of the anthropic client's types, with every field that the API's published documents call
required.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from memfit.engines.chat_format import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Progress
from memfit.errors import MemfitError, UsageError
from memfit.openai.answers import Answer, Frame, Usage
from memfit.openai.model_facts import ModelFacts
from memfit.openai.turns import read_arguments

__all__ = [
    "PING",
    "AnthropicWriter",
    "anthropic_error",
    "anthropic_model",
    "anthropic_models",
    "anthropic_token_count",
]

PING = Frame(event="ping", data={"type": "ping"})  # keeps a connection open while nothing comes
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicWriter:
    """Writes one message. In a stream, blocks are numbered in the order in which they come."""

    def __init__(self, *, model: str) -> None:
        self._model = model
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks = 0  # that have begun
        self._open: str | None = None  # the type of the block that is being written

    def begin(self, prompt_tokens: int) -> Iterator[Frame]:
        message = self._message([], None, None, Usage(prompt_tokens=prompt_tokens))
        yield _frame("message_start", message=message)
        yield PING

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        """The API has no word for it, but it says that the server lives."""
        return (PING,)

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterator[Frame]:
        if isinstance(part, CallBegins):
            yield from self._begin(_call_block(part.id or _call_id(), part.name, {}))
        elif isinstance(part, CallArguments):
            yield self._delta("input_json_delta", "partial_json", part.text)
        elif isinstance(part, ReasoningPart):
            yield from self._go_on(_thinking_block(""))
            yield self._delta("thinking_delta", "thinking", part.text)
        elif isinstance(part, TextPart):
            yield from self._go_on(_text_block(""))
            yield self._delta("text_delta", "text", part.text)

    def finish(self, choice: int, answer: Answer) -> Iterator[Frame]:
        if not self._blocks:  # a message has a block, if only an empty one
            yield from self._begin(_text_block(""))
        yield from self._end()
        reason, stop = _reason(answer)
        delta = {"container": None, "stop_details": None, "stop_reason": reason, "stop_sequence": stop}
        yield _frame("message_delta", delta=delta, usage=_delta_usage(answer.usage))

    def end(self, answers: Sequence[Answer]) -> Iterator[Frame]:
        yield _frame("message_stop")

    def fail(self, error: MemfitError) -> Iterator[Frame]:
        yield Frame(event="error", data=anthropic_error(error, 400 if isinstance(error, UsageError) else 500))

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        (answer,) = answers
        blocks = [_thinking_block(answer.reasoning)] if answer.reasoning else []
        if answer.text or not (blocks or answer.calls):
            blocks.append(_text_block(answer.text))
        blocks += [_call_block(call.id, call.name, read_arguments(call.arguments)) for call in answer.calls]
        return self._message(blocks, *_reason(answer), answer.usage)

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: Usage
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "stop_details": None,
            "container": None,
            "usage": {
                **_delta_usage(usage),
                "cache_creation": None,
                "inference_geo": None,
                "service_tier": "standard",
            },
        }

    def _go_on(self, block: dict[str, Any]) -> Iterator[Frame]:
        """Begin this block, unless one of its type is being written."""
        if self._open != block["type"]:
            yield from self._begin(block)

    def _begin(self, block: dict[str, Any]) -> Iterator[Frame]:
        yield from self._end()
        self._open, self._blocks = block["type"], self._blocks + 1
        yield _frame("content_block_start", index=self._blocks - 1, content_block=block)

    def _end(self) -> Iterator[Frame]:
        if self._open is None:
            return
        if self._open == "thinking":  # clients wait for a signature; there is nothing to sign with
            yield self._delta("signature_delta", "signature", "")
        yield _frame("content_block_stop", index=self._blocks - 1)
        self._open = None

    def _delta(self, kind: str, field: str, text: str) -> Frame:
        return _frame("content_block_delta", index=self._blocks - 1, delta={"type": kind, field: text})


def anthropic_error(error: MemfitError | str, status: int) -> dict[str, Any]:
    """`status` is the one that HTTP answers with."""
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": str(error)},
        "request_id": f"req_{uuid.uuid4().hex}",
    }


def anthropic_token_count(tokens: int) -> dict[str, Any]:
    return {"input_tokens": tokens}


def anthropic_model(model: ModelFacts) -> dict[str, Any]:
    created = datetime.fromtimestamp(int(model.modified), timezone.utc)
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "line": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": model.context,
        "max_tokens": model.context,
        "capabilities": None,
    }


def anthropic_models(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """All of them on one page."""
    return {
        "data": [anthropic_model(model) for model in models],
        "has_more": False,
        "first_id": models[0].name if models else None,
        "last_id": models[-1].name if models else None,
    }


def _frame(event: str, **data: Any) -> Frame:
    return Frame(event=event, data={"type": event, **data})


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _thinking_block(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _call_block(call: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call, "name": name, "input": arguments, "caller": {"type": "direct"}}


def _call_id() -> str:
    return f"toolu_{uuid.uuid4().hex[:24]}"


def _reason(answer: Answer) -> tuple[str, str | None]:
    """Why it stopped, and the stop sequence that came."""
    if answer.reason == "stop" and answer.stop is not None:
        return "stop_sequence", answer.stop
    return _REASONS[answer.reason], None


def _delta_usage(usage: Usage) -> dict[str, Any]:
    """The input's tokens are without those that the cache held."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "server_tool_use": None,
    }
