"""One line of a batch: of its input → a request, of its answers → JSON as OpenAI's batches write it.

A line of the input is of OpenAI's batch format, or a plain prompt or messages. What stands around a body is
read and written here, the body itself in openai/.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memfit.engines.requests import Completion, Request, Sampling
from memfit.errors import MemfitError, UsageError
from memfit.openai.fields import field_name, read_object
from memfit.openai.requests import QUESTIONS, Form, read_request
from memfit.openai.responses import error_object, response_body
from memfit.strict_json import parse_json, refusal, shown
from memfit.units import MIB, format_bytes

__all__ = [
    "LINE_LIMIT_BYTES",
    "Line",
    "LineError",
    "answer_line",
    "custom_id_of",
    "failure_line",
    "parse_line",
]

LINE_LIMIT_BYTES = 16 * MIB

_FORMS: dict[str, Form] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
_IDS = ("custom_id", "id")
_WRAPPER = ("custom_id", "method", "url", "body")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that can be run; `request.number` is `number`."""

    number: int  # of the line in the file, from 1, blank lines counted
    custom_id: str  # "line-<number>" where the line gives none
    form: Form  # of the answer; plain lines are answered as chats
    request: Request


class LineError(UsageError):
    """A line that cannot be run. The message is the reason; `custom_id` is None where it is unknown."""

    def __init__(self, number: int, custom_id: str | None, reason: UsageError | str) -> None:
        cause = reason if isinstance(reason, UsageError) else UsageError(reason)
        super().__init__(str(cause), field=cause.field, got=cause.got, needed=cause.needed)
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
            name = next(name for name in _IDS if value.get(name) is not None)
            raise refusal(name, value[name], "a text or a whole number")
        _check_text(data, value)
        if value.keys() & {"body", "url", "method"}:
            form, body = _unwrapped(value)
            request = read_request(body, form, number=number, defaults=defaults, schema=schema)
        else:
            form = "chat"
            request = _plain_request(value, number, defaults, raw, schema)
    except UsageError as error:
        raise LineError(number, custom_id, error) from None
    return Line(number=number, custom_id=custom_id, form=form, request=request)


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


def _check_text(data: bytes, value: Any) -> None:
    """JSON can escape half of a character; no tokenizer takes it, nor does UTF-8."""
    if _SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise UsageError(f"the line holds half of a character: \\u{ord(half):04x} alone") from None


def _unwrapped(value: dict[str, Any]) -> tuple[Form, dict[str, Any]]:
    """The form and the body of a line in OpenAI's format."""
    for name in value:
        if name not in _WRAPPER:
            raise UsageError(
                f"{field_name(name)} is not a field of a batch's line; "
                "those are custom_id, method, url and body",
                field=field_name(name),
            )
    if value.get("method") not in (None, "POST"):
        raise refusal("method", value["method"], '"POST"')
    url = value.get("url")
    if not isinstance(url, str) or url not in _FORMS:
        raise refusal("url", url, " or ".join(_FORMS))
    return _FORMS[url], read_object(value.get("body"), "body")


def _plain_request(
    value: dict[str, Any], number: int, defaults: Sampling, raw: bool, schema: Mapping[str, Any] | None
) -> Request:
    """Of a line that is a body itself, with a prompt or with messages."""
    body = {name: field for name, field in value.items() if name not in _IDS}
    given = [form for form, name in QUESTIONS.items() if body.get(name) is not None]
    if len(given) != 1:
        found = "both a prompt and messages" if given else "neither a prompt nor messages"
        raise UsageError(f"the line has {found}; give one of them")
    request = read_request(body, given[0], number=number, defaults=defaults, schema=schema, prefix="")
    if not isinstance(request.prompt, str) or raw:
        return request
    return replace(request, messages=({"role": "user", "content": request.prompt},), prompt=None)


def answer_line(line: Line, completion: Completion, *, model: str) -> dict[str, Any]:
    """The output's line for a whole answer."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {
            "status_code": 200,
            "request_id": uuid.uuid4().hex,
            "body": response_body(line.form, completion, model=model),
        },
        "error": None,
    }


def failure_line(number: int, custom_id: str | None, error: MemfitError) -> dict[str, Any]:
    """The error file's line."""
    return {"line": number, "custom_id": custom_id, "error": error_object(error)}
