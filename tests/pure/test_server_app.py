"""The application over a session without a model: calls wait, leave, fail, and give back their places."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from asgi_calls import Answered, Client
from fakes import make_plan_value
from scripted_session import ScriptedSession, ScriptedStream
from starlette.applications import Starlette
from starlette.types import Message

from memfit.engines.chat_format import ChatFormat
from memfit.engines.chat_format.form import ReasoningSyntax
from memfit.engines.requests import ChosenToken, PromptText, Request, RequestResult, TextDelta
from memfit.engines.served import Served
from memfit.engines.session import Session
from memfit.errors import ModelError
from memfit.planner.plan import Plan
from memfit.server import streams as streams_module
from memfit.server.app import make_app
from memfit.server.settings import Limits, Settings

_ASK = {"messages": [{"role": "user", "content": "Hello"}]}
_SERVED = Served(form=ChatFormat(reasoning=ReasoningSyntax(start="<think>", end="</think>")))


def _well(stream: ScriptedStream, request: Request, sends_text: bool) -> None:
    if request.describes:
        prompt = PromptText(text="x", tokens=(1, 2), pieces=(b"x", b""))
        stream.say(RequestResult(number=request.number, prompt=prompt))
        return
    stream.begin(request.number)
    if sends_text:
        stream.write(request.number, "we", "ll")
    stream.finish(request.number, "well")


def _beginning(stream: ScriptedStream, request: Request, _: bool) -> None:
    """Never ends."""
    stream.begin(request.number)


def _silent(stream: ScriptedStream, request: Request, _: bool) -> None: ...


class _World:
    def __init__(
        self, session: ScriptedSession, settings: Settings | None = None, source: str = "", **limits: Any
    ) -> None:
        self.session = session
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.said: list[str] = []
        settings = settings or Settings(names=("toy",), limits=Limits(**limits))
        plan = make_plan_value()
        plan = replace(plan, spec=replace(plan.spec, source=source or plan.spec.source))
        self.app = make_app(plan, self._load, settings, self.said.append, lambda _: None)

    def _load(self, _: Plan, go_on: Callable[[float], None]) -> Session:
        while not self.may_load.is_set():
            go_on(0.0)
        return self.session

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Starlette]:
        async with self.app.router.lifespan_context(self.app):
            yield self.app

    async def ask(self, path: str = "/v1/chat/completions", **body: Any) -> Answered:
        return await _client(path, **body).through(self.app)

    async def busy(self) -> int:
        slots = (await Client("GET", "/slots").through(self.app)).json
        return sum(one["is_processing"] for one in slots)


def _client(path: str = "/v1/chat/completions", **body: Any) -> Client:
    return Client("POST", path, pieces=[json.dumps({**_ASK, **body}).encode()])


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work(), 20)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_calls_while_loading_wait_and_are_read_by_the_models_own_form() -> None:
    def thinking(stream: ScriptedStream, request: Request, sends_text: bool) -> None:
        if request.describes:
            _well(stream, request, sends_text)
            return
        stream.begin(request.number)
        stream.finish(request.number, "<think>hmm</think>well")

    async def work() -> None:
        world = _World(ScriptedSession(thinking, served=_SERVED))
        world.may_load.clear()
        async with world.running():
            early = asyncio.ensure_future(world.ask())
            health = await Client("GET", "/health").through(world.app)
            assert health.status == 503 and "loaded" in health.error["message"]
            await asyncio.sleep(0.02)
            assert not early.done()
            world.may_load.set()
            message = (await early).json["choices"][0]["message"]
            assert (message["content"], message["reasoning_content"]) == ("well", "hmm")
            assert (await Client("GET", "/health").through(world.app)).status == 200

    _run(work)


def test_whole_and_streamed_answers_give_back_their_places() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_well))
        async with world.running():
            assert (await world.ask()).json["choices"][0]["message"]["content"] == "well"
            found = await world.ask(stream=True)
            assert found.is_whole and found.body.endswith(b"data: [DONE]\n\n")
            texts = [one["choices"][0]["delta"].get("content") or "" for one in found.events]
            assert "".join(texts) == "well" and found.headers["content-type"].startswith("text/event-stream")
            assert (await world.ask(temperature=-1)).status == 400
            assert await world.busy() == 0 and not world.session.stream_now.dropped

    _run(work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_drops_its_request(stream: bool) -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_beginning))
        async with world.running():
            client = _client(stream=stream)
            asking = asyncio.ensure_future(client.through(world.app))
            await _until(lambda: world.session.streams and world.session.stream_now.added)
            if stream:
                await client.started.wait()
            assert await world.busy() == 1
            client.left.set()
            await asking
            await _until(lambda: world.session.stream_now.dropped)
            assert await world.busy() == 0

    _run(work)


def test_a_client_that_left_before_its_stream_began_leaves_nothing_behind() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_beginning))
        async with world.running():

            class Left(Client):
                """Is found to have left with the first thing that is sent to it."""

                async def send(self, message: Message) -> None:
                    self.left.set()
                    await asyncio.Event().wait()

            client = Left(
                "POST", "/v1/chat/completions", pieces=[json.dumps({**_ASK, "stream": True}).encode()]
            )
            await client.through(world.app)
            assert world.session.stream_now.dropped and await world.busy() == 0

            class Gone(Client):
                async def send(self, message: Message) -> None:
                    raise OSError("gone")

            gone = Gone(
                "POST", "/v1/chat/completions", pieces=[json.dumps({**_ASK, "stream": True}).encode()]
            )
            with pytest.raises(OSError, match="gone"):
                await gone.through(world.app)
            assert len(world.session.stream_now.dropped) == 2 and await world.busy() == 0

    _run(work)


def test_a_silent_stream_is_kept_alive_and_may_be_left_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_PING_SECONDS", 0.01)

    async def work() -> None:
        world = _World(ScriptedSession(_beginning))
        async with world.running():
            client = _client(stream=True)
            asking = asyncio.ensure_future(client.through(world.app))
            await _until(lambda: client.answered.body.count(b": still computing") >= 3)
            client.left.set()
            await asking
            assert world.session.stream_now.dropped and await world.busy() == 0

            number = len(world.session.stream_now.added)
            client = _client(stream=True)
            asking = asyncio.ensure_future(client.through(world.app))
            await _until(lambda: b": still computing" in client.answered.body)
            asked = world.session.stream_now.added[number].number
            world.session.stream_now.write(asked, "well")
            world.session.stream_now.finish(asked, "well")
            await asking
            assert (
                client.answered.is_whole
                and client.answered.events[-1]["choices"][0]["finish_reason"] == "stop"
            )

    _run(work)


def test_a_full_queue_and_a_call_that_takes_too_long() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_silent), queue=1, call_seconds=0.2)
        async with world.running():
            asking = [asyncio.ensure_future(world.ask()) for _ in range(2)]
            await _until(lambda: world.session.streams and len(world.session.stream_now.added) == 2)
            away = await world.ask()
            assert away.status == 429 and int(away.headers["retry-after"]) >= 1
            assert [(await one).status for one in asking] == [504, 504]
            assert len(world.session.stream_now.dropped) == 2 and await world.busy() == 0

    _run(work)


def test_a_death_is_an_error_of_each_api_and_the_next_worker_answers() -> None:
    async def work() -> None:
        first, second = ScriptedSession(_beginning), ScriptedSession(_well)
        world = _World(first)
        async with world.running():
            whole, streamed = _client(), _client(stream=True)
            asking = [asyncio.ensure_future(one.through(world.app)) for one in (whole, streamed)]
            await streamed.started.wait()
            await _until(lambda: len(first.stream_now.added) == 2)
            world.session = second
            first.stream_now.die()
            await asyncio.gather(*asking)
            assert whole.answered.status == 500 and whole.answered.error["type"] == "server_error"
            assert "killed" in streamed.answered.events[-1]["error"]["message"]
            assert streamed.answered.is_whole and streamed.answered.body.endswith(b"[DONE]\n\n")
            assert (await world.ask()).status == 200 and await world.busy() == 0
            assert len([one for one in world.said if "killed" in one]) == 1

    _run(work)


def test_a_template_that_fails_is_the_calls_fault() -> None:
    def failing(stream: ScriptedStream, request: Request, _: bool) -> None:
        stream.say(RequestResult(number=request.number, error=ModelError("the chat template failed")))

    async def work() -> None:
        world = _World(ScriptedSession(failing))
        async with world.running():
            for path in ("/v1/chat/completions", "/apply-template"):
                found = await world.ask(path)
                assert found.status == 400 and found.error["type"] == "invalid_request_error"

    _run(work)


def test_a_fault_of_ours_is_a_clean_500_that_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(stream: ScriptedStream, request: Request, _: bool) -> None:
        raise KeyError("zanzibar")

    async def work() -> None:
        world = _World(ScriptedSession(broken))
        async with world.running():
            client = _client()
            with pytest.raises(KeyError):  # for the server's log
                await client.through(world.app)
            assert client.answered.status == 500 and b"zanzibar" not in client.answered.body
            assert "KeyError" in client.answered.error["message"] and await world.busy() == 0

    _run(work)


def test_closing_ends_streams_with_an_error() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_beginning))
        async with world.running():
            client = _client(stream=True)
            asking = asyncio.ensure_future(client.through(world.app))
            await client.started.wait()
        await asking
        assert "ending" in client.answered.events[-1]["error"]["message"]

    _run(work)


def test_bodies_that_are_too_many_together_are_sent_away() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_silent), bodies_bytes=3000)
        async with world.running():
            client = _client(user="x" * 2500)
            asking = asyncio.ensure_future(client.through(world.app))
            await _until(lambda: world.session.streams and world.session.stream_now.added)
            away = await world.ask(user="x" * 2500)
            assert away.status == 429 and away.headers["retry-after"] == "1"
            client.left.set()
            await asking

    _run(work)


def test_probabilities_reach_both_forms() -> None:
    def named(stream: ScriptedStream, request: Request, _: bool) -> None:
        token = ChosenToken(token=5, piece=b"well", logprob=-0.5)
        stream.begin(request.number)
        stream.say(TextDelta(number=request.number, text="well", tokens=(token,)))
        stream.finish(request.number, "well")

    async def work() -> None:
        world = _World(ScriptedSession(named))
        async with world.running():
            whole = (await world.ask(logprobs=True)).json["choices"][0]["logprobs"]["content"]
            events = (await world.ask(logprobs=True, stream=True)).events
            parts = [one["choices"][0]["logprobs"] for one in events]
            assert [token for one in parts if one for token in one["content"]] == whole

    _run(work)


def test_settings_with_keys_guard_every_path_but_health() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_well), replace(Settings(names=("toy",)), api_keys=("secret",)))
        async with world.running():
            assert (await world.ask()).status == 401
            await _until(lambda: world.session.streams)
            await asyncio.sleep(0.02)
            assert (await Client("GET", "/health").through(world.app)).status == 200
            assert not world.session.stream_now.added

    _run(work)


def test_one_that_was_pulled_is_asked_by_every_form_of_its_name() -> None:
    async def work() -> None:
        world = _World(ScriptedSession(_well), source="hf:org/m:Q4_0")
        async with world.running():
            for name in ("toy", "toy:latest", "hf:org/m:Q4_0", "hf.co/org/m:Q4_0"):
                assert (await world.ask("/api/chat", model=name, stream=False)).status == 200, name
                assert (await world.ask("/api/show", model=name)).status == 200, name
                assert (await world.ask("/api/pull", model=name, stream=False)).json == {"status": "success"}
            for path in ("/api/chat", "/api/embed"):
                assert (await world.ask(path, model="hf.co/org/m:Q8_0", input="a")).status == 404, path

    _run(work)
