"""Clients who do nothing are given up: real connections to a small application on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from memfit.server.connection import connection_class
from memfit.server.listening import open_sockets
from memfit.server.settings import Limits, Settings

_HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
_Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class _App:
    """Answers at once, without a look at the body; /endless never ends to write."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # of /endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if scope["path"] != "/endless":
            await send({**start, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        await send(start)
        watching = asyncio.ensure_future(receive())
        while not watching.done() or watching.result()["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
            if watching.done() and watching.result()["type"] == "http.request":
                watching = asyncio.ensure_future(receive())
        self.ended.set()


def _with_client(client: _Client, app: _App | None = None, **limits: float) -> float:
    """How long a client's connection lasted."""
    app = app or _App()

    async def work() -> float:
        sockets = open_sockets(Settings(port=0))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connection_class(Limits(**limits)),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=1,
            )
        )
        serving = asyncio.ensure_future(server.serve(sockets))
        while not server.started:
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
        began = time.monotonic()
        await asyncio.wait_for(client(reader, writer), 20)
        lasted = time.monotonic() - began
        writer.transport.abort()
        server.should_exit = True
        await serving
        return lasted

    return asyncio.run(work())


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


@pytest.mark.parametrize("pieces", [[], [b"GE"], [_HEAD], [_HEAD] + [b"X: y\r\n"] * 200], ids=len)
def test_headers_that_do_not_come_are_not_waited_for(pieces: list[bytes]) -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ending = asyncio.ensure_future(_to_the_end(reader))
        for piece in pieces:
            if ending.done():
                break
            writer.write(piece)
            await asyncio.sleep(0.01)
        assert await ending == b""

    lasted = _with_client(client, header_seconds=0.2)
    assert 0.15 < lasted < 10


def test_a_client_that_asks_again_has_its_time_anew() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            await asyncio.sleep(0.3)
            writer.write(_HEAD + b"\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET")
        assert await _to_the_end(reader) == b""

    lasted = _with_client(client, header_seconds=0.8)
    assert lasted > 1.8


def test_a_body_that_nobody_reads_any_more_is_not_waited_for() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD + b"Content-Length: 1000000\r\n\r\n")
        await reader.readuntil(b"ok")
        ending = asyncio.ensure_future(_to_the_end(reader))
        while not ending.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    lasted = _with_client(client, header_seconds=0.2)
    assert lasted < 10


def test_an_answer_that_is_left_unread_ends() -> None:
    app = _App()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.read(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await app.ended.wait()

    _with_client(client, app, stall_seconds=0.2)
