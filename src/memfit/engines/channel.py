"""JSON lines between the parent and the worker: one request at a time, any number of events back.
A batch is one request too; while it runs, others are added to it (batching.py).

A request names what to `do`; the last event of its answer has "event": "done" or "error". "cancel" is for
the request before it, may come at any time and is not answered by itself.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from memfit.errors import MemfitError

__all__ = ["ADDITIONS", "Channel", "OverBudgetError", "run_worker"]

ADDITIONS = ("add", "drop", "end")  # to a batch that runs


class OverBudgetError(Exception):
    """Going on would take the worker beyond its limit; `needs_bytes` is what it would hold then."""

    def __init__(self, needs_bytes: int) -> None:
        super().__init__(needs_bytes)
        self.needs_bytes = needs_bytes


class Channel:
    """The worker's end. Takes file descriptor 1 for itself; later prints of anybody go to stderr."""

    def __init__(self, on_request: Callable[[], None], on_cancel: Callable[[], None]) -> None:
        """Both are called on the listening thread, in the order in which the parent wrote."""
        self._output: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._on_request, self._on_cancel = on_request, on_cancel
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def requests(self) -> Iterator[dict[str, Any]]:
        """Requests in order, until the process ends."""
        while True:
            yield self._requests.get()

    def serve(self, actions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
        """Answer requests by the action of their name, until the process ends."""
        for request in self.requests():
            do = request.pop("do")
            if do in ADDITIONS:  # too late: the batch was cancelled meanwhile
                continue
            try:
                self.send("done", **actions[do](**request))
            except OverBudgetError as overrun:
                self.send("error", kind="over_budget", needs_bytes=overrun.needs_bytes)
            except MemfitError as error:
                self.send("error", kind=type(error).__name__, text=str(error))

    def next_request(self, wait_seconds: float) -> dict[str, Any] | None:
        """The next request; None where none comes in time."""
        try:
            return self._requests.get(block=wait_seconds > 0, timeout=wait_seconds or None)
        except queue.Empty:
            return None

    def send(self, event: str, **values: Any) -> None:
        try:
            self._output.write(json.dumps({"event": event, **values}) + "\n")
            self._output.flush()
        except BrokenPipeError:
            os._exit(0)

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if request["do"] == "cancel":
                self._on_cancel()
            else:
                if request["do"] not in ADDITIONS:
                    self._on_request()
                self._requests.put(request)
        # The parent has ended or closed us, perhaps in the middle of a decode: leave nothing behind.
        os._exit(0)


def run_worker(serve: Callable[[], None]) -> None:
    """What a worker's process is: `serve` until the parent leaves."""
    # Ctrl-C in a terminal reaches the whole process group; the parent decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # an orderly end would wait for the thread that listens, and abort
