"""Functions that a model may call, as APIs beside OpenAI's chat write them → in that chat's form.

Knows no API: who reads says what types they have, and where their parameters lie.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from memfit.errors import UsageError
from memfit.openai.fields import read_list, read_object, read_text
from memfit.strict_json import refusal, shown

__all__ = ["read_functions", "require_function"]


def read_functions(
    value: Any, path: str, *, types: Collection[str | None], parameters: str, nested: bool = False
) -> tuple[Mapping[str, Any], ...]:
    """Each has a name, a description and `parameters`: in its field function where they are `nested`.
    Null: there are none.

    Raises:
        UsageError: a tool of another type: the service behind the API runs it, and nothing here does.
    """
    listed = read_list([] if value is None else value, path, "a list of tools")
    tools = tuple(
        _tool(each, f"{path}[{index}]", types, parameters, nested) for index, each in enumerate(listed)
    )
    names = [tool["function"]["name"] for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError(
                f"{path}[{index}]: there is a function {shown(name)} already", field=path, got=name
            )
    return tools


def _tool(
    value: Any, path: str, types: Collection[str | None], parameters: str, nested: bool
) -> dict[str, Any]:
    tool = read_object(value, path)
    kind = tool.get("type")
    if kind not in types:
        needed = " or ".join(filter(None, types))
        raise UsageError(
            f"{path}.type: tools of type {shown(kind)} are not supported, only {needed}",
            field=f"{path}.type",
            got=shown(kind),
            needed=needed,
        )
    if nested:
        return _function(tool.get("function"), f"{path}.function", parameters)
    return _function(tool, path, parameters)


def _function(value: Any, path: str, parameters: str) -> dict[str, Any]:
    """One function; without parameters it takes any object."""
    function = read_object(value, path)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise refusal(f"{path}.name", name, "a function's name")
    read: dict[str, Any] = {"name": name}
    if function.get("description") is not None:
        read["description"] = read_text(function["description"], f"{path}.description")
    given = function.get(parameters)
    read["parameters"] = read_object({"type": "object"} if given is None else given, f"{path}.{parameters}")
    return {"type": "function", "function": read}


def require_function(name: Any, tools: Sequence[Mapping[str, Any]], path: str) -> str:
    """The name of a function that must be called, which has to be among the tools."""
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise refusal(path, name, f"one of the tools: {', '.join(names) or 'there are none'}")
    return str(name)
