"""Requests that no client of good will sends, from a seed: bytes, broken HTTP, broken JSON, wrong values.

Each is made of a valid request of one of the server's paths. What this module does not know: how they are
sent, and what a server should answer.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
# Path → a valid body; generation is short, so that mutations which stay valid end soon.
BODIES: dict[str, Any] = {
    "/v1/chat/completions": _CHAT
    | {
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "stop": ["x"],
        "seed": 1,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [_TOOL],
        "tool_choice": "auto",
        "stream": False,
        "response_format": {"type": "text"},
        "stream_options": None,
        "presence_penalty": 0.1,
    },
    "/v1/completions": {"model": "demo", "prompt": "Hello", "max_tokens": 2, "logprobs": 1, "echo": True},
    "/v1/responses": {"model": "demo", "input": "Hello", "max_output_tokens": 16, "stream": False},
    "/v1/messages": _CHAT | {"system": "x", "stop_sequences": ["x"], "metadata": {"user_id": "x"}},
    "/v1/messages/count_tokens": {"model": "demo", "messages": _CHAT["messages"]},
    "/v1/embeddings": {"model": "demo", "input": ["Hello", "you"], "encoding_format": "float"},
    "/v1/rerank": {"model": "demo", "query": "a", "documents": ["a", "b"], "top_n": 1},
    "/api/chat": {
        "model": "demo",
        "messages": _CHAT["messages"],
        "stream": False,
        "options": {"num_predict": 2},
    },
    "/api/generate": {
        "model": "demo",
        "prompt": "Hello",
        "format": "",
        "options": {"num_predict": 2, "top_k": 5},
    },
    "/api/embed": {"model": "demo", "input": "Hello", "truncate": True},
    "/api/embeddings": {"model": "demo", "prompt": "Hello"},
    "/api/show": {"model": "demo", "verbose": False},
    "/completion": {"prompt": ["Hello"], "n_predict": 2, "n_probs": 2, "samplers": ["top_k"], "grammar": ""},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 2, "input_extra": []},
    "/apply-template": {"messages": _CHAT["messages"]},
    "/tokenize": {"content": "Hello", "add_special": True, "with_pieces": False},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/plan": {"budget": {"ram": "1GiB"}, "workload": {"context": 512, "parallel": 1}},
}
_SCHEMED = BODIES["/v1/chat/completions"] | {"response_format": _SCHEMA, "tools": None, "tool_choice": "none"}
_GET = (
    "/v1/models",
    "/v1/models/demo",
    "/api/tags",
    "/api/ps",
    "/props",
    "/slots",
    "/metrics",
    "/health",
    "/x",
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get", "")
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/completion")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    kind: str
    pieces: tuple[bytes, ...]  # sent one after another
    what: str  # to name it by where it fails
    is_whole: bool = True  # a complete request of valid HTTP, so that an answer is due
    reads_bytes: int = 1 << 16  # of the answer, before the client leaves
    stalls_seconds: float = 0.0  # that it neither reads nor sends, after the pieces


def attempts(seed: int, count: int) -> Iterator[Attempt]:
    """The same seed gives the same requests, each of a kind by the weights below."""
    chance = random.Random(seed)
    kinds = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()], k=count)
    for kind in kinds:
        yield _KINDS[kind][1](chance)


def valid() -> Iterator[Attempt]:
    for path, body in [*BODIES.items(), ("/v1/chat/completions", _SCHEMED)]:
        yield Attempt(kind="valid", pieces=(_post(path, _json(body)),), what=path)


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        "Connection: close",
    ]
    lines += [*headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _any(chance: random.Random) -> tuple[str, Any]:
    path, body = chance.choice([*BODIES.items(), ("/v1/chat/completions", _SCHEMED)])
    return path, copy.deepcopy(body)


# -- bytes and HTTP --------------------------------------------------------------------------------------


def _raw_bytes(chance: random.Random) -> Attempt:
    data = chance.randbytes(chance.choice((1, 7, 100, 5000, 100_000)))
    return Attempt(kind="bytes", pieces=(data,), what=f"{len(data)} bytes", is_whole=False)


def _http(chance: random.Random) -> Attempt:
    path, body = _any(chance)
    whole = _post(path, _json(body))
    what, data = chance.choice(_BREAKAGES)(chance, whole)
    return Attempt(kind="http", pieces=(data,), what=f"{path} {what}", is_whole=False)


def _header(*lines: bytes) -> Callable[[random.Random, bytes], tuple[str, bytes]]:
    """Puts lines in place of the one that gives the length."""

    def put(_: random.Random, whole: bytes) -> tuple[str, bytes]:
        head, body = whole.split(b"\r\n\r\n", 1)
        kept = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        return f"{lines[0][:40]!r}", b"\r\n".join([*kept, *lines]) + b"\r\n\r\n" + body

    return put


def _flipped(chance: random.Random, whole: bytes) -> tuple[str, bytes]:
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
    return "flipped bytes", bytes(data)


def _cut(chance: random.Random, whole: bytes) -> tuple[str, bytes]:
    at = chance.randrange(len(whole))
    return f"cut at {at}", whole[:at]


def _line(chance: random.Random, whole: bytes) -> tuple[str, bytes]:
    start = chance.choice(
        (
            *(
                b"POST",
                b"POST  ",
                b"POST / HTTP/9.9",
                b"POST / HTTP/1.1 x",
                b"POST http://[ HTTP/1.1",
                b"PRI * HTTP/2.0",
            ),
            *(
                b"POST /%00%ff HTTP/1.1",
                b"POST /../../etc HTTP/1.1",
                b"GET /\x00 HTTP/1.1",
                b"\x16\x03\x01\x02\x00",
            ),
            *(b"POST /" + b"a" * 70_000 + b" HTTP/1.1", b"POST /?" + b"%" * 999 + b" HTTP/1.1"),
        )
    )
    return f"{start[:30]!r}", start + whole[whole.index(b"\r\n") :]


_BREAKAGES: tuple[Callable[[random.Random, bytes], tuple[str, bytes]], ...] = (
    *(_flipped, _cut, _line),
    *(
        _header(b"Content-Length: " + value)
        for value in (b"-1", b"abc", b"9" * 30, b"0x10", b"+5", b"", b"0")
    ),
    _header(b"Content-Length: 5", b"Content-Length: 7"),
    _header(b"Transfer-Encoding: chunked", b"Content-Length: 3"),
    *(_header(b"Transfer-Encoding: " + value) for value in (b"chunked", b"gzip", b"chunked, chunked", b"x")),
    *(_header(b"X-" + b"a" * 90_000 + b": b"), _header(b"X: " + b"a" * 90_000)),
    _header(*(b"X-%d: y" % number for number in range(3000))),
    *(_header(b"no colon here"), _header(b" folded: yes"), _header(b"Nul: \x00\x01"), _header(b": empty")),
    *(_header(b"Expect: 100-continue"), _header(b"Upgrade: websocket", b"Connection: Upgrade")),
    *(
        _header(b"Content-Encoding: gzip"),
        _header(b"Host: a", b"Host: b"),
        _header(b"Authorization: \xff\xfe"),
    ),
)


def _method(chance: random.Random) -> Attempt:
    path = chance.choice((*BODIES, *_GET, "*", "/" + "x" * 300))
    method = chance.choice(_METHODS)
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    return Attempt(kind="method", pieces=(lines.encode(),), what=lines.split(" HTTP")[0][:80], is_whole=False)


# -- JSON --------------------------------------------------------------------------------------------------


def _broken_json(chance: random.Random) -> Attempt:
    path, body = _any(chance)
    data = _json(body)
    at = chance.randrange(len(data))
    broken = chance.choice(
        (
            *(
                data[:at],
                data[:at] + chance.randbytes(4) + data[at:],
                data[at:],
                b"",
                b" ",
                b"\xff\xfe" + data,
            ),
            *(b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data + data, data[:-1] + b",}"),
            *(data.replace(b'"', b"'"), data.replace(b": ", b": NaN, ", 1), data[:-1] + b', "model": 3}'),
            *(data.replace(b"Hello", rb"\ud800"), data.replace(b"Hello", rb"\u0000"), b'"' + b"a" * 99_999),
            *(
                data.replace(b"Hello", b"\xed\xa0\x80"),
                data.replace(b"Hello", b"\xf8\x88\x80"),
                b"[]",
                b"null",
            ),
            *(b"true", b"1e999", b'"text"', b"[{}]", b"{}", b"-", data.replace(b"Hello", b"\x01\x1f")),
        )
    )
    return Attempt(kind="json", pieces=(_post(path, broken),), what=f"{path} {broken[:60]!r}")


def _deep(chance: random.Random) -> Attempt:
    path, _ = _any(chance)
    levels = chance.choice((50, 500, 990, 5000, 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"messages":[', b"]}")))
    inner = opening * levels + b"1" + closing * levels
    field = chance.choice((b"messages", b"prompt", b"input", b"tools", b"response_format", b"json_schema"))
    data = chance.choice((inner, b'{"model":"demo","' + field + b'":' + inner + b"}", opening * levels))
    return Attempt(kind="deep", pieces=(_post(path, data),), what=f"{path} {levels} levels of {opening!r}")


_NUMBERS = (
    *("-1", "0", "-0.0", "0.5", "1e400", "-1e400", "1e-400", "2147483648", "9223372036854775808"),
    *("18446744073709551616", "NaN", "Infinity", "1" * 400, "-" + "9" * 5000, "1.0", "1e3"),
)


def _numbers(chance: random.Random) -> Attempt:
    """Each number of a valid body replaced by one that is too large, negative, or none."""
    path, body = _any(chance)
    spots = [spot for spot in _spots(body) if isinstance(_at(body, spot), (int, float))]
    names = (
        "max_tokens",
        "n_predict",
        "temperature",
        "n",
        "top_p",
        "top_k",
        "seed",
        "n_probs",
        "id_slot",
        "min_p",
    )
    spot = chance.choice(spots) if spots else (chance.choice(names),)
    mark = "here stands the number"
    _put(body, spot, mark)
    number = chance.choice(_NUMBERS)
    data = _json(body).replace(json.dumps(mark).encode(), number.encode())
    return Attempt(kind="numbers", pieces=(_post(path, data),), what=f"{path} {spot} {number[:20]}")


_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        3.5,
        "",
        "x",
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": None},
        {"type": "x"},
        "\x00",
        "\ud800",
        "🙂",
    ),
    *(
        "a" * 20_000,
        ["a"] * 2000,
        [0] * 5000,
        {"type": "text"},
        [{"type": "image_url"}],
        [{"role": "x"}],
        [1e308],
    ),
    *(
        {"role": "user", "content": [{"type": "text"}]},
        {"$ref": "#"},
        {"type": "object", "pattern": "("},
        "auto",
    ),
    *("root ::= root", "root ::= (", {"json_schema": {"type": "json_schema"}}, {"name": None}, [[1], "a", 2]),
)


def _types(chance: random.Random) -> Attempt:
    """A few values of a valid body replaced by others, removed, or moved to another path's body."""
    path, body = _any(chance)
    for _ in range(chance.randrange(1, 4)):
        spots = list(_spots(body))
        if not spots:
            break
        spot, value = chance.choice(spots), copy.deepcopy(chance.choice(_VALUES))
        if chance.random() < 0.15:
            _remove(body, spot)
        elif chance.random() < 0.1:
            _, other = _any(chance)
            _put(body, spot, other)
        else:
            _put(body, spot, value)
    if chance.random() < 0.1:
        path, _ = _any(chance)
    return Attempt(kind="types", pieces=(_post(path, _json(body)),), what=f"{path} {_json(body)[:160]!r}")


# -- clients that stall or leave ---------------------------------------------------------------------------


def _streaming(chance: random.Random, most: int) -> tuple[str, bytes]:
    path = chance.choice(_STREAMS)
    body = copy.deepcopy(BODIES[path]) | {"stream": True}
    body.pop("stop", None)
    limits = {"/completion": {"n_predict": most}, "/api/chat": {"options": {"num_predict": most}}}
    return path, _post(path, _json(body | limits.get(path, {"max_tokens": most})))


def _leaving(chance: random.Random) -> Attempt:
    path, data = _streaming(chance, 64)
    read = chance.choice((0, 1, 20, 300, 1500))
    return Attempt(kind="leaving", pieces=(data,), what=f"{path} left after {read}", reads_bytes=read)


def _stalling(chance: random.Random) -> Attempt:
    path, data = _streaming(chance, 64)
    seconds = chance.choice((0.5, 1.0, 3.0))
    return Attempt(
        kind="stalling", pieces=(data,), what=f"{path} stalls", reads_bytes=100, stalls_seconds=seconds
    )


def _half_sent(chance: random.Random) -> Attempt:
    path, body = _any(chance)
    data = _post(path, _json(body))
    at = chance.randrange(1, len(data))
    step = max(1, at // 5)
    pieces = tuple(data[start : min(start + step, at)] for start in range(0, at, step))
    return Attempt(kind="half sent", pieces=pieces, what=f"{path} half", is_whole=False, stalls_seconds=0.3)


# Kind → how often, and how it is made.
_KINDS: dict[str, tuple[int, Callable[[random.Random], Attempt]]] = {
    "bytes": (6, _raw_bytes),
    "http": (20, _http),
    "method": (6, _method),
    "json": (16, _broken_json),
    "deep": (6, _deep),
    "numbers": (12, _numbers),
    "types": (24, _types),
    "leaving": (6, _leaving),
    "stalling": (2, _stalling),
    "half sent": (2, _half_sent),
}


# -- places in a JSON value ----------------------------------------------------------------------------------


def _spots(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*before, key)
        yield from _spots(one, (*before, key))


def _at(value: Any, spot: tuple[Any, ...]) -> Any:
    for key in spot:
        value = value[key]
    return value


def _put(value: Any, spot: tuple[Any, ...], new: Any) -> None:
    _at(value, spot[:-1])[spot[-1]] = new


def _remove(value: Any, spot: tuple[Any, ...]) -> None:
    del _at(value, spot[:-1])[spot[-1]]
