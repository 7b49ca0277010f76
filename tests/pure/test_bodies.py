"""Bodies of calls: what is no JSON object, too large, too deep or beyond all numbers is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from memfit.errors import UsageError
from memfit.server.bodies import read_body
from memfit.server.failures import RefusedError
from memfit.server.settings import Limits


def _read(body: bytes, **limits: Any) -> dict[str, Any]:
    """As it comes in pieces of at most 7 bytes."""
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)] or [b""]

    def messages() -> Iterator[Message]:
        for index, piece in enumerate(pieces):
            yield {"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces)}

    coming = messages()

    async def receive() -> Message:
        return next(coming)

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    return asyncio.run(read_body(request, Limits(**limits)))


def test_an_object_is_read() -> None:
    body = {"a": [1, -0.5, 1e308, 10**400, None, {"b": "é"}]}
    assert _read(json.dumps(body).encode()) == body


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".0"])
@pytest.mark.parametrize("place", ['{{"a": {}}}', '{{"tools": [{{"parameters": {{"maximum": [1, {}]}}}}]}}'])
def test_a_number_that_no_float_holds_is_refused(number: str, place: str) -> None:
    with pytest.raises(UsageError, match="beyond all bounds"):
        _read(place.format(number).encode())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(UsageError):
        _read(body)


def test_size_and_depth_have_limits() -> None:
    assert _read(b'{"a": [[]]}', depth=3, body_bytes=11)
    with pytest.raises(RefusedError) as caught:
        _read(b'{"a": [[]] }', body_bytes=11)
    assert caught.value.status == 413
    with pytest.raises(UsageError, match="deeper than 3"):
        _read(b'{"a": [[[]]]}', depth=3)
