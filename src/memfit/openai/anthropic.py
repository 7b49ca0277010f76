"""The body of Anthropic's Messages → an Ask.

Strict in what it honours. Fields that it does not know are ignored, as clients send many: accounting, caching
and places of a service. anthropic_answers.py writes what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.requests import Sampling, TemplateOptions
from memfit.errors import UsageError
from memfit.openai.ask import AUTO, NONE, REQUIRED, Ask
from memfit.openai.contents import joined, read_content, refuse_part
from memfit.openai.fields import (
    read_boolean,
    read_flag,
    read_integer,
    read_list,
    read_object,
    read_optional_text,
    read_text,
    require_harmless,
)
from memfit.openai.sampling import integers, numbers, read_sampling, read_stop
from memfit.openai.schemas import read_schema
from memfit.openai.tools import read_tools, require_function
from memfit.openai.turns import Turns, function_call
from memfit.strict_json import refusal

__all__ = ["read_anthropic"]

_SAMPLING = {
    **integers("max_tokens", "top_k"),
    **numbers("temperature", "top_p"),
    "stop_sequences": ("stop", read_stop),
}
_TEXTS = {"text": "text"}
# "adaptive" and "between_tools" leave it to the model when it thinks, which a template cannot say.
_THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_CHOICES = {"auto": AUTO, "any": REQUIRED, "tool": REQUIRED, "none": NONE}
# A header of Claude Code's in its system prompt. A number in it changes with every call, so that the KV cache
# would hold nothing of the prompt.
_BILLING = re.compile(r"(?s)\A(x-anthropic-billing-header:[^\n]*?cch=)[^;\n]*")


def read_anthropic(body: Mapping[str, Any], *, defaults: Sampling, counts_only: bool = False) -> Ask:
    """The body's own fields win over `defaults`. Where tokens are only counted, `max_tokens` may be missing.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
        EngineError: an image.
    """
    # Tools that the service itself would call.
    require_harmless("", "mcp_servers", body.get("mcp_servers"), {"mcp_servers": ([],)})
    if not counts_only:
        read_integer(body.get("max_tokens"), "max_tokens")
    tools = read_tools(
        body.get("tools"), "tools", types=(None, "custom"), parameters="input_schema", nested=False
    ).tools
    turns = _turns(body)
    choice, function, parallel = _tool_choice(body.get("tool_choice"), tools)
    return Ask(
        messages=turns.messages,
        template=TemplateOptions(tools=tools, values=_values(body), continues=turns.is_continued),
        tool_choice=choice,
        function=function,
        parallel_calls=parallel,
        sampling=read_sampling(body, _SAMPLING, defaults),
        schema=_schema(body),
        stream=read_flag(body, "stream"),
        model=read_optional_text(body, "model"),
    )


def _turns(body: Mapping[str, Any]) -> Turns:
    turns = Turns()
    system = read_content(_without_number(body.get("system")), "system", _TEXTS)
    if system:
        turns.say("system", system)
    for index, value in enumerate(read_list(body.get("messages"), "messages", "a list of messages")):
        path = f"messages[{index}]"
        message = read_object(value, path, "an object with a role and a content")
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise refusal(f"{path}.role", role, "user, assistant or system")
        _read_message(turns, role, message.get("content"), f"{path}.content")
    return turns


def _without_number(system: Any) -> Any:
    """A system prompt whose billing header is the same in every call."""
    if isinstance(system, str):
        return _BILLING.sub(r"\1", system)
    if isinstance(system, list):
        return [
            {**part, "text": _without_number(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in system
        ]
    return system


def _read_message(turns: Turns, role: str, content: Any, path: str) -> None:
    if not isinstance(content, str | list):
        raise refusal(path, content, "a text, or a list of blocks")
    found = _Message()
    if isinstance(content, str):
        found.texts.append(content)
    else:
        for index, value in enumerate(content):
            block = read_object(value, f"{path}[{index}]", "an object with a type")
            kind = block.get("type")
            read = _BLOCKS[role].get(kind) if isinstance(kind, str) else None
            if read is None:
                refuse_part(kind, f"{path}[{index}]", _BLOCKS[role])
            read(found, block, f"{path}[{index}]")
    # Results first, wherever they stand: templates want them next to their calls.
    for call, text in found.results:
        turns.result(call, text)
    if role == "assistant":
        turns.answer(joined(found.texts), reasoning=joined(found.thoughts), calls=tuple(found.calls))
    elif found.texts or not found.results:
        turns.say(role, joined(found.texts))


@dataclass
class _Message:
    """What a message's blocks hold."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)  # a call's id, and what came of it


def _read_text_block(found: _Message, block: Mapping[str, Any], path: str) -> None:
    found.texts.append(read_text(block.get("text"), f"{path}.text"))


def _read_thinking(found: _Message, block: Mapping[str, Any], path: str) -> None:
    found.thoughts.append(read_text(block.get("thinking"), f"{path}.thinking"))


def _skip(found: _Message, block: Mapping[str, Any], path: str) -> None:
    """Thoughts that only the service that hid them could read."""


def _read_tool_use(found: _Message, block: Mapping[str, Any], path: str) -> None:
    call, name = (read_text(block.get(part), f"{path}.{part}") for part in ("id", "name"))
    found.calls.append(function_call(call, name, read_object(block.get("input"), f"{path}.input")))


def _read_tool_result(found: _Message, block: Mapping[str, Any], path: str) -> None:
    call = read_text(block.get("tool_use_id"), f"{path}.tool_use_id")
    text = read_content(block.get("content"), f"{path}.content", _TEXTS)
    failed = block.get("is_error") is not None and read_boolean(block["is_error"], f"{path}.is_error")
    # No chat template has a place for it.
    found.results.append((call, f"Error: {text}" if failed else text))


_Reader = Callable[[_Message, Mapping[str, Any], str], None]
_BLOCKS: dict[str, dict[str, _Reader]] = {
    "system": {"text": _read_text_block},
    "user": {"text": _read_text_block, "tool_result": _read_tool_result},
    "assistant": {
        "text": _read_text_block,
        "tool_use": _read_tool_use,
        "thinking": _read_thinking,
        "redacted_thinking": _skip,
    },
}


def _values(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is told. `chat_template_kwargs` is llama-server's field."""
    values: dict[str, Any] = {}
    if body.get("thinking") is not None:
        values["enable_thinking"] = _is_thinking(read_object(body["thinking"], "thinking"))
    effort = _output_config(body).get("effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise refusal("output_config.effort", effort, f"one of {', '.join(_EFFORTS)}")
        values["reasoning_effort"] = _EFFORTS[effort]
    own = body.get("chat_template_kwargs")
    return values if own is None else {**values, **read_object(own, "chat_template_kwargs")}


def _is_thinking(thinking: Mapping[str, Any]) -> bool:
    kind = thinking.get("type")
    if not isinstance(kind, str) or kind not in _THINKING:
        raise refusal("thinking.type", kind, f"one of {', '.join(_THINKING)}")
    if kind == "enabled":  # read, and no limit: `max_tokens` is
        read_integer(thinking.get("budget_tokens"), "thinking.budget_tokens")
    return _THINKING[kind]


def _tool_choice(value: Any, tools: tuple[Mapping[str, Any], ...]) -> tuple[str, str | None, bool]:
    """The choice, the function that must be called, and whether there may be several calls."""
    if value is None:
        return AUTO, None, True
    choice = read_object(value, "tool_choice")
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise refusal("tool_choice.type", kind, f"one of {', '.join(_CHOICES)}")
    if _CHOICES[kind] == REQUIRED and not tools:
        raise UsageError("tool_choice: a tool must be called, and there are no tools", field="tool_choice")
    single = choice.get("disable_parallel_tool_use")
    parallel = single is None or not read_boolean(single, "tool_choice.disable_parallel_tool_use")
    named = kind == "tool"
    function = require_function(choice.get("name"), tools, "tool_choice.name") if named else None
    return _CHOICES[kind], function, parallel


def _output_config(body: Mapping[str, Any]) -> Mapping[str, Any]:
    value = body.get("output_config")
    return {} if value is None else read_object(value, "output_config")


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = _output_config(body).get("format")
    if wanted is None:
        return None
    path = "output_config.format"
    kind = read_object(wanted, path).get("type")
    if kind != "json_schema":
        raise refusal(f"{path}.type", kind, "json_schema")
    schema = read_object(wanted.get("schema"), f"{path}.schema")
    from memfit.engines.json_schema.keywords import ANNOTATIONS, ENFORCED, REFUSED  # where one is asked for

    if not schema.keys() & {*ANNOTATIONS, *ENFORCED, *REFUSED}:
        return {}  # any JSON: the API's own examples have schemas without a word of JSON Schema's
    return read_schema(schema, f"{path}.schema")
