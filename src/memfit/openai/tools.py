"""The tools that a body offers, and which of them it wants called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.errors import UsageError
from memfit.openai.ask import AUTO, NONE, REQUIRED
from memfit.openai.fields import read_object
from memfit.strict_json import refusal, shown

__all__ = ["ToolChoice", "read_tool_choice", "read_tools"]

_MOST_TOOLS = 512
_MOST_NAME = 256


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """Which tools there are, and which must be called."""

    tools: tuple[Mapping[str, Any], ...]
    choice: str = AUTO  # or NONE, REQUIRED
    function: str | None = None  # that one, where a call is required


def read_tools(value: Any, path: str) -> tuple[Mapping[str, Any], ...]:
    """Functions in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}.

    Raises:
        UsageError: something else is among them.
    """
    if not isinstance(value, list) or len(value) > _MOST_TOOLS:
        raise refusal(path, value, f"a list of at most {_MOST_TOOLS} tools")
    tools = tuple(_tool(each, f"{path}[{index}]") for index, each in enumerate(value))
    names = [one["function"]["name"] for one in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: there are two functions {shown(twice)}", field=path)
    return tools


def read_tool_choice(value: Any, path: str, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """OpenAI's tool_choice: a word, a function, or the functions that are allowed. None is as left out.

    Raises:
        UsageError: it is none, or names a function that is not there.
    """
    offered = tuple(tools)
    if value is None:
        return ToolChoice(tools=offered)
    if isinstance(value, str):
        if value not in (AUTO, NONE, REQUIRED):
            raise refusal(path, value, f"{AUTO}, {NONE}, {REQUIRED} or a function")
        if value == REQUIRED and not tools:
            raise UsageError(f"{path}: a call is required, and there are no tools", field=path)
        return ToolChoice(tools=offered, choice=value)
    wanted = read_object(value, path, f"{AUTO}, {NONE}, {REQUIRED} or a function")
    if wanted.get("type") == "allowed_tools":
        return _allowed(wanted, path, offered)
    if wanted.get("type") != "function":
        raise refusal(f"{path}.type", wanted.get("type"), "function")
    name = _name_of(wanted, path)
    return ToolChoice(tools=_named(offered, {name}, path), choice=REQUIRED, function=name)


def _allowed(wanted: Mapping[str, Any], path: str, tools: tuple[Mapping[str, Any], ...]) -> ToolChoice:
    described = wanted.get("allowed_tools", wanted)
    inner = read_object(described, f"{path}.allowed_tools")
    mode, listed = inner.get("mode", AUTO), inner.get("tools")
    if mode not in (AUTO, REQUIRED):
        raise refusal(f"{path}.mode", mode, f"{AUTO} or {REQUIRED}")
    if not isinstance(listed, list):
        raise refusal(f"{path}.tools", listed, "a list of functions")
    names = {_name_of(read_object(one, f"{path}.tools"), f"{path}.tools") for one in listed}
    return ToolChoice(tools=_named(tools, names, path), choice=mode)


def _name_of(wanted: Mapping[str, Any], path: str) -> str:
    """Of a function as chats have it, or as Responses have it, without the inner object."""
    inner = wanted.get("function", wanted)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise refusal(f"{path}.function.name", name, "a function's name")
    return name


def _named(tools: tuple[Mapping[str, Any], ...], names: set[str], path: str) -> tuple[Mapping[str, Any], ...]:
    for name in names - {one["function"]["name"] for one in tools}:
        raise UsageError(f"{path}: there is no function {shown(name)} among the tools", field=path, got=name)
    return tuple(one for one in tools if one["function"]["name"] in names)


def _tool(value: Any, path: str) -> Mapping[str, Any]:
    tool = read_object(value, path, "an object with a function")
    if tool.get("type", "function") != "function":
        raise UsageError(
            f"{path}: tools of type {shown(tool['type'])} are not supported; only function is",
            field=f"{path}.type",
            got=shown(tool["type"]),
            needed="function",
        )
    function = read_object(tool.get("function"), f"{path}.function", "an object with a name")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME:
        raise refusal(f"{path}.function.name", name, f"a text of up to {_MOST_NAME} characters")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise refusal(f"{path}.function.description", description, "a text")
    if parameters is not None:
        read_object(parameters, f"{path}.function.parameters", "a JSON schema")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description or "",
            "parameters": parameters or {"type": "object", "properties": {}},
        },
    }
