"""Who waits, who is sent away, and for how long."""

from __future__ import annotations

import pytest

from memfit.server import admission as admission_module
from memfit.server.admission import Admission
from memfit.server.failures import BusyError, status_of


class _Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(admission_module, "time", clock)
    return clock


def test_as_many_as_run_and_wait_are_let_in() -> None:
    admission = Admission(running=2, queue=1)
    places = [admission.enter(1) for _ in range(3)]
    assert admission.taken == 3 and admission.waiting == 1
    with pytest.raises(BusyError, match="1 answers are waiting; try again in 1 s") as raised:
        admission.enter(1)
    assert status_of(raised.value) == 429 and raised.value.retry_seconds == 1 and admission.refused == 1
    places[0].close()
    assert admission.waiting == 0
    admission.enter(1).close()


def test_a_place_is_given_back_once() -> None:
    admission = Admission(running=4, queue=0)
    with admission.enter(3) as place:
        assert admission.taken == 3
        with pytest.raises(BusyError):
            admission.enter(2)
        place.close()
    place.close()
    assert admission.taken == 0


def test_a_call_of_many_choices_keeps_no_other_out() -> None:
    admission = Admission(running=2, queue=1)
    with admission.enter(128):
        assert (admission.taken, admission.waiting) == (2, 0)
        with admission.enter(1), pytest.raises(BusyError):
            admission.enter(1)
    assert admission.taken == 0


def test_no_queue_at_all() -> None:
    admission = Admission(running=1, queue=0)
    with admission.enter(1), pytest.raises(BusyError):
        admission.enter(1)


def _after_calls_of(seconds: float, clock: _Clock, *, queue: int) -> Admission:
    admission = Admission(running=1, queue=queue)
    for _ in range(100):
        place = admission.enter(1)
        clock.now += seconds
        place.close()
    return admission


def test_who_is_sent_away_is_told_how_long_calls_take_here(clock: _Clock) -> None:
    admission = _after_calls_of(30.0, clock, queue=1)
    admission.enter(1)
    admission.enter(1)
    with pytest.raises(BusyError) as raised:
        admission.enter(1)
    assert 29 <= raised.value.retry_seconds <= 30


def test_nobody_is_told_to_wait_longer_than_ten_minutes(clock: _Clock) -> None:
    admission = _after_calls_of(3000.0, clock, queue=0)
    with admission.enter(1), pytest.raises(BusyError) as raised:
        admission.enter(1)
    assert raised.value.retry_seconds == 600


def test_quick_calls_are_worth_a_second_and_no_less(clock: _Clock) -> None:
    admission = Admission(running=8, queue=0)
    for _ in range(100):
        admission.enter(8).close()
    admission.enter(8)
    with pytest.raises(BusyError) as raised:
        admission.enter(1)
    assert raised.value.retry_seconds == 1
