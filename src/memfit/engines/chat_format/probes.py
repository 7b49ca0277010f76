"""Renderings of a template to compare: an assistant's message with and without reasoning and calls.

It knows what is rendered and where the assistant's own text begins and ends, not what the text means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from memfit.errors import MemfitError

__all__ = [
    "CONTENT",
    "MARKER",
    "NAMES",
    "REASON",
    "TOOLS",
    "VALUES",
    "Probes",
    "Render",
    "between_markers",
    "shared",
]

# render(messages, tools=None, add_generation_prompt=True, **options) -> the prompt's text
Render: TypeAlias = Callable[..., str]

CONTENT = "Some content here."
REASON = "Some reasons here."
NAMES = ("probe_alpha", "probe_omega")
VALUES = {"first_key": "first_value", "second_key": "second_value"}
MARKER = re.compile(r"<[^<>\s](?:[^<>]*[^<>\s])?>|\[/?[A-Z][A-Z_ ]*\]")
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A function.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": "A text."} for key in VALUES},
                "required": [*VALUES],
            },
        },
    }
    for name in NAMES
)
_FIELDS = ("reasoning_content", "reasoning", "thinking")  # where messages carry reasoning
_LONGEST = 100_000  # letters; no template writes as much around two short messages
_USER = {"role": "user", "content": "A question."}
_IDS = ("call00001", "call00002")  # nine letters and digits, as Mistral's templates want them


@dataclass(frozen=True)
class Probes:
    """A template's renderings. What it refuses is None."""

    render: Render

    def prompt(self, tools: Sequence[Mapping[str, Any]] | None = None) -> str | None:
        return self._rendered([_USER], tools, True)

    def plain(self) -> tuple[str, str] | None:
        """What stands before and after an assistant's content."""
        text = self._rendered([_USER, {"role": "assistant", "content": CONTENT}], TOOLS, False)
        if text is None or CONTENT not in text:
            return None
        before, _, after = text.partition(CONTENT)
        return before, after

    def thoughts(self) -> list[str]:
        """Whole renderings of answers with reasoning, before text or before a call."""
        calls = {"content": "", "tool_calls": [_call(0, as_text=False)]}
        messages = [
            {"role": "assistant", field: REASON, **rest}
            for rest in ({"content": CONTENT}, calls)
            for field in _FIELDS
        ]
        texts = [self._rendered([_USER, message], TOOLS, False) for message in messages]
        return [text for text in texts if text is not None and REASON in text]

    def called(self, calls: int) -> str | None:
        """The assistant's own part of an answer with calls."""
        plain = self.plain()
        for content in ("", None):
            for as_text in (False, True):
                message = {
                    "role": "assistant",
                    "content": content,
                    "tool_calls": [_call(index, as_text=as_text) for index in range(calls)],
                }
                text = self._rendered([_USER, message], TOOLS, False)
                if text is not None and plain is not None and _is_call(text):
                    return between_markers(text, *plain)
        return None

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str | None:
        try:
            text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        except MemfitError:
            return None
        return text if len(text) < _LONGEST else None


def _call(index: int, *, as_text: bool) -> dict[str, Any]:
    arguments: Any = '{"first_key": "first_value", "second_key": "second_value"}' if as_text else VALUES
    return {
        "id": _IDS[index],
        "type": "function",
        "function": {"name": NAMES[index], "arguments": arguments},
    }


def _is_call(text: str) -> bool:
    """Whether arguments stand in a rendering, and not as JSON inside of JSON."""
    _, found, after = text.rpartition(NAMES[0])
    return bool(found) and VALUES["first_key"] in after and '\\"first_key' not in after


def between_markers(text: str, before: str, after: str) -> str:
    """`text` without what it begins with as `before` and ends with as `after`, but no marker cut in two."""
    start = shared(text, before)
    end = len(text) - shared(text[start:][::-1], after[::-1])
    for match in MARKER.finditer(text):
        if match.start() < start < match.end():
            start = match.start()
        if match.start() < end < match.end():
            end = match.end()
    return text[start:end].strip()


def shared(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
