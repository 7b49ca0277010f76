"""The body of OpenAI's Responses → an Ask.

Strict in what it honours; fields that it does not know are ignored, as clients send many. Nothing is kept
between calls, so what refers to an earlier response is refused. responses_answers.py writes what comes back;
responses.py has the bodies of another API, chat completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from memfit.engines.requests import Sampling, TemplateOptions
from memfit.errors import UsageError
from memfit.openai.ask import AUTO, NONE, REQUIRED, Ask
from memfit.openai.contents import read_content
from memfit.openai.fields import (
    field_name,
    read_boolean,
    read_integer,
    read_list,
    read_object,
    read_text,
    require_harmless,
)
from memfit.openai.function_tools import read_functions, require_function
from memfit.openai.sampling_fields import integers, numbers, read_sampling, read_stop
from memfit.openai.turns import Turns, function_call, read_arguments
from memfit.strict_json import refusal, shown

__all__ = ["read_responses", "wants_telemetry"]

_SAMPLING = {
    "max_output_tokens": ("max_tokens", read_integer),
    **numbers("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    # llama-server's, beside the API's own.
    **integers("top_k", "seed"),
    **numbers("min_p", "repeat_penalty"),
    "stop": ("stop", read_stop),
}
_HARMLESS: dict[str, tuple[Any, ...]] = {"background": (False,), "prompt": ()}
_KEPT = ("previous_response_id", "conversation")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_THOUGHTS = {"content": {"reasoning_text": "text"}, "summary": {"summary_text": "text"}}
_CHOICES = {"auto": AUTO, "none": NONE, "required": REQUIRED}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LOGPROBS = "message.output_text.logprobs"
_MOST_LOGPROBS = 20


def read_responses(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """The body's own fields win over `defaults`.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
        EngineError: an image.
    """
    for name in _KEPT:
        if body.get(name) is not None:
            _refuse_kept(name, body[name])
    for name in _HARMLESS:
        require_harmless("", name, body.get(name), _HARMLESS)
    _check_echoed(body)
    tools = read_functions(body.get("tools"), "tools", types=("function",), parameters="parameters")
    choice, function, tools = _tool_choice(body.get("tool_choice"), tools)
    turns = _turns(body)
    model = body.get("model")
    return Ask(
        messages=turns.messages,
        template=TemplateOptions(tools=tools, values=_values(body)),
        tool_choice=choice,
        function=function,
        parallel_calls=_flag(body, "parallel_tool_calls", True),
        sampling=read_sampling(body, _SAMPLING, defaults),
        schema=_schema(body),
        logprobs=_logprobs(body),
        stream=_flag(body, "stream"),
        truncates=_truncates(body.get("truncation")),
        tells_progress=_flag(body, "return_progress"),
        names_tokens=_flag(body, "timings_per_token"),
        model=None if model is None else read_text(model, "model"),
    )


def wants_telemetry(body: Mapping[str, Any]) -> bool:
    """Whether a body, which was read already, asks for what llama-server adds to its events."""
    return bool(body.get("timings_per_token") or body.get("return_progress"))


def _check_echoed(body: Mapping[str, Any]) -> None:
    """What means nothing here, and is part of the response."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        _optional_text(body, name, name)
    if body.get("max_tool_calls") is not None:
        read_integer(body["max_tool_calls"], "max_tool_calls")
    metadata = body.get("metadata")
    for key, value in ({} if metadata is None else read_object(metadata, "metadata")).items():
        read_text(value, f"metadata.{field_name(key)}")


def _optional_text(value: Mapping[str, Any], name: str, path: str) -> None:
    if value.get(name) is not None:
        read_text(value[name], path)


def _turns(body: Mapping[str, Any]) -> Turns:
    turns = Turns()
    if body.get("instructions") is not None:
        turns.say("system", read_text(body["instructions"], "instructions"))
    given = body.get("input")
    if isinstance(given, str):
        turns.say("user", given)
        return turns
    for index, value in enumerate(read_list(given, "input", "a text, or a list of items")):
        path = f"input[{index}]"
        item = read_object(value, path, "an object with a type")
        kind = item.get("type", "message")
        if kind == "item_reference":
            _refuse_kept(f"{path}.type", kind)
        if not isinstance(kind, str) or kind not in _ITEMS:
            raise refusal(f"{path}.type", kind, f"one of {', '.join(_ITEMS)}")
        _ITEMS[kind](turns, item, path)
    return turns


def _refuse_kept(path: str, got: Any) -> NoReturn:
    raise UsageError(
        f"{path}: no responses are kept here; send the whole conversation as input",
        field=path,
        got=shown(got),
        needed="nothing",
    )


def _read_message(turns: Turns, item: Mapping[str, Any], path: str) -> None:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise refusal(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
    if content is None:
        raise refusal(f"{path}.content", content, "a text, or a list of parts")
    text = read_content(content, f"{path}.content", _TEXTS)
    if role == "assistant":
        turns.answer(text)
    else:
        turns.say(_ROLES[role], text)


def _read_call(turns: Turns, item: Mapping[str, Any], path: str) -> None:
    call, name, arguments = (
        read_text(item.get(part), f"{path}.{part}") for part in ("call_id", "name", "arguments")
    )
    turns.answer(calls=(function_call(call, name, read_arguments(arguments)),))


def _read_result(turns: Turns, item: Mapping[str, Any], path: str) -> None:
    call = read_text(item.get("call_id"), f"{path}.call_id")
    turns.result(call, read_content(item.get("output"), f"{path}.output", _TEXTS))


def _read_reasoning(turns: Turns, item: Mapping[str, Any], path: str) -> None:
    """Thoughts as they were, or their summary. What is encrypted only its own service can read."""
    found = [read_content(item.get(field), f"{path}.{field}", texts) for field, texts in _THOUGHTS.items()]
    text = next(filter(None, found), "")
    if text:
        turns.answer(reasoning=text)


_ITEMS: dict[str, Callable[[Turns, Mapping[str, Any], str], None]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_result,
    "reasoning": _read_reasoning,
}


def _tool_choice(
    value: Any, tools: tuple[Mapping[str, Any], ...]
) -> tuple[str, str | None, tuple[Mapping[str, Any], ...]]:
    """The choice, the function that must be called, and the tools that may be."""
    function: str | None = None
    if isinstance(value, dict):
        kind = value.get("type")
        if kind == "function":
            value, function = "required", require_function(value.get("name"), tools, "tool_choice.name")
        elif kind == "allowed_tools":
            tools = _allowed(value, tools)
            value = value.get("mode")
        else:
            raise refusal("tool_choice.type", kind, "function or allowed_tools")
    choice = "auto" if value is None else value
    if not isinstance(choice, str) or choice not in _CHOICES:
        raise refusal("tool_choice", value, f"one of {', '.join(_CHOICES)}, or an object")
    if choice == "required" and not tools:
        raise UsageError("tool_choice: a tool must be called, and there are no tools", field="tool_choice")
    return _CHOICES[choice], function, tools


def _allowed(
    choice: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]
) -> tuple[Mapping[str, Any], ...]:
    """Only these are shown to the model, so that it calls no other."""
    names = []
    for index, value in enumerate(read_list(choice.get("tools"), "tool_choice.tools")):
        path = f"tool_choice.tools[{index}]"
        names.append(require_function(read_object(value, path).get("name"), tools, f"{path}.name"))
    return tuple(tool for tool in tools if tool["function"]["name"] in names)


def _values(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is told. `chat_template_kwargs` is llama-server's field."""
    values: dict[str, Any] = {}
    reasoning = {} if body.get("reasoning") is None else read_object(body["reasoning"], "reasoning")
    _optional_text(reasoning, "summary", "reasoning.summary")
    effort = reasoning.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise refusal("reasoning.effort", effort, f"one of {', '.join(_EFFORTS)}")
        values["enable_thinking"] = effort != "none"
        if effort != "none":
            values["reasoning_effort"] = effort
    own = body.get("chat_template_kwargs")
    return values if own is None else {**values, **read_object(own, "chat_template_kwargs")}


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    text = body.get("text")
    wanted = None if text is None else read_object(text, "text").get("format")
    if wanted is None:
        return None
    kind = read_object(wanted, "text.format").get("type")
    if kind in ("text", "json_object"):
        return {"type": "object"} if kind == "json_object" else None
    if kind != "json_schema":
        raise refusal("text.format.type", kind, "text, json_object or json_schema")
    for name in ("name", "description"):
        _optional_text(wanted, name, f"text.format.{name}")
    schema = read_object(wanted.get("schema"), "text.format.schema")
    from memfit.engines.json_schema import check_schema  # where one is asked for

    check_schema(schema, "text.format.schema")
    return schema


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """They are asked for by their number, or among what is to be included."""
    include = body.get("include")
    included = include is not None and _LOGPROBS in read_list(include, "include")
    top = body.get("top_logprobs")
    if top is None:
        return 0 if included else None
    if not 0 <= read_integer(top, "top_logprobs") <= _MOST_LOGPROBS:
        raise refusal("top_logprobs", top, f"0 to {_MOST_LOGPROBS}")
    return top if top or included else None


def _truncates(value: Any) -> bool:
    if value not in (None, "auto", "disabled"):
        raise refusal("truncation", value, "auto or disabled")
    return bool(value == "auto")


def _flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    return default if body.get(name) is None else read_boolean(body[name], name)
