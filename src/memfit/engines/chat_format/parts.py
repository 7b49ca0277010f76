"""What an answer's text is made of, once it is parsed: text, reasoning, and the calls of tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["CallArguments", "CallBegins", "Part", "ReasoningPart", "TextPart"]


@dataclass(frozen=True)
class TextPart:
    """A piece of what the user reads."""

    text: str


@dataclass(frozen=True)
class ReasoningPart:
    """A piece of what the model thought before it answered."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of a tool: the first of an answer has index 0. Its arguments follow before any other part."""

    index: int
    id: str | None  # as the model wrote it; None: its format has none
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments: all pieces of an index together are the text of one JSON object."""

    index: int
    text: str


Part: TypeAlias = TextPart | ReasoningPart | CallBegins | CallArguments
