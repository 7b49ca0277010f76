"""One loaded model as the server's event loop sees it: requests go in, their events come out.

A thread of its own loads the session, listens to its stream and loads it anew where its worker has died.
Knows no HTTP and no API.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal

from memfit.engines.requests import Idle, Request, RequestResult, Status, StreamTotals
from memfit.engines.session import RequestStream, Session, StreamEvent
from memfit.errors import DoesNotFitError, EngineError, MemfitError, WorkerDiedError
from memfit.processes.carried_errors import carry_error, rebuild_error

__all__ = ["Call", "Load", "ModelHost"]

_PAUSES_SECONDS = (0.0, 0.5, 2.0, 10.0)  # before a worker is started again, by deaths without an answer
State = Literal["loading", "ready", "failed", "closed"]
_ENDS = ("failed", "closed")
# Loads a session. It tells how far it is to a function, which raises where the session is wanted no more.
Load = Callable[[Callable[[float], None]], Session]


class Call:
    """Requests of one call that run side by side; iterating gives their events with their places."""

    def __init__(self, host: ModelHost, numbers: Sequence[int]) -> None:
        self._host = host
        self.later: deque[tuple[int, Request, bool]] = deque()  # asked as earlier ones end
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
        self.later.clear()
        self._host.drop(self._open)
        self._open = set()


class ModelHost:
    """Made and used on the event loop, but for its thread."""

    def __init__(
        self,
        load: Load,
        say: Callable[[str], None],
        fail: Callable[[MemfitError], None] = lambda error: None,
        *,
        at_once: int | None = None,
    ) -> None:
        """`load` gives a session, again after a death; `say` is told what happens to it, and `fail` on the
        event loop why there is none any more. No call has more than `at_once` requests with the model, so
        that others get their turn; None: any number."""
        self._load, self._say, self._fail = load, say, fail
        self.at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}  # by request
        self._arrived: deque[StreamEvent] = deque()
        self._deaths = 0  # in a row, without an answer
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._next: tuple[Load, asyncio.Future[None]] | None = None  # what is to be loaded instead
        self._waiting: list[tuple[Request, bool]] = []  # until there is a stream
        self._given: set[int] = set()  # requests that the stream has
        self._stream: RequestStream | None = None
        self.state: State = "loading"
        self.failure: MemfitError | None = None  # why the last worker ended
        self.restarts = 0
        self._earlier = StreamTotals()
        self.session: Session | None = None  # the newest
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # -- on the event loop ---------------------------------------------------------------------------

    def ask(self, requests: Sequence[Request], *, sends_text: bool) -> Call:
        """Let requests wait for their turn.

        Raises:
            MemfitError: the plan has no memory for one of the first, or there is no model and none will come.
        """
        if self.state in _ENDS:
            raise self._why()
        numbers = [next(self._numbers) for _ in requests]
        call = Call(self, numbers)
        self._calls.update(dict.fromkeys(numbers, call))
        call.later.extend((number, one, sends_text) for number, one in zip(numbers, requests, strict=True))
        try:
            with self._lock:
                for _ in range(len(requests) if self.at_once is None else self.at_once):
                    if call.later:
                        self._add(*call.later.popleft())
        except BaseException:
            call.close()
            raise
        return call

    def drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._calls.pop(number, None)
        with self._lock:
            self._waiting = [one for one in self._waiting if one[0].number not in numbers]
            for number in self._given.intersection(numbers):
                self._given.discard(number)
                with contextlib.suppress(MemfitError):  # its death drops them all
                    if self._stream:
                        self._stream.drop(number)

    def status(self) -> Status:
        session = self.session
        if not session or self.state != "ready":
            return Status()
        status = session.status()
        return replace(status, generated_tokens=self._earlier.generated_tokens + status.generated_tokens)

    def totals(self) -> StreamTotals:
        """Of the streams so far."""
        stream = self._stream
        return self._earlier + (stream.totals if stream else StreamTotals())

    async def settle(self) -> State:
        """Once the model is loaded, or cannot be."""
        while self.state == "loading":
            await self._changed.wait()
        return self.state

    async def reload(self, load: Load) -> None:
        """Have a session of another `load`. What runs ends with an error, what waits is answered by the new
        one; where that cannot be had, the earlier `load` gives one again.

        Raises:
            MemfitError: it cannot be had, or there is no model and none will come.
        """
        if self.state in _ENDS:
            raise self._why()
        loaded: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            if self._next:
                raise EngineError("another plan is being applied")
            self._next = load, loaded
            with contextlib.suppress(MemfitError):
                if self._stream:
                    self._stream.end()  # one that has something to do ends with its next event
        await loaded

    def give_up(self) -> None:
        """What has not been answered ends with an error, and nothing more is."""
        self._settle_at("closed")

    async def close(self) -> None:
        """End the model, even while it is loaded, and the thread."""
        self._closing.set()
        with self._lock, contextlib.suppress(MemfitError):
            if self._stream:
                self._stream.end()  # one that has nothing to do ends at once
        await asyncio.to_thread(self._thread.join)
        self._settle_at("closed")

    def _deliver(self) -> None:
        while self._arrived:
            event = self._arrived.popleft()
            assert not isinstance(event, Idle)
            if isinstance(event, RequestResult):
                call = self._calls.pop(event.number, None)
                with self._lock:
                    self._given.discard(event.number)
            else:
                call = self._calls.get(event.number)
            if call:
                call.take(event)
                if isinstance(event, RequestResult):
                    self._ask_next(call)

    def _ask_next(self, call: Call) -> None:
        """One of its requests has ended."""
        while call.later and self.state not in _ENDS:
            number, request, sends_text = call.later.popleft()
            try:
                with self._lock:
                    self._add(number, request, sends_text)
                return
            except MemfitError as error:
                self._calls.pop(number, None)
                call.take(RequestResult(number=number, error=_fresh(error)))

    def _lose(self, numbers: Collection[int], error: MemfitError) -> None:
        """Requests end that were with a worker that is gone."""
        for number in numbers:
            if call := self._calls.pop(number, None):
                call.take(RequestResult(number=number, error=_fresh(error)))
                self._ask_next(call)

    def _settle_at(self, state: State) -> None:
        if self.state in _ENDS:
            return
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
        if state in _ENDS:
            with self._lock:
                self._waiting.clear()
                self._given.clear()
            self._lose(list(self._calls), self._why())
        if state == "failed":
            self._fail(self._why())

    def _why(self) -> MemfitError:
        """Why there is no model."""
        ending = EngineError("the server is ending")
        return _fresh(self.failure or ending) if self.state == "failed" else ending

    # -- on either, with the lock --------------------------------------------------------------------

    def _add(self, number: int, request: Request, sends_text: bool) -> None:
        request = replace(request, number=number)
        if self._stream:
            try:
                self._stream.add(request, sends_text=sends_text)
            except WorkerDiedError:  # the next one answers it
                pass
            else:
                self._given.add(request.number)
                return
        self._waiting.append((request, sends_text))

    # -- on the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep_serving()
        except Exception as error:  # the edge: whoever waits has to hear of it
            traceback.print_exc()
            self.failure = EngineError(f"a fault in memfit itself: {type(error).__name__}")
            self._on_loop(self._settle_at, "failed")

    def _keep_serving(self) -> None:
        """Load and serve, again after each death, until the end or until it dies again and again."""
        while not self._closing.is_set():
            with self._lock:
                asked, self._next = self._next, None
            try:
                with closing((asked[0] if asked else self._load)(self._go_on)) as session:
                    if asked:
                        self._load, loaded = asked
                        asked = None
                        self._on_loop(_settle, loaded, None)
                    self._serve(session)
            except MemfitError as error:
                if asked:
                    self._on_loop(_settle, asked[1], error)
                    continue
                self.failure = error
                # What else has failed at first would fail again; later, memory may come back.
                again = isinstance(error, WorkerDiedError) or self.session is not None
                self._deaths = self._deaths + 1 if again else len(_PAUSES_SECONDS)
            if self._closing.is_set():
                break
            if self._deaths >= len(_PAUSES_SECONDS):
                self._on_loop(self._settle_at, "failed")
                return
            self._closing.wait(_PAUSES_SECONDS[self._deaths])
        self._on_loop(self._settle_at, "closed")

    def _go_on(self, _fraction: float) -> None:
        """Called while the model is loaded.

        Raises:
            EngineError: nobody wants it any more.
        """
        if self._closing.is_set():
            raise EngineError("the server is ending")

    @property
    def _is_leaving(self) -> bool:
        """Whether the session is wanted no more."""
        return self._closing.is_set() or self._next is not None

    def _serve(self, session: Session) -> None:
        """Answer until the worker dies, or until the end."""
        with self._lock:
            self.session = session
        while not self._is_leaving:
            try:
                self._begin(session.open())
                self._on_loop(self._settle_at, "ready")
                self._listen()
                if self._next:
                    self._end(WorkerDiedError("the model is being loaded by another plan"))
            except MemfitError as error:
                self._deaths += 1
                self._end(error)
                # Another error is the stream's own, and the worker goes on with the next stream.
                if isinstance(error, WorkerDiedError | DoesNotFitError) or self._deaths > 1:
                    return

    def _begin(self, stream: RequestStream) -> None:
        with self._lock:
            self._stream = stream
            waiting, self._waiting = self._waiting, []
            for request, sends_text in waiting:
                try:
                    self._add(request.number, request, sends_text)
                except MemfitError as error:  # the plan has no memory for it
                    self._on_loop(self._lose, (request.number,), error)

    def _listen(self) -> None:
        """Until the end, or until it is broken."""
        assert self._stream
        with closing(self._stream.events()) as events:
            for event in events:
                if self._is_leaving:
                    return
                if isinstance(event, Idle):
                    continue
                self._deaths = 0
                self._arrived.append(event)
                if len(self._arrived) == 1:
                    self._on_loop(self._deliver)

    def _end(self, error: MemfitError) -> None:
        """What ran has failed; what comes waits for the next stream."""
        with self._lock:
            if self._stream:
                self._earlier += self._stream.totals
            self._stream = None
            lost, self._given = self._given, set()
        if self._closing.is_set():
            return
        if not self._next:
            self.failure = error
            self.restarts += 1
            self._say(f"{error}; starting again")
        self._on_loop(self._deliver)
        self._on_loop(self._settle_at, "loading")
        self._on_loop(self._lose, lost, error)

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)


def _settle(loaded: asyncio.Future[None], error: MemfitError | None) -> None:
    """On the event loop: tell who asked for another session."""
    if loaded.done():
        return  # nobody waits any more
    if error:
        loaded.set_exception(_fresh(error))
    else:
        loaded.set_result(None)


def _fresh(error: MemfitError) -> MemfitError:
    """The same error for another place to raise it: a raised one holds on to what it came through."""
    return rebuild_error(carry_error(error))
