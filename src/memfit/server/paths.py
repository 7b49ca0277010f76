"""Paths that clients know with and without /v1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["both"]

Handler = Callable[[Request], Awaitable[Response]]


def both(path: str, handler: Handler, *methods: str) -> list[Route]:
    return [Route(prefix + path, handler, methods=list(methods)) for prefix in ("/v1", "")]
