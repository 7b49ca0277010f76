"""What every API's answers are made of: choices with their parts, and what they cost.

A writer makes one API's frames or body of them. The server feeds writers; it knows none of their shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from memfit.engines.chat_format import Part
from memfit.engines.requests import ChosenToken, Progress, Speed
from memfit.errors import MemfitError

__all__ = ["Answer", "AnswerWriter", "Frame", "Reason", "ToolCall", "Usage", "total_usage"]

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One event of a stream: its name, where the API names events, and its JSON; or a text as it is."""

    data: dict[str, Any] | str
    event: str | None = None


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call in an answer."""

    id: str
    name: str
    arguments: str  # JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one choice, or of all."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion's


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One choice, whole."""

    text: str
    reason: Reason
    usage: Usage
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    stop: str | None = None  # the stop string that ended it
    tokens: tuple[ChosenToken, ...] = ()  # where they were asked for
    speed: Speed = field(default_factory=Speed)
    prompt: str | None = None  # as the model read it, where it was asked for


def total_usage(answers: Sequence[Answer], n: int) -> Usage:
    """Of all choices, `n` of each prompt, which counts once."""
    usages = [one.usage for one in answers]
    return Usage(
        prompt_tokens=sum(one.prompt_tokens for one in usages[::n]),
        cached_tokens=sum(one.cached_tokens for one in usages[::n]),
        completion_tokens=sum(one.completion_tokens for one in usages),
        reasoning_tokens=sum(one.reasoning_tokens for one in usages),
    )


class AnswerWriter(Protocol):
    """One API's way to write one call's answers. Made for one call; a stream goes through it in order."""

    def begin(self, prompt_tokens: int) -> Iterable[Frame]:
        """The stream's first frames; they come once the first choice's prompt is known."""

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        """How far a prompt is, where that was asked for."""

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterable[Frame]:
        """A piece of a choice. `tokens` are what it was made of, where they were asked for."""

    def finish(self, choice: int, answer: Answer) -> Iterable[Frame]:
        """A choice has ended; `answer` is all of it."""

    def end(self, answers: Sequence[Answer]) -> Iterable[Frame]:
        """All choices have ended."""

    def fail(self, error: MemfitError) -> Iterable[Frame]:
        """The stream's last frames, where it cannot go on."""

    def body(self, answers: Sequence[Answer]) -> Any:
        """The whole response of a call that is not streamed, as JSON: an object, or a list of them."""
