"""Calls of an ASGI application by hand: no sockets, and every message in the test's own hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

__all__ = ["Answered", "Client", "call"]


@dataclass
class Answered:
    """What the application has sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """Of a stream of server-sent events, without [DONE]."""
        lines = [one.removeprefix("data: ") for one in self.body.decode().split("\n") if one[:5] == "data:"]
        return [json.loads(line) for line in lines if line != "[DONE]"]


class Client:
    """One call. `pieces` are its body's, and None among them waits for ever."""

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        *,
        headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] = (),
        pieces: Iterable[bytes | None] = (b"",),
    ) -> None:
        items = list(headers.items() if isinstance(headers, Mapping) else headers)
        if all(name != "host" for name, _ in items):
            items.append(("host", "127.0.0.1:8080"))
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
                for name, value in items
                if value != ""
            ],
            "server": ("127.0.0.1", 8080),
            "client": ("127.0.0.1", 1),
        }
        self.answered = Answered()
        self.left = asyncio.Event()
        self.started = asyncio.Event()  # the first piece of the answer's body has come
        self._pieces = list(pieces)

    async def receive(self) -> Message:
        if self._pieces:
            piece = self._pieces.pop(0)
            if piece is not None:
                return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered.status = message["status"]
            self.answered.headers = {
                name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]
            }
            return
        self.answered.body += message.get("body", b"")
        self.answered.is_whole = not message.get("more_body", False)
        if message.get("body"):
            self.started.set()

    async def through(self, app: ASGIApp) -> Answered:
        await app(self.scope, self.receive, self.send)
        return self.answered


def call(app: ASGIApp, method: str = "GET", path: str = "/v1/models", **headers: str) -> Answered:
    """On a loop of its own; names of headers are written with _ for -."""

    async def ask() -> Answered:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await Client(method, path, headers=named).through(app)

    return asyncio.run(ask())
