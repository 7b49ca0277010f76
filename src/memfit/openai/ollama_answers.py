"""Answers as Ollama's API has them: as objects of a stream, one a line, and whole.

The shapes are those of Ollama's documentation and of its Python client's types. Durations are nanoseconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from memfit.engines.chat_format import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Progress
from memfit.errors import MemfitError, readable
from memfit.openai.answers import Answer, Frame
from memfit.openai.ask import Ask
from memfit.openai.logprobs import token_logprobs
from memfit.openai.ollama import OllamaForm
from memfit.openai.turns import read_arguments

__all__ = ["OllamaWriter", "nanoseconds", "ollama_error", "ollama_loaded", "ollama_time"]

_REASONS = {"stop": "stop", "length": "length", "tool_calls": "stop"}
_BILLION = 10**9


class OllamaWriter:
    """Writes one answer of chat or generate. Calls come whole: Ollama does not cut their arguments."""

    def __init__(self, form: OllamaForm, ask: Ask, *, model: str) -> None:
        self._form = form
        self._model = model
        self._has_logprobs = ask.logprobs is not None
        self._began = time.monotonic_ns()
        self._call: CallBegins | None = None  # whose arguments are coming
        self._arguments: list[str] = []

    def begin(self, prompt_tokens: int) -> Iterable[Frame]:
        return ()

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        return ()

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterator[Frame]:
        if isinstance(part, CallArguments):
            self._arguments.append(part.text)
        else:
            yield from self._end_call()
        if isinstance(part, CallBegins):
            self._call = part
        text = part.text if isinstance(part, TextPart) else ""
        thinking = part.text if isinstance(part, ReasoningPart) else ""
        if text or thinking or (tokens and self._has_logprobs):
            yield Frame(data=self._answer(text, thinking, tokens=tokens, done=False))

    def finish(self, choice: int, answer: Answer) -> Iterator[Frame]:
        yield from self._end_call()
        yield Frame(data={**self._answer("", "", done=True), **self._figures(answer)})

    def end(self, answers: Sequence[Answer]) -> Iterable[Frame]:
        return ()

    def fail(self, error: MemfitError) -> Iterable[Frame]:
        return (Frame(data=ollama_error(error)),)

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        (answer,) = answers
        calls = [_call(call.id, index, call.name, call.arguments) for index, call in enumerate(answer.calls)]
        whole = self._answer(answer.text, answer.reasoning, calls, tokens=answer.tokens, done=True)
        return {**whole, **self._figures(answer)}

    def _answer(
        self,
        text: str,
        thinking: str,
        calls: Sequence[Mapping[str, Any]] = (),
        *,
        tokens: Sequence[ChosenToken] = (),
        done: bool,
    ) -> dict[str, Any]:
        said: dict[str, Any] = (
            {"role": "assistant", "content": text} if self._form == "chat" else {"response": text}
        )
        if thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = list(calls)
        answer: dict[str, Any] = {"model": self._model, "created_at": ollama_time(time.time_ns())}
        answer |= {"message": said} if self._form == "chat" else said
        answer["done"] = done
        if self._has_logprobs and tokens:
            answer["logprobs"] = token_logprobs(tokens)
        return answer

    def _end_call(self) -> Iterator[Frame]:
        begun, self._call = self._call, None
        if begun is None:
            return
        arguments, self._arguments = "".join(self._arguments), []
        call = _call(begun.id or f"call_{begun.index + 1}", begun.index, begun.name, arguments)
        yield Frame(data=self._answer("", "", [call], done=False))

    def _figures(self, answer: Answer) -> dict[str, Any]:
        return {
            "done_reason": _REASONS[answer.reason],
            "total_duration": time.monotonic_ns() - self._began,
            "load_duration": 0,  # it was loaded before anything was asked
            "prompt_eval_count": answer.usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(answer.speed.prompt_seconds),
            "eval_count": answer.usage.completion_tokens,
            "eval_duration": nanoseconds(answer.speed.generation_seconds),
        }


def ollama_loaded(form: OllamaForm, reason: Literal["load", "unload"], *, model: str) -> dict[str, Any]:
    """The answer to a call that asks nothing."""
    said: dict[str, Any] = {"response": ""}
    if form == "chat":
        said = {"message": {"role": "assistant", "content": ""}}
    return {
        "model": model,
        "created_at": ollama_time(time.time_ns()),
        **said,
        "done": True,
        "done_reason": reason,
    }


def ollama_error(error: MemfitError) -> dict[str, Any]:
    return {"error": readable(str(error))}


def ollama_time(nanoseconds: int) -> str:
    """A time since 1970 as RFC 3339 has it, in UTC."""
    seconds, rest = divmod(nanoseconds, _BILLION)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def nanoseconds(seconds: float) -> int:
    return round(seconds * _BILLION)


def _call(call: str, index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"index": index, "name": name, "arguments": read_arguments(arguments)}
    return {"id": call, "function": function}
