"""The child's end of a helper process: hears its parent (helper.py), sends answers and errors."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from memfit.errors import EngineError, MemfitError
from memfit.processes.carried_errors import carry_error

__all__ = ["Parent", "answer"]

_MOST_HELD = 64 * 1024  # bytes of messages that are sent together


class Parent:
    """The parent, as its helper sees it. The numbers of its pipes are on the command line."""

    def __init__(
        self, on_message: Callable[[dict[str, Any]], None] | None = None, *, listens: bool = True
    ) -> None:
        """`on_message` is called on the listening thread; without it, messages come from `messages`.

        A helper with `listens` False must end with its parent by other means.
        """
        self._requests, self._events = map(int, sys.argv.pop().split(","))
        for number in (self._requests, self._events):
            os.set_inheritable(number, False)  # a child of ours must not keep them open
        self._held: bytearray | None = None  # what is sent together
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._on_message = on_message or self._messages.put
        if listens:
            threading.Thread(target=self._listen, daemon=True).start()

    def messages(self) -> Iterator[dict[str, Any]]:
        """In order, until the process ends."""
        while True:
            yield self._messages.get()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is sent meanwhile goes out at its end, at once: each message wakes the parent, on a core that
        may be computing. What is large goes out earlier, so that it is not held."""
        self._held = bytearray()
        try:
            yield
        finally:
            held, self._held = self._held, None
            self._write(held)

    def send(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        if self._held is None:
            self._write(line)
            return
        self._held += line
        if len(self._held) >= _MOST_HELD:
            self._write(self._held)
            self._held = bytearray()

    def _write(self, data: bytes | bytearray) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._events, left) :]
        except BrokenPipeError:
            os._exit(0)

    def send_error(self, error: MemfitError) -> None:
        self.send("error", **carry_error(error))

    def _listen(self) -> None:
        # By os.read: a thread inside a buffered reader aborts the interpreter's orderly end.
        unread: list[bytes] = []  # pieces of a line: joined once, as it may have very many
        while data := os.read(self._requests, 65536):
            *ends, rest = data.split(b"\n")
            for end in ends:
                self._on_message(json.loads(b"".join([*unread, end])))
                unread.clear()
            unread.append(rest)
        # The parent has ended or closed us, perhaps in the middle of our work: leave nothing behind.
        os._exit(0)


def answer(find: Callable[[Parent], dict[str, Any]]) -> int:
    """Be a helper that is asked once, by its arguments: send the parent what `find` returns or raises."""
    parent = Parent()
    try:
        found = find(parent)
    except MemfitError as error:
        parent.send_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the edge of this process
        traceback.print_exc()
        parent.send_error(EngineError(f"{type(error).__name__}: {error}"))
        return 1
    parent.send("done", **found)
    return 0
