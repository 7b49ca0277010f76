"""Works through an input: feeds a session, keeps its answers, and goes on where a worker ends.

When a worker dies, the requests that it had are tried once more together. If the next worker dies, too,
they are halved until the request that kills it stands alone; it fails, and the others are answered.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field

from memfit.batch.input import Input
from memfit.batch.lines import Line, LineError, answer_line, failure_line
from memfit.batch.sink import Sink
from memfit.engines.report import Report
from memfit.engines.requests import RequestResult, StreamTotals
from memfit.engines.session import Session
from memfit.errors import InterruptedByUser, MemfitError, WorkerDiedError

__all__ = ["Executor", "Progress"]

_FLUSH_SECONDS = 1.0
_DEATHS_ALONE = 2  # of a worker with one request: the first may have been somebody else's doing
_DEATHS_IN_A_ROW = 4  # requests that fail so without one that is answered: the fault is not theirs


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is."""

    answered: int  # requests, by earlier runs too
    failed: int
    totals: StreamTotals  # of this run


@dataclass
class _Suspects:
    """Requests that a worker died with, in groups that are tried one after the other."""

    groups: deque[list[Line]] = field(default_factory=deque)
    deaths_alone: int = 0
    deaths_in_a_row: int = 0


@dataclass
class Executor:
    """One run over one input."""

    source: Input
    sink: Sink
    open_session: Callable[[], Session]
    _: KW_ONLY
    model: str  # as answers call it
    ahead: int  # requests that are with the worker at a time, at most
    expected_tokens: float
    on_progress: Callable[[Progress], None]
    say: Callable[[str], None]
    _open: dict[int, Line] = field(default_factory=dict, init=False)  # with the worker, by number
    _totals: StreamTotals = field(default_factory=StreamTotals, init=False)
    _flushed_at: float = field(default=0.0, init=False)
    _suspects: _Suspects = field(default_factory=_Suspects, init=False)

    def run(self) -> tuple[Report, StreamTotals]:
        """Answer every line that is not done; returns the last session's report, and the totals of all.

        Raises:
            InterruptedByUser: Ctrl-C; what is finished is kept.
            MemfitError: the session cannot be opened, or the answers cannot be kept.
        """
        lines = self.source.items(self.sink.done)
        while True:
            with closing(self.open_session()) as session:
                try:
                    while self._suspects.groups:
                        self._answer(session, self._suspects.groups[0])
                        self._suspects.groups.popleft()
                        self._suspects.deaths_alone = 0
                    self._answer(session, lines)
                    return session.report(), self._totals
                except WorkerDiedError as death:
                    self.sink.flush()
                    self._suspect(death)

    def _answer(self, session: Session, lines: Iterable[Line | LineError]) -> None:
        """All of `lines`, as many at a time as the session is given."""
        before = self._totals
        stream = session.open(expected_tokens=self.expected_tokens)
        waiting = iter(lines)
        ended = False

        def feed() -> None:
            nonlocal ended
            while not ended and len(self._open) < self.ahead:
                line = next(waiting, None)
                if line is None:
                    ended = True
                    stream.end()
                elif isinstance(line, LineError):
                    self._fail(line.number, line.custom_id, line)
                else:
                    self._open[line.number] = line
                    stream.add(line.request)

        with closing(stream.events()) as events:  # an answer that cannot be kept ends the others, too
            feed()
            for event in events:
                self._totals = before + stream.totals
                if isinstance(event, RequestResult):
                    self._take(event)
                    feed()
                now = time.monotonic()
                if now - self._flushed_at >= _FLUSH_SECONDS:
                    self._flushed_at = now
                    self.sink.flush()
                    self._show()
        self._totals = before + stream.totals
        self.sink.flush()
        self._show()
        if stream.was_cancelled:
            raise InterruptedByUser

    def _take(self, answer: RequestResult) -> None:
        line = self._open.pop(answer.number)
        if answer.completion is None:
            assert answer.error is not None
            self._fail(line.number, line.custom_id, answer.error)
        elif answer.completion.finish_reason == "cancelled":
            return  # of Ctrl-C: another run answers it
        else:
            self.sink.add(line.number, output=answer_line(line, answer.completion, model=self.model))
            self._suspects.deaths_in_a_row = 0

    def _fail(self, number: int, custom_id: str | None, error: MemfitError) -> None:
        self.sink.add(number, error=failure_line(number, custom_id, error))

    def _show(self) -> None:
        now = Progress(answered=self.sink.answered, failed=self.sink.failed, totals=self._totals)
        self.on_progress(now)

    def _suspect(self, death: WorkerDiedError) -> None:
        """Decide what is tried next, and with what."""
        suspects = self._suspects
        self.say(f"{death}; starting another one")
        if not suspects.groups:
            if self._open:
                suspects.groups.append(list(self._open.values()))
            self._open.clear()
            return
        self._open.clear()
        left = [line for line in suspects.groups.popleft() if line.number not in self.sink.done]
        if len(left) > 1:
            half = len(left) // 2
            suspects.groups.extendleft((left[half:], left[:half]))
        elif left:
            suspects.deaths_alone += 1
            if suspects.deaths_alone < _DEATHS_ALONE:
                suspects.groups.appendleft(left)
                return
            suspects.deaths_alone = 0
            self._fail(left[0].number, left[0].custom_id, death)
            suspects.deaths_in_a_row += 1
            if suspects.deaths_in_a_row >= _DEATHS_IN_A_ROW:
                raise death
