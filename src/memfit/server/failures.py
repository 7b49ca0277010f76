"""Errors as HTTP statuses, and in the words of each API. One table; no route writes an error of its own."""

from __future__ import annotations

from typing import Any

from memfit.errors import (
    ContextExceededError,
    DoesNotFitError,
    EngineError,
    MemfitError,
    ModelError,
    ModelNotFoundError,
    UsageError,
    readable,
)

__all__ = ["BusyError", "RefusedError", "llama_error", "openai_error", "status_of"]

_MOST = 4000  # characters of a message


class RefusedError(MemfitError):
    """A call that is refused with a status and one of OpenAI's types, before it is read."""

    def __init__(self, status: int, kind: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.status, self.kind = status, kind


class BusyError(RefusedError):
    """There is no place for a call now; after `retry_seconds` there is likely one."""

    def __init__(self, *, retry_seconds: int, queued: int | None = None) -> None:
        busy = "the server is busy" if queued is None else f"the server is busy: {queued} answers are waiting"
        super().__init__(429, "rate_limit_error", f"{busy}; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


def status_of(error: MemfitError) -> int:
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, ModelNotFoundError):
        return 404
    if isinstance(error, UsageError | ModelError):  # a template that fails, fails for what it was given
        return 400
    return 503 if isinstance(error, DoesNotFitError) else 500


def openai_error(error: MemfitError) -> dict[str, Any]:
    """OpenAI's object, with llama-server's fields where a context is exceeded."""
    found: dict[str, Any] = {
        "message": readable(str(error), most=_MOST),
        "type": _kind(error),
        "param": error.field,
        "code": None,
    }
    if isinstance(error, ContextExceededError):
        found |= {"code": "context_length_exceeded", "n_prompt_tokens": error.got, "n_ctx": error.needed}
    if isinstance(error, DoesNotFitError):
        found |= {"needs_bytes": error.needs_bytes, "budget_bytes": error.budget_bytes}
    return {"error": found}


def llama_error(error: MemfitError) -> dict[str, Any]:
    """llama-server's: the code is the status."""
    found = openai_error(error)["error"]
    return {"error": {**found, "code": status_of(error)}}


def _kind(error: MemfitError) -> str:
    if isinstance(error, RefusedError):
        return error.kind
    if isinstance(error, ContextExceededError):
        return "exceed_context_size_error"
    if isinstance(error, ModelNotFoundError):
        return "not_found_error"
    if isinstance(error, UsageError | ModelError):
        return "invalid_request_error"
    return "server_error" if isinstance(error, EngineError) else "unavailable_error"
