"""Bodies of calls: read within limits of size, time and depth, and parsed strictly."""

from __future__ import annotations

import json
import re
from math import inf
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from memfit.errors import UsageError
from memfit.openai.fields import read_object
from memfit.server.failures import RefusedError
from memfit.server.settings import Limits
from memfit.strict_json import parse_json
from memfit.units import format_bytes

__all__ = ["read_body"]

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a call.

    Raises:
        RefusedError: too large, too slow, or left unfinished.
        UsageError: no JSON object.
    """
    body = await _received(request, limits)
    value = read_object(parse_json(body, "the body"), "the body")
    _require_plain(value, limits.depth)
    if _SURROGATE.search(body):  # half of a character, which no tokenizer takes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise UsageError(f"the body holds half of a character: \\u{ord(half):04x} alone") from None
    return value


async def _received(request: Request, limits: Limits) -> bytes:
    too_large = RefusedError(
        413, "invalid_request_error", f"the body is larger than {format_bytes(limits.body_bytes)}"
    )
    if int(request.headers.get("content-length") or 0) > limits.body_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        with anyio.fail_after(limits.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise RefusedError(
            408, "invalid_request_error", f"the body did not come within {limits.body_seconds:g} s"
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "invalid_request_error", "the client left") from None
    return b"".join(pieces)


def _require_plain(value: Any, depth: int) -> None:
    """Refuse what is nested so deeply that reading it could overflow a stack; and 1e999, which is JSON, and
    becomes what could not be written again."""
    level: list[Any] = [value]
    for _ in range(depth):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        if inf in inner or -inf in inner:
            raise UsageError("the body holds a number beyond all bounds")
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    raise UsageError(f"the body is nested deeper than {depth} levels", needed=depth)
