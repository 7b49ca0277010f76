"""The parent's end of a helper process: start it, speak with it, end it, and say how it died.

Messages are JSON objects, a line each, over two pipes that carry nothing else; the last word of the child's
command line has their numbers (child.py). The child's stdout is its log, so nothing that a library prints,
from Python or from C, comes between messages. A child whose parent ends reads the end of its pipe, and ends
too.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal

from memfit.closing import Closing
from memfit.errors import WorkerDiedError
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.death import cause_of_death, last_words

__all__ = ["Helper", "ask_helper", "python_module"]

# Where what the child prints goes: to a file whose end is quoted if it dies, to our stderr, or only what it
# prints on stderr.
_Log = Literal["kept", "shown", "stderr shown"]
_CLOSE_SECONDS = 5.0
_LOG_BYTES = 4000  # how much of a log is quoted from
# What -P does, for a Python that does not know it.
_WITHOUT_CURRENT_FOLDER = (
    "import sys; sys.path.remove(''); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_FIRST_FREE = 3  # descriptors below are stdin, stdout and stderr, even where they are closed


class Helper(Closing):
    """One `python -m module`. A context manager; only `kill` and `send` are for several threads."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        name: str,
        log: _Log = "kept",
        environment: Mapping[str, str] | None = None,
        causes: Mapping[int, str] | None = None,
        own_session: bool = False,
    ) -> None:
        """`name` is what errors call it; `environment` replaces ours; `causes` says what exit codes mean
        (death.py's `more`). With `own_session` a terminal's Ctrl-C does not reach it."""
        self._name, self._causes = name, causes
        self._log = tempfile.TemporaryFile() if log == "kept" else None  # noqa: SIM115 - closed in close()
        err: IO[bytes] | int | None = self._log or _our_stderr()
        their_requests, self._requests = _pipe()
        self._events, their_events = _pipe()
        try:
            self._process = subprocess.Popen(
                [*python_module(module), *arguments, f"{their_requests.fileno()},{their_events.fileno()}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if log == "stderr shown" else err,
                stderr=err,
                env=environment,
                pass_fds=(their_requests.fileno(), their_events.fileno()),
                start_new_session=own_session,
            )
        except BaseException:
            _close(self._requests, self._events, self._log)
            raise
        finally:
            _close(their_requests, their_events)
        self._unread = b""
        self._sending = threading.RLock()
        self._unsent: list[bytes] = []
        # At the interpreter's end, before modules are taken apart, for those that nobody closed.
        self._finish = weakref.finalize(self, _finish, self._process, self._requests, self._events, self._log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message, whole. Safe from other threads and from a signal's handler.

        Raises:
            WorkerDiedError: nobody is there.
        """
        with self._sending:
            # Asked before ours is there: a handler that comes right after that leaves its own to us.
            is_amid_sending = bool(self._unsent)
            self._unsent.append(json.dumps(message).encode() + b"\n")
            if is_amid_sending:  # we are such a handler; the sending that it interrupted goes on with ours
                return
            try:
                while self._unsent:
                    left = memoryview(self._unsent[0])
                    while left:
                        left = left[self._requests.write(left) or 0 :]
                    self._unsent.pop(0)
            except (BrokenPipeError, ValueError):
                raise self.obituary() from None
            except BaseException:
                self.kill()  # half a message would spoil all that follow
                raise
            finally:
                self._unsent.clear()

    def has_message(self, wait_seconds: float | None = 0.0) -> bool:
        """Whether it has sent something, or has ended, within that time."""
        if b"\n" in self._unread or self._events.closed:
            return True
        poll = select.poll()  # `select` knows no descriptor above 1,023
        poll.register(self._events, select.POLLIN)
        return bool(poll.poll(None if wait_seconds is None else max(0, wait_seconds) * 1000))

    def receive(self, wait_seconds: float | None = None) -> dict[str, Any] | None:
        """Its next message; None once it has ended.

        Raises:
            TimeoutError: none came in time.
        """
        ends = None if wait_seconds is None else time.monotonic() + wait_seconds
        pieces = [self._unread]  # of a line: joined once, as it may have very many
        while b"\n" not in pieces[-1]:
            if ends is not None and not self.has_message(ends - time.monotonic()):
                self._unread = b"".join(pieces)
                raise TimeoutError
            data = b"" if self._events.closed else self._events.read(65536)
            if not data:
                return None
            pieces.append(data)
        end, self._unread = pieces[-1].split(b"\n", 1)
        return dict(json.loads(b"".join([*pieces[:-1], end])))

    def kill(self) -> None:
        """End it at once, from any thread; whoever waits for a message hears that it has ended."""
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait()

    def cause_of_death(self) -> str:
        """The end of a sentence. It is ended if it has not."""
        try:
            code = self._process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return cause_of_death(code, self._causes)

    def last_words(self) -> str:
        """What it printed last; nothing where its log is shown."""
        if self._log is None or self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        return last_words(self._log.read())

    def obituary(self, when: str = "before it answered") -> WorkerDiedError:
        """The one way to say that it died."""
        cause, words = self.cause_of_death(), self.last_words()
        return WorkerDiedError(
            f"{self._name} ended {when}: it {cause}{'; its last words: ' if words else ''}{words}"
        )

    def close(self, signal_number: int | None = None) -> None:
        """End it, by a signal or by closing its requests, and wait. Safe to repeat."""
        self._requests.close()
        if signal_number is not None:
            self._process.send_signal(signal_number)
        try:
            self._process.wait(timeout=_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._finish()

    @property
    def is_closed(self) -> bool:
        return not self._finish.alive


def ask_helper(
    module: str,
    *arguments: str,
    name: str,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
    environment: Mapping[str, str] | None = None,
    wait_seconds: float | None = None,
) -> dict[str, Any]:
    """What a helper that is asked once (`child.answer`) answers; its other events go to `on_event`.

    Raises:
        WorkerDiedError: it ended before that.
        TimeoutError: it took longer than `wait_seconds` between two messages.
        MemfitError: as it was raised there.
    """
    with Helper(module, *arguments, name=name, environment=environment) as helper:
        while (event := helper.receive(wait_seconds)) is not None:
            kind = event.pop("event")
            if kind == "done":
                return event
            if kind == "error":
                raise rebuild_error(event)
            if on_event:
                on_event(kind, event)
        raise helper.obituary()


def python_module(module: str, version: tuple[int, ...] = sys.version_info[:2]) -> list[str]:
    """The command for `python -m module` that looks for no module in the current folder, where a file of the
    user's, or of somebody whose folder it is, may be called queue.py."""
    if version >= (3, 11):
        return [sys.executable, "-P", "-m", module]
    return [sys.executable, "-c", _WITHOUT_CURRENT_FOLDER, module]


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    """A pipe's two ends, above the standard descriptors, which a child gets others for."""
    ends = []
    for number, mode in zip(os.pipe(), ("rb", "wb"), strict=True):
        above = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        os.close(number)
        ends.append(io.FileIO(above, mode))
    return ends[0], ends[1]


def _our_stderr() -> int | None:
    """For a child; None, the same, unless it is closed."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


def _finish(process: subprocess.Popen[bytes], *files: IO[bytes] | io.FileIO | None) -> None:
    process.kill()
    process.wait()
    _close(*files)


def _close(*files: IO[bytes] | io.FileIO | None) -> None:
    for file in files:
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
