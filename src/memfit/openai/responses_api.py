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
from memfit.openai.ask import Ask
from memfit.openai.contents import read_content
from memfit.openai.fields import (
    field_name,
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
from memfit.openai.tools import read_tool_choice, read_tools
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
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LOGPROBS = "message.output_text.logprobs"
_MOST_LOGPROBS = 20


def read_responses(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """The body's own fields win over `defaults`.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
    """
    for name in _KEPT:
        if body.get(name) is not None:
            _refuse_kept(name, body[name])
    for name in _HARMLESS:
        require_harmless("", name, body.get(name), _HARMLESS)
    _check_echoed(body)
    # Those of other types are the service's own, and clients offer them everywhere.
    offered = read_tools(body.get("tools"), "tools", types=("function",), nested=False, skips=True)
    choice = read_tool_choice(body.get("tool_choice"), "tool_choice", offered.tools, nested=False)
    turns = _turns(body)
    return Ask(
        messages=turns.messages,
        template=TemplateOptions(tools=choice.tools, values=_values(body)),
        tool_choice=choice.choice,
        function=choice.function,
        parallel_calls=read_flag(body, "parallel_tool_calls", default=True),
        sampling=read_sampling(body, _SAMPLING, defaults),
        schema=_schema(body),
        logprobs=_logprobs(body),
        stream=read_flag(body, "stream"),
        truncates=_truncates(body.get("truncation")),
        tells_progress=read_flag(body, "return_progress"),
        names_tokens=read_flag(body, "timings_per_token"),
        model=read_optional_text(body, "model"),
        warnings=offered.warnings,
    )


def wants_telemetry(body: Mapping[str, Any]) -> bool:
    """Whether a body, which was read already, asks for what llama-server adds to its events."""
    return bool(body.get("timings_per_token") or body.get("return_progress"))


def _check_echoed(body: Mapping[str, Any]) -> None:
    """What means nothing here, and is part of the response."""
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        read_optional_text(body, name)
    if body.get("max_tool_calls") is not None:
        read_integer(body["max_tool_calls"], "max_tool_calls")
    metadata = body.get("metadata")
    for key, value in ({} if metadata is None else read_object(metadata, "metadata")).items():
        read_text(value, f"metadata.{field_name(key)}")


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


def _values(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is told. `chat_template_kwargs` is llama-server's field."""
    values: dict[str, Any] = {}
    reasoning = {} if body.get("reasoning") is None else read_object(body["reasoning"], "reasoning")
    read_optional_text(reasoning, "summary", "reasoning.")
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
        read_optional_text(wanted, name, "text.format.")
    return read_schema(wanted.get("schema"), "text.format.schema")


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
