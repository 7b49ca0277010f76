"""Messages in the engine's form, made of what an API brings piece by piece: texts, thoughts, calls, results.

Turns of one role in a row become one message, as most chat templates know only turns that alternate. Knows no
API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memfit.engines.requests import Message
from memfit.openai.contents import joined

__all__ = ["Turns", "function_call", "read_arguments"]


class Turns:
    """Messages to come, in their order."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of functions, by the ids of their calls

    @property
    def messages(self) -> tuple[Message, ...]:
        """An empty conversation is a user's message that says nothing: llama-server answers it too."""
        return tuple(self._messages) or ({"role": "user", "content": ""},)

    @property
    def is_continued(self) -> bool:
        """Whether the last message is an assistant's text, which the answer continues."""
        last = self._messages[-1] if self._messages else {}
        return last.get("role") == "assistant" and "tool_calls" not in last

    def say(self, role: str, text: str) -> None:
        """What a user, or the system, says."""
        self._add(role, text)

    def answer(
        self, text: str = "", *, reasoning: str = "", calls: tuple[Mapping[str, Any], ...] = ()
    ) -> None:
        """A piece of what the assistant said, thought and called."""
        message = self._add("assistant", text)
        if reasoning:
            message["reasoning_content"] = joined((message.get("reasoning_content"), reasoning))
        if calls:
            message["tool_calls"] = [*message.get("tool_calls", ()), *calls]
            self._names |= {call["id"]: call["function"]["name"] for call in calls}

    def result(self, call: str, text: str, *, name: str | None = None) -> None:
        """What a call gave. Some templates want the function's name."""
        message: dict[str, Any] = {"role": "tool", "content": text, "tool_call_id": call}
        name = name or self._names.get(call)
        self._messages.append({**message, "name": name} if name else message)

    def _add(self, role: str, text: str) -> dict[str, Any]:
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role, "content": text})
        else:
            self._messages[-1]["content"] = joined((self._messages[-1]["content"], text))
        return self._messages[-1]


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
