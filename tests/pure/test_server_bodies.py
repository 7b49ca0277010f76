"""Bodies are read within their limits, and refused for what is wrong with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from asgi_calls import Client
from starlette.requests import Request

from memfit.errors import MemfitError, UsageError
from memfit.server.bodies import read_body
from memfit.server.failures import RefusedError, status_of
from memfit.server.settings import Limits
from memfit.units import KIB, MIB


def _read(
    *pieces: bytes | None, headers: Mapping[str, str] | None = None, leaves: bool = False, **limits: Any
) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        client = Client(headers=headers or {}, pieces=pieces)
        if leaves:
            client.left.set()
        return await read_body(Request(client.scope, client.receive), Limits(**limits))

    return asyncio.run(read())


def _refused(*pieces: bytes | None, **values: Any) -> tuple[int, str]:
    with pytest.raises(MemfitError) as raised:
        _read(*pieces, **values)
    return status_of(raised.value), str(raised.value)


def test_a_body_in_any_pieces() -> None:
    text = json.dumps({"a": "Köln \U0001f600", "b": [1, 2.5, None]}, ensure_ascii=False).encode()
    whole = json.loads(text)
    assert _read(text) == whole
    assert _read(*(bytes([byte]) for byte in text)) == whole
    assert _read(b"", text, b"") == whole
    assert _read(text, headers={"content-length": str(len(text))}) == whole
    assert _read(text, headers={"content-type": "text/plain"}) == whole, "some clients name no type"
    assert _read(b"\xef\xbb\xbf" + text) == whole


@pytest.mark.parametrize("length", ["abc", "-1", "1.5", "0x10", "1e3", "+5", "\xb2", "1 2"])
def test_a_length_that_is_no_number(length: str) -> None:
    status, said = _refused(b"{}", headers={"content-length": length})
    assert status == 400 and "Content-Length" in said


@pytest.mark.parametrize("length", ["101", "0101", "9" * 30, "1" + "0" * 5000])
def test_a_body_that_is_announced_too_large_is_not_read(length: str) -> None:
    status, said = _refused(None, headers={"content-length": length}, body_bytes=100)
    assert status == 413 and "100 B" in said


def test_a_body_that_turns_out_too_large() -> None:
    assert _refused(*[b" " * 60] * 3, body_bytes=100)[0] == 413
    assert _refused(*[b" " * 60] * 3, body_bytes=100, headers={"content-length": "3"})[0] == 413
    assert _read(b'{"a":"' + b"b" * 92 + b'"}', body_bytes=100)
    assert _read(b"{}", headers={"content-length": "00000100"}, body_bytes=100) == {}


def test_a_body_that_does_not_come() -> None:
    status, said = _refused(b'{"a"', None, body_seconds=0.02)
    assert status == 408 and "0.02 s" in said


def test_a_client_that_leaves_within_its_body() -> None:
    assert _refused(b'{"a"', None, leaves=True) == (400, "the client left")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "got an empty list, needed an object"),
        (b'"text"', "needed an object"),
        (b"null", "got null, needed an object"),
        (b'{"a":1}{"b":2}', "Extra data"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":{"b":1,"b":1}}', "twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b"{'a':1}", "double quotes"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":"\x00"}', "control character"),
        (b'{"a":' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":"\\ud800"}', "half of a character: \\ud800 alone"),
        (b'{"a":["\\uDC00"]}', "\\udc00 alone"),
        (b'{"\\udfff":1}', "\\udfff alone"),
        (b'{"a":"\\ude00\\ud83d"}', "alone"),
        (b"a=b&c=d", "Expecting value"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
    ],
)
def test_what_is_no_object_of_json(body: bytes, said: str) -> None:
    status, found = _refused(body)
    assert status == 400 and said in found and len(found) < 400


def test_whole_characters_may_be_escaped() -> None:
    assert _read(b'{"a":"\\ud83d\\ude00 \\u0000 \\\\ud800"}') == {"a": "\U0001f600 \0 \\ud800"}


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_what_is_nested_too_deeply(opening: bytes) -> None:
    def nested(depth: int) -> bytes:
        closing = b"}" if opening[:1] == b"{" else b"]"
        return b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"

    assert _read(nested(10), depth=10)
    assert _refused(nested(11), depth=10) == (400, "the body is nested deeper than 10 levels")
    assert _refused(nested(200_000))[0] == 400


def test_a_body_with_too_many_values_is_refused_before_it_is_read() -> None:
    many = b'{"a":[' + b",".join([b"[]"] * 50) + b"]}"
    assert len(_read(many, body_values=101)["a"]) == 50
    assert _refused(many, body_values=100) == (400, "the body has more than 100 values")
    # What stands in texts is no value.
    for text in ("[{," * 500, 'a\\"[,' * 500, "\\" * 500 + "," * 500, '"' * 500 + "[" * 500):
        body = json.dumps({"a": text}).encode()
        assert _read(body, body_values=100) == {"a": text}
        assert _refused(body[:-1] + b',"b":' + many + b"}", body_values=100)[0] == 400


def test_limits_shrink_with_what_the_budget_has_left() -> None:
    limits = Limits()
    assert limits.within(2**40) == limits
    little = limits.within(16 * MIB)
    assert (little.body_bytes, little.bodies_bytes) == (2 * MIB, 8 * MIB) and little.body_values < 100_000
    assert little.of_descriptions.body_bytes == 256 * KIB and limits.of_descriptions.body_bytes == MIB
    for nothing in (0, -MIB):
        least = limits.within(nothing)
        assert least.body_bytes == 256 * KIB and least.bodies_bytes == MIB and least.body_values == 16_384
    assert Limits(body_bytes=10).within(0).body_bytes == 10


def test_errors_are_of_the_kinds_that_statuses_come_from() -> None:
    with pytest.raises(UsageError):
        _read(b"[]")
    with pytest.raises(RefusedError):
        _read(b"{}", headers={"content-length": "x"})
