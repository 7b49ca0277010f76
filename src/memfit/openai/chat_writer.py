"""Answers as OpenAI's chat completions: one body, or the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from memfit import __version__
from memfit.engines.chat_format import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Progress
from memfit.errors import MemfitError
from memfit.openai.answers import Answer, Frame, Usage, total_usage
from memfit.openai.ask import Ask
from memfit.openai.llama_answers import llama_body
from memfit.openai.logprobs import chat_logprobs
from memfit.openai.responses import error_object
from memfit.openai.timings import progress_timings, prompt_progress, timings

__all__ = ["DONE", "FINGERPRINT", "ChatWriter", "usage_object"]

FINGERPRINT = f"b{__version__}-memfit"
DONE = Frame(data="[DONE]")


class ChatWriter:
    """Satisfies answers.AnswerWriter."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask = ask
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def begin(self, prompt_tokens: int) -> Iterable[Frame]:
        del prompt_tokens
        for choice in range(self._ask.choices):
            yield self._chunk(choice, {"role": "assistant", "content": None})

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        frame = self._chunk(choice, {})
        assert isinstance(frame.data, dict)
        frame.data["prompt_progress"] = prompt_progress(progress)
        if self._ask.tells_timings:
            frame.data["timings"] = progress_timings(progress)
        yield frame

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterable[Frame]:
        logprobs = chat_logprobs(tokens) if self._ask.logprobs is not None else None
        yield self._chunk(choice, _delta(part), logprobs=logprobs)

    def finish(self, choice: int, answer: Answer) -> Iterable[Frame]:
        yield self._chunk(choice, {}, reason=answer.reason)

    def end(self, answers: Sequence[Answer]) -> Iterable[Frame]:
        asks = self._ask
        if asks.usage_in_stream or asks.tells_timings:
            last: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": []}
            last["usage"] = usage_object(total_usage(answers, asks.n))
            if asks.tells_timings:
                last["timings"] = timings(answers[0])
            yield Frame(data=last)
        yield DONE

    def fail(self, error: MemfitError) -> Iterable[Frame]:
        yield Frame(data={"error": error_object(error)})
        yield DONE

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        found: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage_object(total_usage(answers, self._ask.n)),
        }
        if self._ask.tells_timings:
            found["timings"] = timings(answers[0])
        if self._ask.verbose:
            found["__verbose"] = llama_body(self._ask, 0, answers[0], model=self._head["model"])
        return found

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        logprobs = chat_logprobs(answer.tokens) if self._ask.logprobs is not None else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> Frame:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        data = {**self._head, "object": "chat.completion.chunk", "choices": [entry]}
        if self._ask.usage_in_stream:
            data["usage"] = None
        return Frame(data=data)


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's, with every detail."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content": part.text}
    if isinstance(part, CallBegins):
        named = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": named}]}
    assert isinstance(part, CallArguments)
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
