"""What the APIs' answers have in common, each in its own way: errors, and how a stream is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse

from memfit.errors import MemfitError
from memfit.openai.answers import Frame
from memfit.openai.anthropic_answers import anthropic_error
from memfit.openai.ollama_answers import ollama_error
from memfit.server.failures import BusyError, llama_error, openai_error, status_of

__all__ = [
    "ANTHROPIC",
    "LLAMA",
    "OLLAMA",
    "OPENAI",
    "STREAM_HEADERS",
    "Dialect",
    "dialect_of",
    "failure",
    "json_response",
    "streamed",
]

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One API's."""

    error: Callable[[MemfitError], Any]
    lines: bool = False  # streams are lines of JSON, not server-sent events

    @property
    def media(self) -> str:
        """The type of a stream."""
        return "application/x-ndjson" if self.lines else "text/event-stream"

    def encode(self, frame: Frame) -> bytes:
        """One frame of a stream."""
        data = frame.data.encode() if isinstance(frame.data, str) else _json(frame.data)
        if self.lines:
            return data + b"\n"
        name = f"event: {frame.event}\n".encode() if frame.event else b""
        return name + b"data: " + data + b"\n\n"


OPENAI = Dialect(error=openai_error)
LLAMA = Dialect(error=llama_error)
ANTHROPIC = Dialect(error=lambda error: anthropic_error(error, status_of(error)))
OLLAMA = Dialect(error=ollama_error, lines=True)

# Beginnings of paths → whose they are, where no path of ours answers; the first that fits.
_PATHS = (
    ("/v1/messages", ANTHROPIC),
    ("/messages", ANTHROPIC),
    ("/api/", OLLAMA),
    ("/v1/", OPENAI),
    ("/", LLAMA),
)


def dialect_of(path: str) -> Dialect:
    """By which clients understand an error."""
    return next((dialect for beginning, dialect in _PATHS if path.startswith(beginning)), LLAMA)


def failure(error: MemfitError, dialect: Dialect = OPENAI) -> Response:
    """The response to a call that failed."""
    headers = {"Retry-After": str(error.retry_seconds)} if isinstance(error, BusyError) else {}
    return json_response(dialect.error(error), status_of(error), headers)


def streamed(frames: AsyncIterator[bytes], dialect: Dialect) -> Response:
    return StreamingResponse(frames, media_type=dialect.media, headers=STREAM_HEADERS)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_json(value), status, dict(headers or {}), "application/json")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
