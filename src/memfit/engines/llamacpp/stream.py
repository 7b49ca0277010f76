"""Weights that stay on the disk: read ahead of the computation, pass after pass, through a ring of memory.

One thread reads: it fills a disk's bandwidth, and leaves the cores to the computation. Matrices are read in
the order of computation, which every pass repeats. Where one is asked for out of order, the reading begins
anew with it.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memfit.hardware.direct_file import READ_BYTES, DirectFile, StreamError
from memfit.hardware.disk_speed import own_memory
from memfit.memory.streaming import Stretch

__all__ = ["Ring"]

_LOOK_SECONDS = 0.05  # how often one who waits looks whether the request was cancelled


@dataclass
class _Slot:
    """A stretch's place in the ring, from the moment its reading begins until it is given back."""

    index: int
    start: int
    end: int
    whole: bool = False


class Ring:
    """Memory that the streamed tensors pass through, in order.

    `take` and `give_back` belong to the thread that computes, all else to the reading one.
    """

    def __init__(
        self,
        files: Sequence[DirectFile],
        parts: Sequence[Stretch],
        size_bytes: int,
        cancelled: Callable[[], bool],
    ) -> None:
        """`parts` in order of computation; `cancelled` ends a wait early."""
        self._files = files
        self._parts = parts
        self._size = size_bytes
        self._cancelled = cancelled
        self._memory = own_memory(size_bytes)
        self._view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._slots: deque[_Slot] = deque()  # the oldest first
        self._head = 0  # where the next slot may begin
        self._next = 0  # the part to be read next
        self._round = 0  # counted up whenever the reading begins anew
        self._taken = False  # whether the oldest slot is computed with
        self._error: StreamError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read_ahead, name="memfit-stream", daemon=True)
        self._thread.start()

    def take(self, index: int) -> int:
        """The address of a part's first page, once it is there; it stays until `give_back`.

        Where the request was cancelled meanwhile, any address: nothing will be computed with it.

        Raises:
            StreamError: it cannot be read.
        """
        with self._changed:
            while True:
                if self._error:
                    raise self._error
                if not self._expects(index):
                    self._restart(index)
                slot = self._slots[0] if self._slots else None
                if slot and slot.whole:
                    self._taken = True
                    return self.address + slot.start
                if self._cancelled():
                    return self.address
                self._changed.wait(_LOOK_SECONDS)

    def give_back(self) -> None:
        """The oldest part has been computed with."""
        with self._changed:
            if self._taken:
                self._slots.popleft()
                self._taken = False
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _expects(self, index: int) -> bool:
        return (self._slots[0].index if self._slots else self._next) == index

    def _restart(self, index: int) -> None:
        self._slots.clear()
        self._next, self._head, self._taken = index, 0, False
        self._round += 1
        self._changed.notify_all()

    def _read_ahead(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (slot := self._reserve()) is None:
                    self._changed.wait()
                if self._closed:
                    return
                assert slot is not None
                round_number = self._round
            part = self._parts[slot.index]
            try:
                for done in range(0, part.size_bytes, READ_BYTES):
                    if round_number != self._round or self._closed:
                        break
                    end = min(done + READ_BYTES, part.size_bytes)
                    piece = self._view[slot.start + done : slot.start + end]
                    self._files[part.file_index].read(piece, part.start_bytes + done)
            except StreamError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if round_number == self._round:
                    slot.whole = True
                    self._changed.notify_all()

    def _reserve(self) -> _Slot | None:
        """Room for the next part behind the newest one; None while there is none."""
        size = self._parts[self._next].size_bytes
        tail = self._slots[0].start if self._slots else None
        if tail is None:
            start = self._head if self._head + size <= self._size else 0
        elif self._head > tail:
            start = self._head if self._head + size <= self._size else 0
            if start == 0 and size > tail:
                return None
        elif self._head + size <= tail:
            start = self._head
        else:
            return None
        slot = _Slot(index=self._next, start=start, end=start + size)
        self._slots.append(slot)
        self._head = slot.end
        self._next = (self._next + 1) % len(self._parts)
        return slot
