"""What an OpenAI request asks: the messages of a chat, of text alone, or the prompt of a completion."""

from __future__ import annotations

from typing import Any

from memfit.engines.requests import Message
from memfit.errors import UsageError
from memfit.openai.fields import read_object, require_harmless, require_known
from memfit.strict_json import refusal, shown

__all__ = ["read_messages", "read_prompt"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_OWN = {"role", "content", "name"}
# Of an assistant's message, as clients send back what they once received.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("annotations", "tool_calls"), ([],)),
    **dict.fromkeys(("audio", "function_call", "refusal"), ()),
}


def read_prompt(value: Any, path: str) -> str:
    if isinstance(value, list) and len(value) == 1:  # a list of one text is OpenAI's other spelling
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        raise UsageError(
            f"{path}: got {len(value)} prompts; give each a line of its own",
            field=path,
            got=len(value),
            needed=1,
        )
    if not isinstance(value, str):
        raise refusal(path, value, "a text")
    if not value:
        raise UsageError(f"{path} is empty", field=path, got="", needed="a text")
    return value


def read_messages(value: Any, path: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise refusal(path, value, "a list of messages")
    messages = tuple(_message(each, f"{path}[{index}]") for index, each in enumerate(value))
    if not any(message["content"] for message in messages):
        raise UsageError(f"{path}: there is no text in them", field=path, needed="a text")
    return messages


def _message(value: Any, path: str) -> Message:
    message = read_object(value, path, "an object with a role and a content")
    for name, field in message.items():
        if name not in _OWN:
            require_harmless(f"{path}.", name, field, _HARMLESS)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise refusal(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _content(message.get("content"), f"{path}.content")}


def _content(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refusal(path, value, "a text, or a list of parts of type text")
    # Joined as llama.cpp's server and vLLM do for templates that know no parts.
    return "\n".join(_part(each, f"{path}[{index}]") for index, each in enumerate(value))


def _part(value: Any, path: str) -> str:
    part = read_object(value, path, 'an object of type "text"')
    kind = part.get("type")
    if kind != "text":
        raise UsageError(
            f"{path}: parts of type {shown(kind)} are not supported; only text is",
            field=f"{path}.type",
            got=shown(kind),
            needed="text",
        )
    require_known(part, {"type", "text"}, path)
    text = part.get("text")
    if not isinstance(text, str):
        raise refusal(f"{path}.text", text, "a text")
    return text
