"""Weights that stay on the disk: read ahead of the computation, pass after pass, through a ring of memory.

One thread reads: it fills a disk's bandwidth, and leaves the cores to the computation. Parts, a
matrix or a whole layer each, are read in the order of computation, which every pass repeats. Where one is
asked for out of order, the reading begins anew with it.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.hardware.direct_file import READ_BYTES, DirectFile, StreamError
from memfit.hardware.disk_speed import own_memory
from memfit.memory.streaming import Stretch

__all__ = ["Ring"]

_LOOK_SECONDS = 0.05  # how often a wait looks whether the request was cancelled


@dataclass
class _Reading:
    """Where a part lies in the ring, from the beginning of its reading until it is given back."""

    index: int
    start: int
    whole: bool = False


class Ring:
    """Memory that the streamed tensors pass through, in order.

    `take` and `give_back` belong to the thread that computes; the rest belongs to the thread that reads.
    """

    def __init__(
        self,
        files: Sequence[DirectFile],
        parts: Sequence[Sequence[Stretch[Any]]],
        size_bytes: int,
        cancelled: Callable[[], bool],
    ) -> None:
        """`parts` in order of computation, each of stretches that lie one behind the other in the ring;
        `cancelled` ends a wait early."""
        self._files = files
        self._parts = parts
        self._sizes = [sum(stretch.size_bytes for stretch in part) for part in parts]
        self._size = size_bytes
        self._cancelled = cancelled
        self.memory = own_memory(size_bytes)
        self._view = memoryview(self.memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._readings: deque[_Reading] = deque()  # the oldest first
        self._head = 0  # where the next reading may begin
        self._next = 0  # the part to be read next
        self._round = 0  # counted up whenever the reading begins anew
        self._taken = False  # whether the oldest reading is computed with
        self._error: StreamError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read_ahead, name="memfit-stream", daemon=True)
        self._thread.start()

    def take(self, index: int) -> int:
        """Wait for a part, and return the address of its first page. The part stays until `give_back`.

        Where the request was cancelled meanwhile, the address means nothing: no result is used.

        Raises:
            StreamError: it cannot be read.
        """
        with self._changed:
            while True:
                if self._error:
                    raise self._error
                if (self._readings[0].index if self._readings else self._next) != index:
                    self._restart(index)
                reading = self._readings[0] if self._readings else None
                if reading and reading.whole:
                    self._taken = True
                    return self.address + reading.start
                if self._cancelled():
                    return self.address
                self._changed.wait(_LOOK_SECONDS)

    def give_back(self) -> None:
        """The oldest part has been computed with."""
        with self._changed:
            if self._taken:
                self._readings.popleft()
                self._taken = False
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _restart(self, index: int) -> None:
        self._readings.clear()
        self._next, self._head, self._taken = index, 0, False
        self._round += 1
        self._changed.notify_all()

    def _read_ahead(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (reading := self._reserve()) is None:
                    self._changed.wait()
                if self._closed:
                    return
                assert reading is not None
                round_number = self._round
            try:
                start = reading.start
                for stretch in self._parts[reading.index]:
                    self._read(stretch, start, round_number)
                    start += stretch.size_bytes
            except StreamError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if round_number == self._round:
                    reading.whole = True
                    self._changed.notify_all()

    def _read(self, stretch: Stretch[Any], start: int, round_number: int) -> None:
        for done in range(0, stretch.size_bytes, READ_BYTES):
            if round_number != self._round or self._closed:
                return
            end = min(done + READ_BYTES, stretch.size_bytes)
            piece = self._view[start + done : start + end]
            self._files[stretch.file_index].read(piece, stretch.start_bytes + done)

    def _reserve(self) -> _Reading | None:
        """Take room for the next part behind the newest; None while the ring is full."""
        size = self._sizes[self._next]
        tail = self._readings[0].start if self._readings else None
        goes_round = tail is not None and self._head <= tail
        start = self._head if goes_round or self._head + size <= self._size else 0
        if tail is not None and start <= tail < start + size:
            return None
        reading = _Reading(index=self._next, start=start)
        self._readings.append(reading)
        self._head = start + size
        self._next = (self._next + 1) % len(self._parts)
        return reading
