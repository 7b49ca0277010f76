"""The parent's end of a worker process: start, ask, listen, and say clearly how it died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from types import FrameType
from typing import Any

from memfit import errors
from memfit.errors import EngineError, MemfitError, WorkerDiedError, readable

__all__ = ["OverBudget", "WorkerProcess", "rebuilt_error"]

_CLOSE_SECONDS = 5.0
_CANCELLED = ("complete", "measure", "batch")  # requests that heed a cancel
_LOG_BYTES = 4000  # how much of the worker's last words is quoted from


class OverBudget(Exception):  # noqa: N818 - an answer, which the session turns into an error
    """The worker stopped loading before its limit; `needs_bytes` is what it alone would have held."""

    def __init__(self, needs_bytes: int) -> None:
        super().__init__(needs_bytes)
        self.needs_bytes = needs_bytes


class WorkerProcess:
    """One worker: `python -m module`, which answers in channel.py's words. `verbose` lets the engine's log
    through to stderr."""

    def __init__(self, module: str, environment: Mapping[str, str], *, verbose: bool = False) -> None:
        """`environment` is what the engine wants beside this process's own."""
        full = {
            **os.environ,
            # A freed staging buffer goes back to the system at once, whatever its size: glibc would
            # raise these thresholds by itself and keep up to 64 MiB.
            "MALLOC_MMAP_THRESHOLD_": "1048576",
            "MALLOC_TRIM_THRESHOLD_": "1048576",
            "MALLOC_ARENA_MAX": "2",
            **environment,
        }
        if verbose:
            full["MEMFIT_WORKER_VERBOSE"] = "1"
        self._log = None if verbose else tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=full,
        )
        self._unread = b""
        self._posted = 0  # requests whose answers are still to be skipped

    @property
    def pid(self) -> int:
        return self._process.pid

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

        Raises: as `converse` does.
        """
        conversation = self.converse(do, **values)
        with self.cancels_on_interrupt() if interruptible else contextlib.nullcontext():
            while True:
                try:
                    kind, event = next(conversation)
                except StopIteration as end:
                    return dict(end.value)
                if on_event:
                    on_event(kind, event)

    def converse(self, do: str, **values: Any) -> Generator[tuple[str, dict[str, Any]], None, dict[str, Any]]:
        """Send one request now; what comes back yields its events as (kind, values) and returns its answer.

        Closed early, that cancels an answer and waits for its end, so that the next one finds the worker
        listening. What cannot be cancelled, such as loading, ends with the worker.

        Raises:
            WorkerDiedError: the worker ended before it answered.
            OverBudget: it stopped loading before its limit.
            MemfitError: the worker's own error, of the class it was raised as.
        """
        while self._posted:
            self._posted -= 1
            self._skip_answer()
        self._send({"do": do, **values})
        events = self._events(do)
        next(events)  # closing one that has not begun would end nothing
        return events

    def _events(self, do: str) -> Generator[tuple[str, dict[str, Any]], None, dict[str, Any]]:
        answered = False
        try:
            yield "", {}
            while (line := self._read_line()) is not None:
                event = json.loads(line)
                kind = event.pop("event")
                answered = kind in ("done", "error")
                if kind == "done":
                    return dict(event)
                if kind == "error":
                    if event["kind"] == "over_budget":
                        raise OverBudget(event["needs_bytes"])
                    raise self._rebuild(event)
                yield kind, event
            answered = True
            raise self._obituary(do)
        finally:
            if not answered:
                self._end_early() if do in _CANCELLED else self.kill()

    def tell(self, do: str, **values: Any) -> None:
        """Add to the request that is running: only "batch" listens.

        Raises:
            WorkerDiedError: nobody is there.
        """
        self._send({"do": do, **values})

    def has_event(self, wait_seconds: float) -> bool:
        """Whether the worker has sent something, or ended, by then."""
        assert self._process.stdout is not None
        return b"\n" in self._unread or bool(select.select([self._process.stdout], [], [], wait_seconds)[0])

    def post(self, do: str, **values: Any) -> None:
        """Send a request whose answer is of no interest, without waiting for it."""
        self._send({"do": do, **values})
        self._posted += 1

    def _end_early(self) -> None:
        """Cancel the running request and wait for its end; a worker that does not end it is killed."""
        alarm = threading.Timer(_CLOSE_SECONDS, self.kill)
        alarm.daemon = True
        alarm.start()
        self.cancel()
        self._skip_answer()
        alarm.cancel()

    def _skip_answer(self) -> None:
        while (line := self._read_line()) is not None:
            if json.loads(line)["event"] in ("done", "error"):
                break

    def cancel(self) -> None:
        """Ask the running request to end early; its answer still comes. Safe from another thread."""
        with contextlib.suppress(WorkerDiedError):
            self._send({"do": "cancel"})

    def cancels_on_interrupt(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, the first Ctrl-C cancels the running request; a second one is raised."""
        return _cancels(self.cancel)

    def kill(self) -> None:
        """End the worker at once, from any thread; a waiting `ask` raises WorkerDiedError."""
        self._process.kill()

    def close(self) -> None:
        """End the worker and wait for it. Safe to repeat."""
        process = self._process
        if process.stdin and not process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # its listener leaves at the end of its input
        try:
            process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
        if self._log:
            self._log.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._obituary(message["do"]) from None

    def _read_line(self) -> bytes | None:
        """The next whole line, or None once the worker has ended."""
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                return None
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _obituary(self, doing: str) -> WorkerDiedError:
        try:
            code = self._process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code == -signal.SIGKILL:
            cause = "it was killed; most often by the kernel when memory ran out"
        elif code == -signal.SIGILL:
            cause = "the engine was built for another CPU; memfit doctor gives the command that mends it"
        elif code == -signal.SIGPROF:
            cause = "the model's chat template never came to an end; try --raw"
        elif code == -signal.SIGBUS:
            cause = "a file that it had mapped became shorter, or its disk failed"
        elif code < 0:
            cause = f"it died of {signal.Signals(-code).name}"
        else:
            cause = f"it exited with code {code}"
        last = self._last_words()
        return WorkerDiedError(f"the engine's worker ended during {doing!r}: {cause}{last}")

    def _rebuild(self, event: dict[str, Any]) -> MemfitError:
        """Why the engine failed stands in its log."""
        return rebuilt_error(event, self._last_words() if event["kind"] == EngineError.__name__ else "")

    def _last_words(self) -> str:
        if self._log is None or self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "; its last words: " + readable(" / ".join(lines[-3:])) if lines else ""


def rebuilt_error(event: Mapping[str, str], more: str = "") -> MemfitError:
    """The worker's error as the class it was raised as."""
    error: MemfitError = getattr(errors, event["kind"])(event["text"] + more)
    return error


@contextlib.contextmanager
def _cancels(cancel: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `cancel`, whose effect the running request then reports; a second one is
    raised. An exception in the middle of reading would lose the place in the worker's answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        cancel()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
