"""Messages in the engine's form, made of what an API brings piece by piece: texts, thoughts, calls, results.

Turns of one role in a row become one message, as most chat templates know only turns that alternate. Knows no
API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.requests import Message
from memfit.openai.contents import joined

__all__ = ["Turns", "function_call", "read_arguments"]


@dataclass(kw_only=True)
class _Turn:
    """A message to come. Its pieces are joined once, as there may be very many."""

    role: str
    texts: list[str]
    thoughts: list[str] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        found = {"role": self.role, "content": joined(self.texts), **self.more}
        found |= {"reasoning_content": joined(self.thoughts)} if self.thoughts else {}
        return {**found, "tool_calls": self.calls} if self.calls else found


class Turns:
    """Messages to come, in their order."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._names: dict[str, str] = {}  # of functions, by the ids of their calls

    @property
    def messages(self) -> tuple[Message, ...]:
        """An empty conversation is a user's message that says nothing: llama-server answers it too."""
        return tuple(one.message for one in self._turns) or ({"role": "user", "content": ""},)

    @property
    def is_continued(self) -> bool:
        """Whether the last message is an assistant's text, which the answer continues."""
        return bool(self._turns) and self._turns[-1].role == "assistant" and not self._turns[-1].calls

    def say(self, role: str, text: str) -> None:
        """What a user, or the system, says."""
        self._add(role, text)

    def answer(
        self, text: str = "", *, reasoning: str = "", calls: tuple[Mapping[str, Any], ...] = ()
    ) -> None:
        """A piece of what the assistant said, thought and called."""
        turn = self._add("assistant", text)
        if reasoning:
            turn.thoughts.append(reasoning)
        turn.calls += calls
        self._names |= {call["id"]: call["function"]["name"] for call in calls}

    def result(self, call: str, text: str, *, name: str | None = None) -> None:
        """What a call gave. Some templates want the function's name."""
        name = name or self._names.get(call)
        more = {"tool_call_id": call, **({"name": name} if name else {})}
        self._turns.append(_Turn(role="tool", texts=[text], more=more))

    def _add(self, role: str, text: str) -> _Turn:
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role=role, texts=[]))
        self._turns[-1].texts.append(text)
        return self._turns[-1]


def function_call(call: str | None, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`call` is its id, where it has one."""
    identity = {} if call is None else {"id": call}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object. A model may have failed to write one: its text is kept then.

    The key is the one that Anthropic tells its clients to wrap such a text with.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
