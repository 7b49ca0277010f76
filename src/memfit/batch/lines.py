"""One line of a batch's input → a request: OpenAI's batch format, or a plain prompt or messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memfit.engines.protocol import Request, Sampling
from memfit.errors import UsageError

__all__ = ["LINE_LIMIT_BYTES", "Line", "LineError", "parse_line"]

LINE_LIMIT_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that can be run; `request.number` is `number`."""

    number: int  # of the line in the file, from 1, blank lines counted
    custom_id: str  # "line-<number>" where the line gives none
    form: Literal["chat", "completion"]  # of the answer; plain lines are answered as chats
    request: Request


class LineError(UsageError):
    """A line that cannot be run. The message is the reason; `custom_id` is None where it is unknown."""

    def __init__(self, number: int, custom_id: str | None, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.custom_id = custom_id


def parse_line(
    number: int,
    data: bytes,
    defaults: Sampling,
    *,
    raw: bool = False,
    schema: Mapping[str, Any] | None = None,
) -> Line:
    """A line without its end. Its own fields win over `defaults`, its response_format over `schema`.

    `raw`: a plain prompt is continued as it is, and not put through the chat template.

    Raises:
        LineError: not JSON, or a field that is wrong or that memfit does not support; it is named.
    """
    raise NotImplementedError
