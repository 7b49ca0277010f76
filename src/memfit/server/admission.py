"""Who is let in: as many calls as the model runs side by side, and a bounded number that wait."""

from __future__ import annotations

import math
import time

from memfit.closing import Closing
from memfit.server.failures import BusyError

__all__ = ["Admission", "Place"]

_WEIGHT = 0.1  # of the newest call in what calls are expected to take
_MOST_SECONDS = 600


class Admission:
    """Counts the sequences that calls take: one for each choice, up to all. On the event loop."""

    def __init__(self, *, running: int, queue: int) -> None:
        self.running, self.queue = running, queue
        self.taken = 0
        self.refused = 0
        self._seconds = 1.0  # that a call takes

    @property
    def waiting(self) -> int:
        return max(0, self.taken - self.running)

    def enter(self, choices: int) -> Place:
        """A place for a call, until it is closed.

        Raises:
            BusyError: the queue is full.
        """
        choices = min(choices, self.running)
        if self.taken + choices > self.running + self.queue:
            self.refused += 1
            ahead = self.taken + choices - self.running - self.queue
            seconds = math.ceil(self._seconds * ahead / self.running)
            raise BusyError(queued=self.waiting, retry_seconds=min(_MOST_SECONDS, max(1, seconds)))
        self.taken += choices
        return Place(self, choices)

    def leave(self, choices: int, seconds: float) -> None:
        self.taken -= choices
        self._seconds += _WEIGHT * (seconds - self._seconds)


class Place(Closing):
    """A context manager; closing it again does nothing."""

    def __init__(self, admission: Admission, choices: int) -> None:
        self._admission, self._choices = admission, choices
        self._since = time.monotonic()

    def close(self) -> None:
        choices, self._choices = self._choices, 0
        if choices:
            self._admission.leave(choices, time.monotonic() - self._since)
