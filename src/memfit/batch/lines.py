"""One line of a batch's input → a request: OpenAI's batch format, or a plain prompt or messages.

Strict: what memfit cannot honour is refused by name, so that no answer silently ignores what was asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from memfit.engines.requests import Message, Request, Sampling
from memfit.errors import UsageError
from memfit.strict_json import parse_json, shown
from memfit.units import MIB, format_bytes

__all__ = ["LINE_LIMIT_BYTES", "Line", "LineError", "custom_id_of", "parse_line"]

LINE_LIMIT_BYTES = 16 * MIB

_FORMS: dict[str, Literal["chat", "completion"]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_IDS = ("custom_id", "id")
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
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "stream": (False,),
    "stream_options": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
# Of an assistant's message, as clients send back what they once received.
_HARMLESS_OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_OPTION = re.compile(r"--([a-z-]+)")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that can be run; `request.number` is `number`."""

    number: int  # of the line in the file, from 1, blank lines counted
    custom_id: str  # "line-<number>" where the line gives none
    form: Literal["chat", "completion"]  # of the answer; plain lines are answered as chats
    request: Request


class LineError(UsageError):
    """A line that cannot be run. The message is the reason; `custom_id` is None where it is unknown."""

    def __init__(self, number: int, custom_id: str | None, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.custom_id = custom_id


def parse_line(
    number: int,
    data: bytes,
    defaults: Sampling,
    *,
    raw: bool = False,
    schema: Mapping[str, Any] | None = None,
) -> Line:
    """A line without its end. Its own fields win over `defaults`, its response_format over `schema`.

    `raw`: a plain prompt is continued as it is, and not put through the chat template.

    Raises:
        LineError: not JSON, or a field that is wrong or that memfit does not support; it is named.
    """
    custom_id: str | None = None
    try:
        value = _parse(data)
        custom_id = custom_id_of(value, number)
        if custom_id is None:
            _refuse_id(value)
        _check_text(data, value)
        form, body, where = _body(value)
        request = _request(number, body, where, form, defaults, raw, schema)
    except UsageError as error:
        raise LineError(number, custom_id, str(error)) from None
    return Line(number=number, custom_id=custom_id, form=form or "chat", request=request)


def custom_id_of(value: Mapping[str, Any], number: int) -> str | None:
    """What a line calls itself, "line-<number>" where it does not, and None where that is no name."""
    for name in _IDS:
        found = value.get(name)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 10**30:
            return str(found)
        if found is not None:
            return None
    return f"line-{number}"


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > LINE_LIMIT_BYTES:
        raise UsageError(f"the line is longer than {format_bytes(LINE_LIMIT_BYTES)}")
    try:
        value = parse_json(data, "the line")
    except UsageError as error:  # whose "line 1" is not the file's
        raise UsageError(str(error).replace(": line 1 column", " at column")) from None
    if not isinstance(value, dict):
        raise UsageError(f"the line is {shown(value)}, not an object")
    return value


def _refuse_id(value: Mapping[str, Any]) -> NoReturn:
    name = next(name for name in _IDS if value.get(name) is not None)
    _refuse(name, value[name], "a text or a whole number")


def _check_text(data: bytes, value: Any) -> None:
    """JSON can escape half of a character; no tokenizer takes it, nor does UTF-8."""
    if _SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise UsageError(f"the line holds half of a character: \\u{ord(half):04x} alone") from None


def _body(value: dict[str, Any]) -> tuple[Literal["chat", "completion"] | None, dict[str, Any], str]:
    """The form (None: a plain line), the fields that say what to do, and the prefix of their names."""
    if not value.keys() & {"body", "url", "method"}:
        return None, {name: field for name, field in value.items() if name not in _IDS}, ""
    for name in value:
        if name not in {"body", "url", "method", "custom_id"}:
            raise UsageError(
                f"{_named(name)} is not a field of a batch's line; those are custom_id, method, url and body"
            )
    if value.get("method") not in (None, "POST"):
        _refuse("method", value["method"], '"POST"')
    url = value.get("url")
    if not isinstance(url, str) or url not in _FORMS:
        _refuse("url", url, " or ".join(_FORMS))
    body = value.get("body")
    if not isinstance(body, dict):
        _refuse("body", body, "an object")
    return _FORMS[url], body, "body."


def _request(
    number: int,
    body: dict[str, Any],
    where: str,
    form: Literal["chat", "completion"] | None,
    defaults: Sampling,
    raw: bool,
    schema: Mapping[str, Any] | None,
) -> Request:
    for name, value in body.items():
        if name not in _OWN and name not in _MEANINGLESS:
            _check_harmless(where, name, value, _HARMLESS)
    fields = {name: value for name, value in body.items() if value is not None}
    sampling = _sampling(fields, where, defaults)
    if "response_format" in fields:
        schema = _schema(fields["response_format"], f"{where}response_format")
    prompt, messages = _question(fields, where, form)
    if prompt is not None and form is None and not raw:
        messages, prompt = ({"role": "user", "content": prompt},), None
    return Request(number=number, prompt=prompt, messages=messages, sampling=sampling, schema=schema)


def _question(fields: dict[str, Any], where: str, form: str | None) -> tuple[str | None, tuple[Message, ...]]:
    """A prompt or messages: the one that the form asks for, or that a plain line has."""
    given = [name for name in ("messages", "prompt") if name in fields]
    if form is None and len(given) != 1:
        found = "both a prompt and messages" if given else "neither a prompt nor messages"
        raise UsageError(f"the line has {found}; give one of them")
    wanted = {"chat": "messages", "completion": "prompt"}.get(form or "") or given[0]
    for name in given:
        if name != wanted:
            raise UsageError(f"{where}{name} is not for this url, which takes {wanted}")
    if wanted == "messages":
        return None, _messages(fields.get("messages"), f"{where}messages")
    return _prompt(fields.get("prompt"), f"{where}prompt"), ()


def _prompt(value: Any, path: str) -> str:
    if isinstance(value, list) and len(value) == 1:  # a list of one text is OpenAI's other spelling
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        raise UsageError(f"{path}: got {len(value)} prompts; give each a line of its own")
    if not isinstance(value, str):
        _refuse(path, value, "a text")
    if not value:
        raise UsageError(f"{path} is empty")
    return value


def _messages(value: Any, path: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        _refuse(path, value, "a list of messages")
    messages = tuple(_message(each, f"{path}[{index}]") for index, each in enumerate(value))
    if not any(message["content"] for message in messages):
        raise UsageError(f"{path}: there is no text in them")
    return messages


def _message(value: Any, path: str) -> Message:
    if not isinstance(value, dict):
        _refuse(path, value, "an object with a role and a content")
    for name, field in value.items():
        if name not in {"role", "content", "name"}:
            _check_harmless(f"{path}.", name, field, _HARMLESS_OF_MESSAGE)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _content(value.get("content"), f"{path}.content")}


def _content(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        _refuse(path, value, "a text, or a list of parts of type text")
    # Joined as llama.cpp's server and vLLM do for templates that know no parts.
    return "\n".join(_part(each, f"{path}[{index}]") for index, each in enumerate(value))


def _part(value: Any, path: str) -> str:
    if not isinstance(value, dict):
        _refuse(path, value, 'an object of type "text"')
    if value.get("type") != "text":
        raise UsageError(f"{path}: parts of type {shown(value.get('type'))} are not supported; only text is")
    _only(value, {"type", "text"}, path)
    if not isinstance(value.get("text"), str):
        _refuse(f"{path}.text", value.get("text"), "a text")
    text: str = value["text"]
    return text


def _sampling(fields: dict[str, Any], where: str, defaults: Sampling) -> Sampling:
    given: dict[str, Any] = {}
    for name in _INTEGERS:
        if name in fields:
            given[name] = _integer(fields[name], where + name)
    for name in _NUMBERS:
        if name in fields:
            given[name] = _number(fields[name], where + name)
    length = "max_tokens"
    if "max_completion_tokens" in fields:
        if "max_tokens" in fields:
            raise UsageError(f"{where}max_tokens and max_completion_tokens are the same; give one of them")
        length = "max_completion_tokens"
        given["max_tokens"] = _integer(fields[length], where + length)
    if "stop" in fields:
        given["stop"] = _stop(fields["stop"], f"{where}stop")
    try:
        return replace(defaults, **given)
    except UsageError as error:  # Sampling names the option; here it is a field
        named = _OPTION.sub(lambda match: where + match[1].replace("-", "_"), str(error), count=1)
        raise UsageError(named.replace("max_tokens", length, 1)) from None


def _integer(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        _refuse(path, value, "a whole number")
    return value


def _number(value: Any, path: str) -> float:
    # 1e999 is JSON, and becomes infinity.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
        _refuse(path, value, "a number")
    return float(value)


def _stop(value: Any, path: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        _refuse(path, value, "a text that is not empty, or a list of such texts")
    return tuple(texts)


def _schema(value: Any, path: str) -> Mapping[str, Any] | None:
    """The JSON schema that a response_format asks for; None for text."""
    if not isinstance(value, dict):
        _refuse(path, value, "an object")
    kind = value.get("type")
    if kind in ("text", "json_object"):
        _only(value, {"type"}, path)
        return {"type": "object"} if kind == "json_object" else None
    if kind != "json_schema":
        _refuse(f"{path}.type", kind, "text, json_object or json_schema")
    _only(value, {"type", "json_schema"}, path)
    described = value.get("json_schema")
    if not isinstance(described, dict):
        _refuse(f"{path}.json_schema", described, "an object with a schema")
    _only(described, {"name", "description", "strict", "schema"}, f"{path}.json_schema")
    schema = described.get("schema")
    if not isinstance(schema, dict):
        _refuse(f"{path}.json_schema.schema", schema, "an object")
    from memfit.engines.json_schema import check_schema  # where one is asked for

    check_schema(schema, f"{path}.json_schema.schema")
    return schema


def _check_harmless(where: str, name: str, value: Any, known: Mapping[str, tuple[Any, ...]]) -> None:
    if name not in known:
        raise UsageError(f"{where}{_named(name)} is not a field that memfit knows")
    if value is not None and not any(_same(value, allowed) for allowed in known[name]):
        only = " or ".join(json.dumps(allowed) for allowed in (*known[name], None))
        raise UsageError(f"{where}{name}: {shown(value)} is not supported, only {only}; leave it out")


def _same(value: Any, allowed: Any) -> bool:
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _only(value: Mapping[str, Any], keys: set[str], path: str) -> None:
    for name in value:
        if name not in keys and value[name] is not None:  # clients write null for what they leave out
            raise UsageError(f"{path}.{_named(name)} is not a field that memfit knows")


def _named(name: str) -> str:
    """A stranger's field name as it stands where it is a word."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name) else shown(name)


def _refuse(path: str, found: Any, needed: str) -> NoReturn:
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"{path}: got a number beyond all bounds, needed {needed}")
    raise UsageError(f"{path}: got {shown(found)}, needed {needed}")
