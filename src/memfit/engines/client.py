"""The parent's end of an engine's worker: ask, listen, cancel."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from memfit.closing import Closing
from memfit.engines.allocator import EXACT
from memfit.engines.channel import OverBudgetError
from memfit.errors import EngineError, WorkerDiedError
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper

__all__ = ["Conversation", "WorkerProcess"]

_CANCEL_SECONDS = 5.0  # within which a cancelled request ends
_CANCELLED = ("open", "measure", "collect", "probe")  # commands that heed a cancel
_CAUSES: Mapping[int, str] = {
    signal.SIGPROF: "found that the model's chat template never came to an end; try --raw"
}


class Conversation(Closing):
    """One request's events as they come, as (kind, values); after the last one, `answer` is there.

    A context manager: closed early, it cancels the request and waits for its end, so that the next one finds
    the worker listening. What cannot be cancelled, such as loading, ends with the worker. Nothing is left
    to the garbage collector.

    Iterating raises:
        WorkerDiedError: the worker ended before it answered.
        OverBudgetError: it stopped loading before its limit.
        MemfitError: the worker's own error, of the class it was raised as.
    """

    def __init__(self, worker: WorkerProcess, do: str) -> None:
        self.answer: dict[str, Any] | None = None
        self._worker, self._do = worker, do
        self.is_over = False

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return self

    def __next__(self) -> tuple[str, dict[str, Any]]:
        if self.is_over:
            raise StopIteration
        event = self._worker.receive()
        self.is_over = event is None or event["event"] in ("done", "error")
        if event is None:
            raise self._worker.obituary(f"during {self._do!r}")
        kind: str = event.pop("event")
        if kind == "error":
            raise self._worker.rebuilt(event)
        if kind == "done":
            self.answer = event
            raise StopIteration
        return kind, event

    def close(self) -> None:
        """Safe to repeat."""
        if not self.is_over:
            self.is_over = True
            self._worker.end_early(self._do)


class WorkerProcess(Helper):
    """One worker: `python -m module`, which answers in channel.py's words. `verbose` lets the engine's log
    through to stderr."""

    def __init__(self, module: str, environment: Mapping[str, str], *, verbose: bool = False) -> None:
        """`environment` is what the engine wants beside this process's own."""
        full = {**os.environ, **EXACT, "MALLOC_ARENA_MAX": "2", **environment}
        if verbose:
            full["MEMFIT_WORKER_VERBOSE"] = "1"
        super().__init__(
            module,
            name="the engine's worker",
            log="shown" if verbose else "kept",
            environment=full,
            causes=_CAUSES,
        )
        self._posted = 0  # requests whose answers are still to be skipped
        self._conversation: Conversation | None = None

    def ask(
        self,
        do: str,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        *,
        interruptible: bool = False,
        **values: Any,
    ) -> dict[str, Any]:
        """Send one request and return its answer; other events go to `on_event`.

        Ctrl-C cancels an `interruptible` request once, and its answer still comes; a second Ctrl-C, or
        any while another request runs, is raised.

        Raises: as a Conversation does.
        """
        with (
            self.converse(do, **values) as conversation,
            self.cancels_on_interrupt() if interruptible else contextlib.nullcontext(),
        ):
            for kind, event in conversation:
                if on_event:
                    on_event(kind, event)
        assert conversation.answer is not None
        return conversation.answer

    def converse(self, do: str, **values: Any) -> Conversation:
        """Send one request now; one that was left open before it is closed.

        Raises:
            WorkerDiedError: nobody is there.
        """
        if self._conversation:
            self._conversation.close()
        self.skip_posted()
        self.send({"do": do, **values})
        self._conversation = Conversation(self, do)
        return self._conversation

    def tell(self, do: str, **values: Any) -> None:
        """Add to the request that is running: only "open" listens.

        Raises:
            WorkerDiedError: nobody is there.
        """
        self.send({"do": do, **values})

    def post(self, do: str, **values: Any) -> None:
        """Send a request whose answer is of no interest, without waiting for it."""
        self.send({"do": do, **values})
        self._posted += 1

    def skip_posted(self) -> None:
        """Wait for the answers of what was posted."""
        while self._posted:
            self._posted -= 1
            self._skip_answer(None)

    def end_early(self, do: str) -> None:
        """Cancel the running request and wait for its end; a worker that does not end it is killed."""
        if self.is_closed:
            return
        if do not in _CANCELLED:
            self.kill()
            return
        self.cancel()
        try:
            self._skip_answer(_CANCEL_SECONDS)
        except TimeoutError:
            self.kill()

    def _skip_answer(self, wait_seconds: float | None) -> None:
        """Raises TimeoutError where it does not end by then."""
        ends = None if wait_seconds is None else time.monotonic() + wait_seconds
        while True:
            event = self.receive(None if ends is None else ends - time.monotonic())
            if event is None or event["event"] in ("done", "error"):
                return

    def cancel(self) -> None:
        """Ask the running request to end early; its answer still comes. Safe from another thread."""
        with contextlib.suppress(WorkerDiedError):
            self.send({"do": "cancel"})

    @contextlib.contextmanager
    def cancels_on_interrupt(self) -> Iterator[None]:
        """While it is open, the first Ctrl-C cancels the running request, whose answer says so; a second one
        is raised. An exception in the middle of reading would lose the place in the worker's answer."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(_number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            self.cancel()

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def rebuilt(self, event: Mapping[str, Any]) -> Exception:
        """The worker's own error. Why the engine failed stands in its log."""
        if event["kind"] == "over_budget":
            return OverBudgetError(event["needs_bytes"])
        words = self.last_words() if event["kind"] == EngineError.__name__ else ""
        return rebuild_error(event, f"; its last words: {words}" if words else "")
