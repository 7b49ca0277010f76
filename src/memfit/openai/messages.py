"""What an OpenAI request asks: the messages of a chat, of text alone, or the prompt of a completion."""

from __future__ import annotations

from typing import Any

from memfit.engines.requests import Message
from memfit.errors import UsageError
from memfit.openai.contents import read_content
from memfit.openai.fields import read_object, require_harmless
from memfit.openai.turns import function_call, read_arguments
from memfit.strict_json import refusal

__all__ = ["read_messages", "read_prompt"]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_CALLING_ROLES = {**_ROLES, "tool": "tool", "function": "tool"}
_OWN = {"role", "content", "name"}
# Of an assistant's message, as clients send back what they once received.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("annotations", "tool_calls"), ([],)),
    **dict.fromkeys(("audio", "function_call", "refusal"), ()),
}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


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


def read_messages(value: Any, path: str, *, calls: bool = False) -> tuple[Message, ...]:
    """With `calls`, tools' calls and results and reasoning are among them, and fields that nobody knows are
    ignored, as servers do.

    Raises:
        UsageError: no messages, or a part of them that is no text.
    """
    if not isinstance(value, list) or not value:
        raise refusal(path, value, "a list of messages")
    read = _calling_message if calls else _message
    messages = tuple(read(each, f"{path}[{index}]") for index, each in enumerate(value))
    if not calls and not any(message["content"] for message in messages):
        raise UsageError(f"{path}: there is no text in them", field=path, needed="a text")
    return messages


def _message(value: Any, path: str) -> Message:
    message = read_object(value, path, "an object with a role and a content")
    for name, field in message.items():
        if name not in _OWN:
            require_harmless(f"{path}.", name, field, _HARMLESS)
    role = _role(message, path, _ROLES)
    text = read_content(message.get("content"), f"{path}.content", {"text": "text"}, strict=True)
    return {"role": role, "content": text}


def _calling_message(value: Any, path: str) -> Message:
    message = read_object(value, path, "an object with a role and a content")
    role = _role(message, path, _CALLING_ROLES)
    found: dict[str, Any] = {"role": role}
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:
        calls = [{"type": "function", "function": message["function_call"]}]
    reasoning = next((message[name] for name in ("reasoning_content", "reasoning") if message.get(name)), "")
    if role == "assistant" and (calls or reasoning or message.get("refusal")) and content is None:
        content = message.get("refusal") or ""
    if content is None:
        raise refusal(f"{path}.content", content, "a text, or a list of parts of type text")
    found["content"] = read_content(content, f"{path}.content", _TEXT_PARTS)
    if role == "assistant" and calls is not None and (read := _calls(calls, f"{path}.tool_calls")):
        found["tool_calls"] = read
    if role == "assistant" and isinstance(reasoning, str) and reasoning:
        found["reasoning_content"] = reasoning
    for name in ("tool_call_id", "name"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    return found


def _role(message: dict[str, Any], path: str, roles: dict[str, str]) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        raise refusal(f"{path}.role", role, f"one of {', '.join(roles)}")
    return roles[role]


def _calls(value: Any, path: str) -> list[dict[str, Any]]:
    """An assistant's earlier calls, with arguments as the object that templates take."""
    if not isinstance(value, list):
        raise refusal(path, value, "a list of calls")
    return [_call(each, f"{path}[{index}]") for index, each in enumerate(value)]


def _call(value: Any, path: str) -> dict[str, Any]:
    call = read_object(value, path, "an object with a function")
    function = read_object(call.get("function"), f"{path}.function", "an object with a name and arguments")
    name, arguments = function.get("name"), function.get("arguments", "")
    if not isinstance(name, str) or not name:
        raise refusal(f"{path}.function.name", name, "a text")
    if not isinstance(arguments, dict | str):
        raise refusal(f"{path}.function.arguments", arguments, "the JSON of an object")
    identity = call["id"] if isinstance(call.get("id"), str) else None
    return function_call(
        identity, name, read_arguments(arguments) if isinstance(arguments, str) else arguments
    )
