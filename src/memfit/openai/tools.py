"""The functions that a body offers, in the form of OpenAI's chats, and which of them it wants called.

Knows no API: who reads says what types they have, and where their names and parameters lie.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.errors import UsageError
from memfit.openai.ask import AUTO, NONE, REQUIRED
from memfit.openai.fields import read_list, read_object, read_text
from memfit.strict_json import refusal, shown

__all__ = ["Offered", "ToolChoice", "read_tool_choice", "read_tools", "require_function"]

_MOST_TOOLS = 512
_MOST_NAME = 256  # characters

_Tools = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What a body offers."""

    tools: _Tools  # functions
    warnings: tuple[str, ...] = ()  # of those that were left out


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """Which tools there are, and which must be called."""

    tools: _Tools
    choice: str = AUTO  # or NONE, REQUIRED
    function: str | None = None  # that one, where a call is required


def read_tools(
    value: Any,
    path: str,
    *,
    types: Collection[str | None] = (None, "function"),
    parameters: str = "parameters",
    nested: bool = True,
    skips: bool = False,
) -> Offered:
    """Each has a name, a description and `parameters`: in its field function where they are `nested`.
    Null: there are none. With `skips`, tools of other types are left out, with a warning.

    Raises:
        UsageError: a tool of another type: the service behind the API runs it, and nothing here does.
    """
    listed = read_list([] if value is None else value, path, "a list of tools")
    if len(listed) > _MOST_TOOLS:
        raise refusal(path, value, f"a list of at most {_MOST_TOOLS} tools")
    tools: dict[str, dict[str, Any]] = {}
    warnings: dict[str, None] = {}
    for index, each in enumerate(listed):
        here = f"{path}[{index}]"
        tool = read_object(each, here, "an object with a function")
        kind = tool.get("type")
        if kind not in types and skips and isinstance(kind, str):
            warnings[f"tools of type {shown(kind)} are left out; nothing here runs them"] = None
            continue
        if kind not in types:
            raise _other_type(kind, f"{here}.type", types)
        where = f"{here}.function" if nested else here
        function = _function(tool.get("function") if nested else tool, where, parameters)
        name = function["function"]["name"]
        if name in tools:
            raise UsageError(f"{here}: there is a function {shown(name)} already", field=path, got=name)
        tools[name] = function
    return Offered(tools=tuple(tools.values()), warnings=tuple(warnings))


def read_tool_choice(value: Any, path: str, tools: _Tools, *, nested: bool = True) -> ToolChoice:
    """OpenAI's tool_choice: a word, a function, or the functions that are allowed. Null is as left out; a
    function's name lies in its field function where it is `nested`.

    Raises:
        UsageError: it is none, or names a function that is not there.
    """
    if not isinstance(value, dict):
        return ToolChoice(tools=tools, choice=_word(AUTO if value is None else value, path, tools))
    kind = value.get("type")
    if kind == "function":
        return ToolChoice(tools=tools, choice=REQUIRED, function=_named(value, path, tools, nested))
    if kind != "allowed_tools":
        raise refusal(f"{path}.type", kind, "function or allowed_tools")
    if nested:
        path += ".allowed_tools"
        value = read_object(value.get("allowed_tools"), path)
    allowed = [
        _named(read_object(one, f"{path}.tools[{index}]"), f"{path}.tools[{index}]", tools, nested)
        for index, one in enumerate(read_list(value.get("tools"), f"{path}.tools"))
    ]
    # Only these are shown to the model, so that it calls no other.
    kept = tuple(tool for tool in tools if tool["function"]["name"] in allowed)
    mode = value.get("mode")
    if mode not in (None, AUTO, REQUIRED):
        raise refusal(f"{path}.mode", mode, f"{AUTO} or {REQUIRED}")
    return ToolChoice(tools=kept, choice=_word(mode or AUTO, path, kept))


def require_function(name: Any, tools: Sequence[Mapping[str, Any]], path: str) -> str:
    """The name of a function that must be called, which has to be among the tools."""
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise refusal(path, name, f"one of the tools: {', '.join(names) or 'there are none'}")
    return str(name)


def _word(value: Any, path: str, tools: _Tools) -> str:
    if not isinstance(value, str) or value not in (AUTO, NONE, REQUIRED):
        raise refusal(path, value, f"{AUTO}, {NONE}, {REQUIRED} or a function")
    if value == REQUIRED and not tools:
        raise UsageError(f"{path}: a tool must be called, and there are no tools", field=path)
    return value


def _named(value: Mapping[str, Any], path: str, tools: _Tools, nested: bool) -> str:
    if nested:
        path += ".function"
        value = read_object(value.get("function"), path, "an object with a name")
    return require_function(value.get("name"), tools, f"{path}.name")


def _other_type(kind: Any, path: str, types: Collection[str | None]) -> UsageError:
    needed = " or ".join(filter(None, types))
    return UsageError(
        f"{path}: tools of type {shown(kind)} are not supported, only {needed}",
        field=path,
        got=shown(kind),
        needed=needed,
    )


def _function(value: Any, path: str, parameters: str) -> dict[str, Any]:
    """One function; without parameters it takes any object."""
    function = read_object(value, path, "an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME:
        raise refusal(f"{path}.name", name, f"a function's name of up to {_MOST_NAME} characters")
    read: dict[str, Any] = {"name": name}
    if function.get("description") is not None:
        read["description"] = read_text(function["description"], f"{path}.description")
    given = function.get(parameters)
    read["parameters"] = read_object({"type": "object"} if given is None else given, f"{path}.{parameters}")
    return {"type": "function", "function": read}
