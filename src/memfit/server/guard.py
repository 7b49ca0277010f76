"""Who may speak with the server, before a path is looked at: Host, Origin, CORS and API keys; and how many
bytes of bodies it holds at once.

A page of a stranger's in a browser on this machine must not reach it. Its Origin gives it away, and where a
name of its own leads here (DNS rebinding), the Host does.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memfit.engines.allocator import trim
from memfit.errors import readable
from memfit.server.dialects import dialect_of, failure
from memfit.server.failures import BusyError, RefusedError
from memfit.server.settings import Limits, Settings, is_loopback
from memfit.units import KIB

__all__ = ["Guard"]

_PUBLIC = frozenset(("/", "/health", "/v1/health"))
_PAGE = "/page/"  # its files
# Of programs, not of pages that anybody can write.
_PROGRAM_SCHEMES = frozenset(("app", "tauri", "vscode-file", "vscode-webview"))
_QUIET = _PUBLIC | {"/metrics", "/slots", "/props", "/plan", "/activity"}  # asked again and again
_LARGE_BODY = 64 * KIB  # what it was made into leaves holes
_METHODS = "GET, POST, DELETE, OPTIONS"
_NETLOC = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::\d*)?")  # a host, and its port


class Guard:
    """An ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        limits: Callable[[], Limits] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`limits` are those of this moment; None: those of the settings. `say` hears of each call."""
        self._limits, self._say = limits or (lambda: settings.limits), say
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]
        self._is_local = all(map(is_loopback, settings.hosts))
        self._held_bytes = 0  # of the bodies of all calls that have not ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cors = self._cors(headers)
        body_bytes = status = 0
        began = time.monotonic()

        async def receive_counted() -> Message:
            nonlocal body_bytes
            message = await receive()
            size = len(message.get("body", b""))
            if size and self._held_bytes + size > self._limits().bodies_bytes:
                raise BusyError(retry_seconds=1)
            body_bytes += size
            self._held_bytes += size
            return message

        async def send_with_cors(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(name.encode(), value.encode("latin-1")) for name, value in cors.items()]
                given = [*message.get("headers", ()), *added]
                # In capitals, as most servers have them: some clients look for them so.
                message["headers"] = [(name.title(), value) for name, value in given]
            await send(message)

        refused = self._refusal(scope, headers, cors)
        if refused:
            await refused(scope, receive, send_with_cors)
            return
        try:
            await self._app(scope, receive_counted, send_with_cors)
        finally:
            self._held_bytes -= body_bytes
            if body_bytes >= _LARGE_BODY:
                trim()
            if scope["path"] not in _QUIET:
                path = readable(scope["path"], most=200, kept="")
                self._say(f"{scope['method']} {path} {status or '-'} · {time.monotonic() - began:.2f} s")

    def _refusal(self, scope: Scope, headers: Headers, cors: Mapping[str, str]) -> Response | None:
        """The answer to whoever is not let in; None for others."""
        if scope["method"] == "OPTIONS":
            return Response(status_code=200)
        try:
            self._check_size(scope)
            self._check_host(headers.get("host"))
            self._check_origin(headers.get("origin"), headers.get("host"), cors)
            if scope["path"] not in _PUBLIC and not scope["path"].startswith(_PAGE):
                self._check_keys(headers)
        except RefusedError as error:
            return failure(error, dialect_of(scope["path"]))
        return None

    def _check_size(self, scope: Scope) -> None:
        """Those that come in one piece are read whatever their size."""
        size = len(scope["path"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.limits.header_bytes:
            raise RefusedError(431, "invalid_request_error", f"the headers have {size} bytes")

    def _check_host(self, host: str | None) -> None:
        """Programs of long ago send none; browsers always do."""
        if host is None or not self._is_local or self._settings.insecure:
            return
        if not is_loopback(_host_of(host)):
            raise RefusedError(
                403,
                "permission_error",
                f"the Host {host[:100]!r} is not this server's; use 127.0.0.1 or localhost",
            )

    def _check_origin(self, origin: str | None, host: str | None, cors: Mapping[str, str]) -> None:
        if origin is None or cors:
            return
        parts = _split(origin)
        if parts.scheme in _PROGRAM_SCHEMES or (parts.netloc and parts.netloc == host):
            return
        if parts.scheme in ("http", "https") and is_loopback(_host_of(parts.netloc)):
            return
        raise RefusedError(
            403,
            "permission_error",
            f"pages of {origin[:100]!r} may not use this server; --cors names those that may",
        )

    def _check_keys(self, headers: Headers) -> None:
        """Clients send theirs as OpenAI's or as Anthropic's do."""
        if not self._keys:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        # All are compared, so that the time says nothing. A header's bytes come as Latin-1.
        found = [
            hmac.compare_digest(one.encode("latin-1", "replace"), key) for one in given for key in self._keys
        ]
        if not any(found):
            raise RefusedError(401, "authentication_error", "the API key is missing or wrong")

    def _cors(self, headers: Headers) -> dict[str, str]:
        """The headers that let a page in; none where it is not named."""
        origin, named = headers.get("origin"), self._settings.cors
        if origin is None or not named:
            return {}
        local = "localhost" in named and is_loopback(_host_of(_split(origin).netloc))
        if "*" not in named and origin not in named and not local:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Allow-Methods": _METHODS,
            # Those that it names, for * is no Authorization.
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Vary": "Origin",
        }


def _split(origin: str) -> SplitResult:
    """An Origin's parts; none of what is no address."""
    try:
        return urlsplit(origin)
    except ValueError:
        return urlsplit("")


def _host_of(netloc: str) -> str:
    """Without its port; nothing where it is none."""
    found = _NETLOC.fullmatch(netloc)
    return found[1] if found else ""
