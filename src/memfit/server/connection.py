"""A client's connection, given up where it sends no headers, leaves its answer unread, or sends on after it.

Without that, a thousand clients who do nothing would keep all others out. Bodies have a limit of their own.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from memfit.server.settings import Limits

__all__ = ["connection_class"]


def connection_class(given: Limits) -> type[asyncio.Protocol]:
    """What uvicorn makes for each client."""

    class Connection(_Connection):
        limits = given

    return Connection


class _Connection(H11Protocol):
    limits: ClassVar[Limits]

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self._sends: asyncio.TimerHandle | None = None  # what it has to
        self._reads: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reads = self._reads or self._within(self.limits.stall_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reads = _stopped(self._reads)

    def connection_lost(self, exc: Exception | None) -> None:
        self._sends, self._reads = _stopped(self._sends), _stopped(self._reads)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Whether the client has to send: headers, or the rest of a body that nobody reads any more."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        owes = theirs is h11.IDLE or (theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE))
        if owes and not self.transport.is_closing():
            self._sends = self._sends or self._within(self.limits.header_seconds)
        else:
            self._sends = _stopped(self._sends)
        if self.transport.is_closing():  # once it has read what is left
            self._reads = self._reads or self._within(self.limits.stall_seconds)

    def _within(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, which is no timer."""
    if timer:
        timer.cancel()
    return None
