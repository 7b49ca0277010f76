"""The body of an OpenAI chat or completion → a request.

Strict: what memfit cannot honour is refused by name, so that no answer silently ignores what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from memfit.engines.requests import Request, Sampling
from memfit.errors import UsageError, WrongValueError
from memfit.openai.fields import read_integer, read_number, read_object, require_harmless, require_known
from memfit.openai.messages import read_messages, read_prompt
from memfit.strict_json import refusal

__all__ = ["QUESTIONS", "Form", "read_request"]

Form = Literal["chat", "completion"]
QUESTIONS: dict[Form, str] = {"chat": "messages", "completion": "prompt"}  # the field that has what is asked

_INTEGERS = ("max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repeat_penalty")
_OWN = {"messages", "prompt", "stop", "response_format", "max_completion_tokens", *_INTEGERS, *_NUMBERS}
# Accounting and caching of a paid service: nothing that an answer depends on.
_MEANINGLESS = {
    *("model", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
}
# Other fields of OpenAI's bodies → their values, beside null, that ask for nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "stream_options", "verbosity"), ()),
    "web_search_options": (),
    **dict.fromkeys(("echo", "logprobs", "stream"), (False,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,)),
    **dict.fromkeys(("best_of", "n"), (1,)),
    **dict.fromkeys(("functions", "tools"), ([],)),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "suffix": ("",),
}


def read_request(
    body: Mapping[str, Any],
    form: Form,
    *,
    number: int,
    defaults: Sampling,
    schema: Mapping[str, Any] | None = None,
    prefix: str = "body.",
) -> Request:
    """The body's own fields win over `defaults`, its response_format over `schema`; null is as left out.

    `prefix` stands before the names of fields in errors.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
    """
    for name, value in body.items():
        if name not in _OWN and name not in _MEANINGLESS:
            require_harmless(prefix, name, value, _HARMLESS)
    fields = {name: value for name, value in body.items() if value is not None}
    sampling = _sampling(fields, prefix, defaults)
    if "response_format" in fields:
        schema = _schema(fields["response_format"], f"{prefix}response_format")
    wanted = QUESTIONS[form]
    for name in QUESTIONS.values():
        if name in fields and name != wanted:
            path = f"{prefix}{name}"
            raise UsageError(f"{path} is not for this url, which takes {wanted}", field=path, needed=wanted)
    asked, path = fields.get(wanted), f"{prefix}{wanted}"
    if form == "chat":
        messages = read_messages(asked, path)
        return Request(number=number, messages=messages, sampling=sampling, schema=schema)
    return Request(number=number, prompt=read_prompt(asked, path), sampling=sampling, schema=schema)


def _sampling(fields: Mapping[str, Any], prefix: str, defaults: Sampling) -> Sampling:
    given: dict[str, Any] = {}
    for names, read in ((_INTEGERS, read_integer), (_NUMBERS, read_number)):
        given |= {name: read(fields[name], prefix + name) for name in names if name in fields}
    spelled = {}
    if "max_completion_tokens" in fields:
        path = f"{prefix}max_tokens"
        if "max_tokens" in fields:
            raise UsageError(f"{path} and max_completion_tokens are the same; give one of them", field=path)
        spelled["max_tokens"] = name = "max_completion_tokens"
        given["max_tokens"] = read_integer(fields[name], prefix + name)
    if "stop" in fields:
        given["stop"] = _stop(fields["stop"], f"{prefix}stop")
    try:
        return replace(defaults, **given)
    except WrongValueError as error:
        raise error.as_field(prefix + spelled.get(error.name, error.name)) from None


def _stop(value: Any, path: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise refusal(path, value, "a text that is not empty, or a list of such texts")
    return tuple(texts)


def _schema(value: Any, path: str) -> Mapping[str, Any] | None:
    """The JSON schema that a response_format asks for; None for text."""
    wanted = read_object(value, path)
    kind = wanted.get("type")
    if kind in ("text", "json_object"):
        require_known(wanted, {"type"}, path)
        return {"type": "object"} if kind == "json_object" else None
    if kind != "json_schema":
        raise refusal(f"{path}.type", kind, "text, json_object or json_schema")
    require_known(wanted, {"type", "json_schema"}, path)
    path += ".json_schema"
    described = read_object(wanted.get("json_schema"), path, "an object with a schema")
    require_known(described, {"name", "description", "strict", "schema"}, path)
    path += ".schema"
    schema = read_object(described.get("schema"), path)
    from memfit.engines.json_schema import check_schema  # where one is asked for

    check_schema(schema, path)
    return schema
