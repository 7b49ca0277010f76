"""One loaded model as the server's event loop sees it: requests go in, their events come out.

A thread of its own loads the session, listens to its stream and loads it anew where its worker has died.
Knows no HTTP and no API.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal

from memfit.engines.requests import Idle, Request, RequestResult, Status, StreamTotals
from memfit.engines.session import RequestStream, Session, StreamEvent
from memfit.errors import EngineError, MemfitError, WorkerDiedError

__all__ = ["Call", "ModelHost"]

_PAUSES_SECONDS = (0.0, 0.5, 2.0, 10.0)  # before a worker is started again, by deaths without an answer
State = Literal["loading", "ready", "failed", "closed"]


class Call:
    """Requests of one call that run side by side; iterating gives their events with their places."""

    def __init__(self, host: ModelHost, numbers: Sequence[int]) -> None:
        self._host = host
        self._places = {number: place for place, number in enumerate(numbers)}
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self._open = set(numbers)

    def take(self, event: StreamEvent) -> None:
        """On the event loop."""
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """Until every request has its result."""
        while self._open:
            event = await self._events.get()
            assert not isinstance(event, Idle), "nobody is told of idleness"
            if isinstance(event, RequestResult):
                self._open.discard(event.number)
            yield self._places[event.number], event

    def close(self) -> None:
        """Forget what has not ended. Safe to repeat."""
        self._host.drop(self._open)
        self._open = set()


class ModelHost:
    """Made and used on the event loop, but for its thread."""

    def __init__(
        self,
        load: Callable[[], Session],
        say: Callable[[str], None],
        fail: Callable[[MemfitError], None] = lambda error: None,
    ) -> None:
        """`load` gives a session, again after a death; `say` is told what happens to it, and `fail` on the
        event loop why there is none any more."""
        self._load, self._say, self._fail = load, say, fail
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}  # by request
        self._waiting: list[tuple[Request, bool]] = []  # until there is a stream
        self._arrived: deque[StreamEvent] = deque()
        self._lock = threading.Lock()  # of what follows
        self._stream: RequestStream | None = None
        self._closing = False
        self.state: State = "loading"
        self.failure: MemfitError | None = None  # why the last worker ended
        self.restarts = 0
        self._earlier = StreamTotals()
        self.session: Session | None = None
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # -- on the event loop ---------------------------------------------------------------------------

    def ask(self, requests: Sequence[Request], *, sends_text: bool) -> Call:
        """Let requests wait for their turn.

        Raises:
            MemfitError: the plan has no memory for one, or there is no model and none will come.
        """
        if self.state in ("failed", "closed"):
            raise self.failure or EngineError("the server is ending")
        numbered = [replace(one, number=next(self._numbers)) for one in requests]
        call = Call(self, [one.number for one in numbered])
        for one in numbered:
            self._calls[one.number] = call
        try:
            for one in numbered:
                self._add(one, sends_text)
        except BaseException:
            call.close()
            raise
        return call

    def drop(self, numbers: set[int]) -> None:
        for number in numbers:
            self._calls.pop(number, None)
        with self._lock:
            self._waiting = [one for one in self._waiting if one[0].number not in numbers]
            if self._stream:
                for number in numbers:
                    with contextlib.suppress(MemfitError):  # its death drops them all
                        self._stream.drop(number)

    def status(self) -> Status:
        session = self.session
        return session.status() if session and self.state == "ready" else Status()

    def totals(self) -> StreamTotals:
        """Of the streams so far."""
        return self._earlier + (self._stream.totals if self._stream else StreamTotals())

    async def settle(self) -> State:
        """Once the model is loaded, or cannot be."""
        while self.state == "loading":
            await self._changed.wait()
        return self.state

    async def close(self) -> None:
        with self._lock:
            self._closing = True
            session = self.session
        if session:
            await asyncio.to_thread(session.close)
        await asyncio.to_thread(self._thread.join)

    def _add(self, request: Request, sends_text: bool) -> None:
        with self._lock:
            if self._stream is None:
                self._waiting.append((request, sends_text))
                return
            try:
                self._stream.add(request, sends_text=sends_text)
            except WorkerDiedError:  # the next one answers it
                self._waiting.append((request, sends_text))

    def _deliver(self) -> None:
        while self._arrived:
            event = self._arrived.popleft()
            assert not isinstance(event, Idle)
            if isinstance(event, RequestResult):
                call = self._calls.pop(event.number, None)
            else:
                call = self._calls.get(event.number)
            if call:
                call.take(event)

    def _fail_all(self, error: MemfitError) -> None:
        """Of requests that were with a worker that is gone."""
        waiting = {one.number for one, _ in self._waiting}
        for number in [one for one in self._calls if one not in waiting]:
            self._calls.pop(number).take(RequestResult(number=number, error=error))

    def _become(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
        if state == "failed" and self.failure:
            self._fail(self.failure)
        if state in ("failed", "closed"):
            self._waiting.clear()
            self._fail_all(self.failure or EngineError("the server is ending"))

    # -- on the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        deaths = 0
        while not self._closing:
            try:
                with closing(self._load()) as session:
                    deaths = self._serve(session, deaths)
            except MemfitError as error:
                self.failure = error
                if not isinstance(error, WorkerDiedError):  # it would fail again
                    deaths = len(_PAUSES_SECONDS)
                deaths += 1
            if self._closing:
                break
            if deaths >= len(_PAUSES_SECONDS):
                self._on_loop(self._become, "failed")
                return
            time.sleep(_PAUSES_SECONDS[deaths])
        self._on_loop(self._become, "closed")

    def _serve(self, session: Session, deaths: int) -> int:
        """Answer until the worker dies; returns deaths in a row without an answer."""
        with self._lock:
            self.session = session
            if self._closing:
                return 0
        self._on_loop(self._become, "ready")
        while True:
            stream = session.open()
            with self._lock:
                self._stream = stream
                for request, sends_text in self._waiting:
                    with contextlib.suppress(WorkerDiedError):
                        stream.add(request, sends_text=sends_text)
                self._waiting.clear()
            try:
                for event in stream.events():
                    if isinstance(event, Idle):
                        continue
                    deaths = 0
                    self._arrived.append(event)
                    if len(self._arrived) == 1:
                        self._on_loop(self._deliver)
                return 0
            except WorkerDiedError as error:
                self._end(error)
                return deaths + 1
            except MemfitError as error:  # the loop's, not the worker's: it goes on
                self._end(error)
                deaths += 1
                if deaths > 1:
                    return deaths

    def _end(self, error: MemfitError) -> None:
        """What ran has failed; what comes waits for the next stream."""
        with self._lock:
            if self._stream:
                self._earlier += self._stream.totals
            self._stream = None
        if self._closing:
            return
        self.failure = error
        self.restarts += 1
        self._say(f"{error}; starting again")
        self._on_loop(self._deliver)
        self._on_loop(self._fail_all, error)
        self._on_loop(self._become, "loading")

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)
