"""What the parent and the worker of an engine say: one command at a time, any number of events back.

A command names what to `do`; the last event of its answer has "event": "done" or "error". "open" begins a
stream of requests: until it ends they are added to it and dropped from it. "cancel" is for the command before
it, may come at any time and is not answered by itself. How they travel: processes/.
"""

from __future__ import annotations

import os
import queue
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from memfit.errors import MemfitError
from memfit.processes.child import Parent

__all__ = ["Abortable", "Aborted", "Channel", "OverBudgetError", "run_worker"]

_WITHIN_STREAM = ("add", "drop", "end")


class Aborted(Exception):  # noqa: N818 - asked for
    """The running command was cancelled."""


class OverBudgetError(Exception):
    """Going on would take the worker beyond its limit; `needs_bytes` is what it would hold then."""

    def __init__(self, needs_bytes: int) -> None:
        super().__init__(needs_bytes)
        self.needs_bytes = needs_bytes


class Abortable(Protocol):
    """What computes in a worker. Both are called on the listening thread, in the parent's order."""

    def abort(self) -> None:
        """End what is being computed early."""

    def clear_abort(self) -> None:
        """An abort that comes from here on is for the command that was read now."""


class Channel:
    """The worker's end."""

    def __init__(self, model: Callable[[], Abortable | None]) -> None:
        """`model` is what a cancellation ends; None before there is one."""
        self._model = model
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._parent = Parent(self._hear)

    def serve(self, actions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
        """Answer requests by the action of their name, until the process ends."""
        while True:
            request = self._requests.get()
            do = request.pop("do")
            if do in _WITHIN_STREAM:  # too late: the stream was cancelled meanwhile
                continue
            try:
                self.send("done", **actions[do](**request))
            except OverBudgetError as overrun:
                self.send("error", kind="over_budget", needs_bytes=overrun.needs_bytes)
            except MemfitError as error:
                self._parent.send_error(error)

    def next_request(self, wait_seconds: float) -> dict[str, Any] | None:
        """The next request; None where none comes in time."""
        try:
            return self._requests.get(block=wait_seconds > 0, timeout=wait_seconds or None)
        except queue.Empty:
            return None

    def send(self, event: str, **values: Any) -> None:
        self._parent.send(event, **values)

    def together(self) -> AbstractContextManager[None]:
        """What is sent meanwhile goes out at its end, at once."""
        return self._parent.together()

    def _hear(self, request: dict[str, Any]) -> None:
        if request["do"] == "cancel":
            if model := self._model():
                model.abort()
            return
        if request["do"] not in _WITHIN_STREAM and (model := self._model()):
            model.clear_abort()
        self._requests.put(request)


def run_worker(serve: Callable[[], None]) -> None:
    """What a worker's process is: `serve` until the parent leaves."""
    # Ctrl-C in a terminal, or a service manager's SIGTERM, reaches the whole process group; the parent
    # decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        serve()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # an orderly end could wait for threads of libraries
