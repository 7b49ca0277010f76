"""The page: files as they lie in page/, for whoever asks: they say nothing of the model or its users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

__all__ = ["page_routes"]

_FOLDER = Path(__file__).parent / "page"
# No script but the page's own files, nothing from elsewhere, and no text is ever made into HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and mostly answered by a 304
}


class _Files(StaticFiles):
    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers.update(_HEADERS)
        return response


def page_routes() -> list[Route | Mount]:
    return [
        Route("/", _front, methods=["GET"]),
        Mount("/page", _Files(directory=_FOLDER), middleware=[Middleware(GZipMiddleware, compresslevel=6)]),
    ]


async def _front(request: Request) -> Response:
    """The page for browsers; Ollama's clients look here for whether anybody is there."""
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(_FOLDER / "index.html", headers={**_HEADERS, "Vary": "Accept"})
    return PlainTextResponse("memfit is running", headers={"Vary": "Accept"})
