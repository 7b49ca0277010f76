"""Answers as OpenAI's legacy completions: one body, or the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from memfit.engines.chat_format import Part, TextPart
from memfit.engines.requests import ChosenToken, Progress
from memfit.errors import MemfitError
from memfit.openai.answers import Answer, Frame, total_usage
from memfit.openai.ask import Ask
from memfit.openai.chat_writer import DONE, FINGERPRINT, usage_object
from memfit.openai.llama_answers import llama_body
from memfit.openai.logprobs import completion_logprobs
from memfit.openai.responses import error_object
from memfit.openai.timings import prompt_progress, timings

__all__ = ["CompletionWriter"]


class CompletionWriter:
    """Satisfies answers.AnswerWriter. An echoed prompt is the first part of its choice."""

    def __init__(self, ask: Ask, model: str) -> None:
        self._ask = ask
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._offsets = [0] * ask.choices  # characters of each choice that are written

    def begin(self, prompt_tokens: int) -> Iterable[Frame]:
        del prompt_tokens
        return ()

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        frame = self._chunk(choice, "", ())
        yield Frame(data={**frame, "prompt_progress": prompt_progress(progress)})

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterable[Frame]:
        assert isinstance(part, TextPart), "a completion is text alone"
        yield Frame(data=self._chunk(choice, part.text, tokens))

    def finish(self, choice: int, answer: Answer) -> Iterable[Frame]:
        yield Frame(data=self._chunk(choice, "", (), reason=answer.reason))

    def end(self, answers: Sequence[Answer]) -> Iterable[Frame]:
        if self._ask.usage_in_stream or self._ask.tells_timings:
            last = {**self._head, "choices": [], "usage": usage_object(total_usage(answers, self._ask.n))}
            if self._ask.tells_timings:
                last["timings"] = timings(answers[0])
            yield Frame(data=last)
        yield DONE

    def fail(self, error: MemfitError) -> Iterable[Frame]:
        yield Frame(data={"error": error_object(error)})
        yield DONE

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        found: dict[str, Any] = {
            **self._head,
            "choices": [
                self._entry(index, answer.text, answer.tokens, answer.reason)
                for index, answer in enumerate(answers)
            ],
            "usage": usage_object(total_usage(answers, self._ask.n)),
        }
        if self._ask.tells_timings:
            found["timings"] = timings(answers[0])
        if self._ask.verbose:
            found["__verbose"] = llama_body(self._ask, 0, answers[0], model=self._head["model"])
        return found

    def _chunk(
        self, choice: int, text: str, tokens: Sequence[ChosenToken], reason: str | None = None
    ) -> dict[str, Any]:
        data = {**self._head, "choices": [self._entry(choice, text, tokens, reason)]}
        if self._ask.usage_in_stream:
            data["usage"] = None
        return data

    def _entry(
        self, choice: int, text: str, tokens: Sequence[ChosenToken], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._ask.logprobs is not None:
            logprobs = completion_logprobs(tokens, offset=self._offsets[choice])
        self._offsets[choice] += len(text)
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}
