"""Who may speak with the server, before a path is looked at: Host, Origin, CORS and API keys.

A page of a stranger's in a browser on this machine must not reach it. Its Origin gives it away, and where a
name of its own leads here (DNS rebinding), the Host does.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memfit.server.failures import RefusedError, llama_error, status_of
from memfit.server.settings import Settings, is_loopback

__all__ = ["Guard"]

_PUBLIC = frozenset(("/", "/health", "/v1/health"))
# Of programs, not of pages that anybody can write.
_PROGRAM_SCHEMES = frozenset(("app", "tauri", "vscode-file", "vscode-webview"))
_METHODS = "GET, POST, DELETE, OPTIONS"


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]
        self._is_local = all(map(is_loopback, settings.hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cors = self._cors(headers.get("origin"))

        async def send_with_cors(message: Message) -> None:
            if cors and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(cors)
            with anyio.fail_after(self._settings.limits.stall_seconds):
                await send(message)

        try:
            refused = self._refusal(scope, headers, cors)
            if refused:
                await refused(scope, receive, send_with_cors)
            else:
                await self._app(scope, receive, send_with_cors)
        except TimeoutError:  # the client does not read; closing its connection is all that is left
            return

    def _refusal(self, scope: Scope, headers: Headers, cors: Mapping[str, str]) -> Response | None:
        """The answer to whoever is not let in; None for others."""
        if scope["method"] == "OPTIONS":
            return Response(status_code=200)
        try:
            self._check_host(headers.get("host", ""))
            self._check_origin(headers.get("origin"), headers.get("host", ""), cors)
            if scope["path"] not in _PUBLIC:
                self._check_key(headers)
        except RefusedError as error:
            return JSONResponse(llama_error(error), status_of(error))
        return None

    def _check_host(self, host: str) -> None:
        if self._is_local and not self._settings.insecure and not is_loopback(_host_of(host)):
            raise RefusedError(
                403,
                "permission_error",
                f"the Host {host[:100]!r} is not this server's; use 127.0.0.1 or localhost",
            )

    def _check_origin(self, origin: str | None, host: str, cors: Mapping[str, str]) -> None:
        if origin is None or cors:
            return
        parts = urlsplit(origin)
        if parts.scheme in _PROGRAM_SCHEMES or parts.netloc == host:
            return
        if parts.scheme in ("http", "https") and is_loopback(_host_of(parts.netloc)):
            return
        raise RefusedError(
            403,
            "permission_error",
            f"pages of {origin[:100]!r} may not use this server; --cors names those that may",
        )

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = token.strip()
        found = [hmac.compare_digest(given.encode("utf-8", "replace"), key) for key in self._keys]
        if not any(found):
            raise RefusedError(401, "authentication_error", "the API key is missing or wrong")

    def _cors(self, origin: str | None) -> dict[str, str]:
        """The headers that let a page in; none where it is not named."""
        named = self._settings.cors
        if origin is None or not named:
            return {}
        local = "localhost" in named and is_loopback(_host_of(urlsplit(origin).netloc))
        if "*" not in named and origin not in named and not local:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": "*",
            "Vary": "Origin",
        }


def _host_of(netloc: str) -> str:
    """Without its port."""
    if netloc.startswith("["):
        return netloc.partition("]")[0] + "]"
    return netloc.rpartition(":")[0] if netloc.count(":") == 1 else netloc
