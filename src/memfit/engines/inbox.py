"""The requests of the open stream as the parent sends them, one by one: in the worker, for both engines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from memfit.engines.channel import Aborted, Channel
from memfit.engines.requests import Completion, Request, Speed, Status, StreamTotals
from memfit.engines.results import send_answer

__all__ = ["Inbox"]

_LOOK_SECONDS = 0.1  # while nothing is asked, how often a cancellation is looked for


class Inbox:
    """Requests wait here, with whether their text is sent as it comes, until the engine takes them."""

    def __init__(self, channel: Channel, is_aborted: Callable[[], bool]) -> None:
        self.channel = channel
        self._is_aborted = is_aborted
        self.waiting: deque[tuple[Request, bool]] = deque()
        self.open()

    def open(self) -> None:
        """A new stream begins."""
        self.is_ending = False
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the stream began, without those in which nothing was asked."""
        return time.monotonic() - self._since

    def take(self, drop: Callable[[int], None], *, idle: bool) -> bool:
        """One message, for which an `idle` engine waits a little; False where none came. `drop` forgets a
        request that the engine has taken.

        Raises:
            Aborted: the stream was cancelled.
        """
        began = time.monotonic()
        message = self.channel.next_request(_LOOK_SECONDS if idle else 0.0)
        if idle:
            self._since += time.monotonic() - began
        if self._is_aborted():
            raise Aborted
        if message is None:
            return False
        do = message.pop("do")
        if do == "add":
            self.waiting.append((Request.from_json(message["request"]), message["sends_text"]))
        elif do == "drop":
            number = message["number"]
            self.waiting = deque(one for one in self.waiting if one[0].number != number)
            drop(number)
        else:
            assert do == "end", f"{do} cannot be asked while a stream is open"
            self.is_ending = True
        return True

    def cancel(self) -> None:
        """Those that wait end with nothing."""
        for request, _ in self.waiting:
            unbegun = Completion(
                text="", finish_reason="cancelled", prompt_tokens=0, completion_tokens=0, speed=Speed()
            )
            send_answer(self.channel, request.number, unbegun)
        self.waiting.clear()

    def tell(self, status: Status, totals: StreamTotals) -> None:
        """How busy the engine is, and what the stream has come to."""
        self.channel.send("status", **vars(status), totals=vars(totals))
