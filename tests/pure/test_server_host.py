"""One model behind an event loop: events find their calls, deaths end what ran, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from scripted_session import ScriptedSession, ScriptedStream

from memfit.engines.requests import Request, RequestResult, StreamTotals
from memfit.errors import DoesNotFitError, EngineError, MemfitError, ModelError, UsageError, WorkerDiedError
from memfit.server import host as host_module
from memfit.server.host import Call, ModelHost

_SECONDS = 20.0  # within which everything here has happened, also on a busy machine
_ASKED = Request(prompt="a")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_PAUSES_SECONDS", (0.0, 0.0, 0.0, 0.0))


class _World:
    """Loads the sessions of a list, one after the other; errors among them are raised."""

    def __init__(self, *loads: ScriptedSession | Exception) -> None:
        self.loads = list(loads)
        self.loaded: list[ScriptedSession] = []
        self.said: list[str] = []
        self.failures: list[MemfitError] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.is_loading = threading.Event()

    def load(self, go_on: Callable[[float], None]) -> ScriptedSession:
        self.is_loading.set()
        while not self.may_load.wait(0.01):
            go_on(0.5)
        found = self.loads.pop(0)
        if isinstance(found, Exception):
            raise found
        self.loaded.append(found)
        return found

    def host(self, *, at_once: int | None = None) -> ModelHost:
        return ModelHost(self.load, self.said.append, self.failures.append, at_once=at_once)


def _run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On a loop of its own, which must be left without tasks, and the process without threads."""
    before = set(threading.enumerate())

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), _SECONDS)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others

    asyncio.run(bounded())
    assert not [one for one in threading.enumerate() if one not in before and one.name == "model"]


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def _results(call: Call) -> list[tuple[int, RequestResult]]:
    return [(place, event) async for place, event in call.events() if isinstance(event, RequestResult)]


def _texts(found: list[tuple[int, RequestResult]]) -> list[tuple[int, str]]:
    return [
        (place, event.completion.text if event.completion else str(event.error)) for place, event in found
    ]


def test_events_reach_the_call_that_asked_with_their_places() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host()
        assert await host.settle() == "ready"
        one = host.ask([_ASKED, _ASKED], sends_text=True)
        other = host.ask([_ASKED], sends_text=False)
        stream = session.stream_now
        first, second, third = (request.number for request in stream.added)
        assert len({first, second, third}) == 3
        stream.write(second, "b")
        stream.finish(third, "other")
        stream.finish(second, "second")
        stream.finish(first, "first")
        found = [(place, type(event).__name__) async for place, event in one.events()]
        assert found == [(1, "TextDelta"), (1, "RequestResult"), (0, "RequestResult")]
        assert _texts(await _results(other)) == [(0, "other")]
        one.close()
        assert not stream.dropped, "what has ended is not dropped"
        await host.close()
        assert session.is_closed and stream.is_closed and host.state == "closed"

    _run(scenario)


def test_a_call_of_many_requests_leaves_others_their_turn() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host(at_once=2)
        await host.settle()
        stream = session.stream_now
        many, other = host.ask([_ASKED] * 4, sends_text=False), host.ask([_ASKED], sends_text=False)
        first, second, others = (one.number for one in stream.added)
        stream.finish(second, "b")
        await _until(lambda: len(stream.added) == 4)  # the third is behind the other call's
        stream.refuses = UsageError("no memory for it")  # the fourth has no room, and fails alone
        stream.finish(stream.added[3].number, "c")
        stream.finish(others, "other")
        stream.finish(first, "a")
        assert _texts(await _results(many)) == [(1, "b"), (2, "c"), (3, "no memory for it"), (0, "a")]
        assert _texts(await _results(other)) == [(0, "other")]
        stream.refuses = None
        leaving = host.ask([_ASKED] * 4, sends_text=False)
        leaving.close()
        assert len(stream.dropped) == 2 and len(stream.added) == 6, "the others were never asked"
        await host.close()

    _run(scenario)


def test_what_a_dead_worker_has_not_got_is_answered_by_the_next_one() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        host = _World(first, second).host(at_once=1)
        await host.settle()
        call = host.ask([_ASKED] * 3, sends_text=False)
        first.stream_now.die()
        found = await _results(call)
        assert isinstance(found[0][1].error, WorkerDiedError)
        assert _texts(found[1:]) == [(1, "done"), (2, "done")]
        await host.close()

    _run(scenario)


def test_another_session_answers_what_waits_and_what_runs_fails() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        host = _World(first).host(at_once=1)
        await host.settle()
        call = host.ask([_ASKED] * 2, sends_text=False)
        await host.reload(lambda _: second)
        found = await _results(call)
        assert "another plan" in str(found[0][1].error) and _texts(found[1:]) == [(1, "done")]
        assert first.is_closed and host.session is second and host.restarts == 0
        await host.close()

    _run(scenario)


def test_where_another_session_cannot_be_had_the_earlier_one_is_loaded_again() -> None:
    async def scenario() -> None:
        first, again = ScriptedSession(), ScriptedSession(_at_once)
        world = _World(first, again)
        host = world.host()
        await host.settle()

        def load(_: Callable[[float], None]) -> ScriptedSession:
            raise DoesNotFitError(tier="RAM", needs_bytes=2, budget_bytes=1)

        with pytest.raises(DoesNotFitError):
            await host.reload(load)
        call = host.ask([_ASKED], sends_text=False)
        assert _texts(await _results(call)) == [(0, "done")]
        assert world.loaded == [first, again] and host.state == "ready" and not world.failures
        await host.close()
        with pytest.raises(EngineError):
            await host.reload(load)

    _run(scenario)


def test_giving_up_ends_what_runs_and_what_comes() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host(at_once=1)
        await host.settle()
        call = host.ask([_ASKED] * 2, sends_text=False)
        host.give_up()
        assert _texts(await _results(call)) == [(0, "the server is ending"), (1, "the server is ending")]
        with pytest.raises(EngineError, match="the server is ending"):
            host.ask([_ASKED], sends_text=False)
        await host.close()
        assert session.is_closed

    _run(scenario)


def test_a_call_that_leaves_drops_what_has_not_ended() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host()
        await host.settle()
        call = host.ask([_ASKED, _ASKED, _ASKED], sends_text=False)
        numbers = [one.number for one in session.stream_now.added]
        session.stream_now.finish(numbers[1])
        await anext(call.events())
        call.close()
        call.close()
        assert sorted(session.stream_now.dropped) == [numbers[0], numbers[2]]
        session.stream_now.finish(numbers[0], "too late")  # it was on its way, and nobody hears it
        again = host.ask([_ASKED], sends_text=False)
        session.stream_now.finish(session.stream_now.added[-1].number, "well")
        assert _texts(await _results(again)) == [(0, "well")]
        await host.close()

    _run(scenario)


def test_what_is_asked_while_loading_waits_and_may_leave() -> None:
    async def scenario() -> None:
        session = ScriptedSession(_at_once)
        world = _World(session)
        world.may_load.clear()
        host = world.host()
        staying, leaving = host.ask([_ASKED], sends_text=False), host.ask([_ASKED], sends_text=False)
        leaving.close()
        world.may_load.set()
        assert _texts(await _results(staying)) == [(0, "done")]
        assert len(session.stream_now.added) == 1
        await host.close()

    _run(scenario)


def test_a_request_that_the_plan_cannot_serve_fails_alone_though_it_waited() -> None:
    async def scenario() -> None:
        class Picky(ScriptedSession):
            def open(self, *, expected_tokens: float = 0) -> ScriptedStream:
                stream = super().open()
                stream.refuses = UsageError("no memory for it") if len(self.streams) == 1 else None
                return stream

        session = Picky(_at_once)
        world = _World(session)
        world.may_load.clear()
        host = world.host()
        call = host.ask([_ASKED], sends_text=False)
        world.may_load.set()
        assert _texts(await _results(call)) == [(0, "no memory for it")]
        assert await host.settle() == "ready"
        with pytest.raises(UsageError, match="no memory"):
            host.ask([_ASKED, _ASKED], sends_text=False)
        assert host.state == "ready" and not world.failures
        session.stream_now.refuses = None
        assert _texts(await _results(host.ask([_ASKED], sends_text=False))) == [(0, "done")]
        await host.close()

    _run(scenario)


def test_a_death_fails_what_runs_and_the_next_worker_answers_what_waits() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        world = _World(first, second)
        host = world.host()
        await host.settle()
        running = host.ask([_ASKED, _ASKED], sends_text=True)
        world.may_load.clear()
        first.stream_now.write(first.stream_now.added[0].number, "half an ")
        first.stream_now.die()
        found = await _results(running)
        assert [place for place, _ in found] == [0, 1]
        assert all(isinstance(event.error, WorkerDiedError) for _, event in found)
        assert found[0][1].error is not found[1][1].error, "each call raises an error of its own"
        await _until(lambda: host.state == "loading")
        waiting = host.ask([_ASKED], sends_text=False)
        world.may_load.set()
        assert _texts(await _results(waiting)) == [(0, "done")]
        assert await host.settle() == "ready" and host.restarts == 1 and first.is_closed
        assert len(world.said) == 1 and "killed" in world.said[0] and not world.failures
        await host.close()

    _run(scenario)


def test_a_request_that_finds_the_worker_dead_is_answered_by_the_next_one() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        host = _World(first, second).host()
        await host.settle()
        first.stream_now.is_dead = True  # nobody was told yet
        call = host.ask([_ASKED], sends_text=False)
        first.stream_now.die()
        assert _texts(await _results(call)) == [(0, "done")]
        await host.close()

    _run(scenario)


def test_what_the_next_stream_has_is_not_failed_for_the_last_ones_error() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host()
        await host.settle()
        running = host.ask([_ASKED], sends_text=False)
        session.stream_now.die(EngineError("the loop failed"))
        # The loop must not look while the thread goes on, so that a late word of the old stream comes last.
        while len(session.streams) < 2:
            threading.Event().wait(0.01)
        later = host.ask([_ASKED], sends_text=False)
        assert _texts(await _results(running)) == [(0, "the loop failed")]
        await _until(lambda: session.stream_now.added)
        session.stream_now.finish(session.stream_now.added[0].number, "well")
        assert _texts(await _results(later)) == [(0, "well")]
        assert not session.is_closed
        await host.close()

    _run(scenario)


def test_a_worker_ended_at_its_limit_is_started_again() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        host = _World(first, second).host()
        await host.settle()
        running = host.ask([_ASKED], sends_text=False)
        first.stream_now.die(DoesNotFitError(tier="RAM", needs_bytes=2, budget_bytes=1))
        ((_, failed),) = await _results(running)
        assert isinstance(failed.error, DoesNotFitError) and failed.error.budget_bytes == 1
        assert _texts(await _results(host.ask([_ASKED], sends_text=False))) == [(0, "done")]
        assert first.is_closed
        await host.close()

    _run(scenario)


def test_deaths_in_a_row_end_in_failed_and_an_answer_begins_the_row_anew() -> None:
    async def scenario() -> None:
        sessions = [ScriptedSession() for _ in range(7)]
        world = _World(*sessions, ScriptedSession())
        host = world.host()
        for number, session in enumerate(sessions):
            await _until(lambda session=session: session.streams)  # type: ignore[misc]
            call = host.ask([_ASKED], sends_text=False)
            await _until(lambda session=session: session.stream_now.added)  # type: ignore[misc]
            if number == 3:  # else the fourth death would be the last
                session.stream_now.finish(session.stream_now.added[0].number, "an answer")
                assert _texts(await _results(call)) == [(0, "an answer")]
            session.stream_now.die()
            await _until(lambda number=number: host.restarts > number)  # type: ignore[misc]
        await _until(lambda: host.state == "failed")
        assert len(world.failures) == 1 and isinstance(world.failures[0], WorkerDiedError)
        assert len(world.loads) == 1, "no worker is started any more"
        with pytest.raises(WorkerDiedError):
            host.ask([_ASKED], sends_text=False)
        await host.close()

    _run(scenario)


def test_workers_that_die_while_loading_end_in_failed_with_what_waits() -> None:
    async def scenario() -> None:
        world = _World(*(WorkerDiedError("died loading") for _ in range(4)))
        host = world.host()
        call = host.ask([_ASKED], sends_text=False)
        assert _texts(await _results(call)) == [(0, "died loading")]
        assert host.state == "failed" and not world.loads and len(world.failures) == 1
        await host.close()

    _run(scenario)


@pytest.mark.parametrize(
    "error", [ModelError("damaged"), DoesNotFitError(tier="RAM", needs_bytes=2, budget_bytes=1)]
)
def test_a_load_that_cannot_succeed_fails_at_once(error: MemfitError) -> None:
    async def scenario() -> None:
        world = _World(error, ScriptedSession())
        host = world.host()
        assert await host.settle() == "failed"
        assert len(world.loads) == 1, "it is not tried again"
        assert type(world.failures[0]) is type(error)
        await host.close()
        assert host.state == "failed"

    _run(scenario)


def test_a_model_that_was_loaded_before_is_loaded_again_though_memory_was_short() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession(_at_once)
        short = DoesNotFitError(tier="RAM", needs_bytes=2, budget_bytes=1)
        world = _World(first, short, short, second)
        host = world.host()
        await host.settle()
        first.stream_now.die()
        await _until(lambda: not world.loads)
        assert _texts(await _results(host.ask([_ASKED], sends_text=False))) == [(0, "done")]
        assert not world.failures
        await host.close()

    _run(scenario)


def test_a_fault_on_the_thread_is_heard_by_all_who_wait(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        world = _World(session)
        host = world.host()
        await host.settle()
        call = host.ask([_ASKED], sends_text=False)
        session.stream_now.die(KeyError("a fault"))
        ((_, failed),) = await _results(call)
        assert isinstance(failed.error, EngineError) and "KeyError" in str(failed.error)
        assert host.state == "failed" and len(world.failures) == 1 and session.is_closed
        await host.close()

    _run(scenario)
    assert "KeyError" in capsys.readouterr().err


def test_closing_ends_what_runs_and_waits() -> None:
    async def scenario() -> None:
        session = ScriptedSession()
        host = _World(session).host()
        await host.settle()
        call = host.ask([_ASKED], sends_text=False)
        await host.close()
        assert _texts(await _results(call)) == [(0, "the server is ending")]
        with pytest.raises(EngineError, match="ending"):
            host.ask([_ASKED], sends_text=False)

    _run(scenario)


@pytest.mark.parametrize("again", [False, True], ids=["the first time", "again"])
def test_closing_does_not_wait_for_the_model_to_be_loaded(again: bool) -> None:
    async def scenario() -> None:
        first = ScriptedSession()
        world = _World(first)
        if again:
            host = world.host()
            await host.settle()
            world.may_load.clear()
            world.is_loading.clear()
            first.stream_now.die()
        else:
            world.may_load.clear()
            host = world.host()
        await _until(world.is_loading.is_set)
        waiting = host.ask([_ASKED], sends_text=False)
        await host.close()  # though nothing lets it load
        assert _texts(await _results(waiting)) == [(0, "the server is ending")]
        assert not world.failures and host.state == "closed"

    _run(scenario)


def test_closing_does_not_wait_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_PAUSES_SECONDS", (0.0, 3600.0, 0.0, 0.0))

    async def scenario() -> None:
        first = ScriptedSession()
        host = _World(first).host()
        await host.settle()
        first.stream_now.die()
        await _until(lambda: first.is_closed)
        await host.close()

    _run(scenario)


def test_totals_and_status_are_of_all_workers() -> None:
    async def scenario() -> None:
        first, second = ScriptedSession(), ScriptedSession()
        world = _World(first, second)
        host = world.host()
        await host.settle()
        assert host.status().running == 1
        first.stream_now.totals = StreamTotals(passes=3)
        world.may_load.clear()
        first.stream_now.die()
        await _until(lambda: host.state == "loading")
        assert host.status().running == 0 and host.totals().passes == 3
        world.may_load.set()
        await host.settle()
        second.stream_now.totals = StreamTotals(passes=4)
        assert host.totals().passes == 7
        await host.close()

    _run(scenario)


def _at_once(stream: ScriptedStream, request: Request, _: bool) -> None:
    stream.finish(request.number, "done")
