"""How every path that asks the model is answered: read, let in, asked, written, streamed or whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from memfit.engines.requests import Request as ModelRequest
from memfit.engines.requests import Status
from memfit.engines.served import Served
from memfit.engines.session import Session
from memfit.errors import EngineError, MemfitError, UsageError, readable
from memfit.openai.answers import AnswerWriter, Frame
from memfit.openai.ask import Ask
from memfit.planner.plan import Plan
from memfit.saved_plan import restore_plan
from memfit.server.admission import Admission, Place
from memfit.server.answering import Answering, describe
from memfit.server.bodies import read_body
from memfit.server.dialects import OPENAI, Dialect, failure, json_response
from memfit.server.failures import RefusedError
from memfit.server.host import ModelHost
from memfit.server.library import LATEST, Library, library_name
from memfit.server.metrics import Metrics
from memfit.server.pricer import Pricer
from memfit.server.settings import Limits, Settings
from memfit.server.streams import PING, HeldStream, with_pings

__all__ = ["LoadPlan", "Service", "at_once"]

_T = TypeVar("_T")
LoadPlan = Callable[[Plan, Callable[[float], None]], Session]  # host.Load, of a plan


def at_once(plan: Plan) -> int | None:
    """How many requests of one call are with the model: texts to embed are packed into passes; of answers,
    two for each sequence leave none idle."""
    return None if plan.workload.embeds else 2 * plan.parallel


class Service:
    """One server's parts, as its paths share them."""

    host: ModelHost  # once the event loop runs
    library: Library
    pricer: Pricer

    def __init__(self, *, plan: Plan, load: LoadPlan, settings: Settings, say: Callable[[str], None]) -> None:
        """`say` hears what is worth a line in the log."""
        self.plan, self.settings, self.say = plan, settings, say
        self._load = load
        self._is_applying = False
        self.started = time.time()
        self.admission = Admission(running=plan.parallel, queue=settings.limits.queue)
        self.metrics = Metrics(self.status, lambda: self.host.totals(), lambda: self.host.restarts)

    def begin(self, host: ModelHost) -> None:
        self.host = host
        self.library = Library()
        self.pricer = Pricer(self.plan)

    async def apply(self, values: Mapping[str, Any]) -> None:
        """Load the model by another plan, of which `values` are the JSON. What runs ends with an error; where
        it cannot be loaded, the running plan is loaded again.

        Raises:
            RefusedError: another one is being loaded.
            MemfitError: it cannot be.
        """
        if self._is_applying:
            raise RefusedError(409, "conflict_error", "another plan is being loaded")
        self._is_applying = True
        try:
            await self._apply(values)
        finally:
            self._is_applying = False

    async def _apply(self, values: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        restored: Plan | None = None

        def load(go_on: Callable[[float], None]) -> Session:
            nonlocal restored
            if restored:  # its worker died
                return self._load(restored, go_on)
            plan = restore_plan(values, "the plan", count_parent=True, say=self.say)
            session = self._load(plan, go_on)
            restored = plan
            loop.call_soon_threadsafe(self._take, plan)
            return session

        self.pricer.begin_again(self.plan)  # its memory was measured against the running plan
        await self.host.reload(load)
        await self.host.settle()  # it opens its stream

    def _take(self, plan: Plan) -> None:
        self.plan = plan
        self.admission.running, self.host.at_once = plan.parallel, at_once(plan)
        self.pricer.begin_again(plan)

    def status(self) -> Status:
        """With the calls that are here now: the worker tells of its requests twice a second only."""
        taken, running = self.admission.taken, self.admission.running
        return replace(self.host.status(), running=min(taken, running), waiting=max(0, taken - running))

    @property
    def served(self) -> Served:
        session = self.host.session
        return session.served if session else Served()

    @property
    def limits(self) -> Limits:
        """Of bodies that come now."""
        held_bytes = self.host.status().held_bytes
        spare_bytes = self.plan.ram.limit_bytes - held_bytes if held_bytes else 0  # 0: it is being loaded
        return self.settings.limits.within(spare_bytes)

    @property
    def model(self) -> str:
        """The name that answers have."""
        return self.settings.names[0]

    def is_called(self, name: str) -> bool:
        """Whether a name is the served model's: one of those it was given, or what it was found by."""
        spec = self.plan.spec
        names = {*self.settings.names, spec.source, spec.name, spec.paths[0].stem}
        if name in names or name.removesuffix(LATEST) in names:
            return True
        with contextlib.suppress(UsageError):
            return library_name(name) == spec.source
        return False

    def require_called(self, body: Mapping[str, Any]) -> None:
        """As Ollama does: its clients list models that lie here, and ask for one of them.

        Raises:
            RefusedError: another model is asked for than the one that is served.
        """
        name = body.get("model")
        if isinstance(name, str) and name and not self.is_called(name):
            said = f"model {name[:200]!r} is not served here, {self.model!r} is"
            raise RefusedError(404, "not_found_error", said, field="model")

    async def respond(
        self,
        request: Request,
        read: Callable[[dict[str, Any]], Ask],
        writer: Callable[[Mapping[str, Any], Ask], AnswerWriter],
        dialect: Dialect = OPENAI,
    ) -> Response:
        """Answer one call of the model."""
        try:
            await self.host.settle()  # before that its ways are unknown, and what memory is left
            body = await read_body(request, self.limits)
        except MemfitError as error:
            return failure(error, dialect)
        return await self.answer(request, body, read, writer, dialect)

    async def answer(
        self,
        request: Request,
        body: dict[str, Any],
        read: Callable[[dict[str, Any]], Ask],
        writer: Callable[[Mapping[str, Any], Ask], AnswerWriter],
        dialect: Dialect = OPENAI,
    ) -> Response:
        """As `respond`, of a body that has come."""
        place: Place | None = None
        try:
            self._require_writes()
            await self.loaded(request)
            ask = self._completed(read(body))
            for warning in ask.warnings:
                self.say(warning)
            place = self.admission.enter(ask.choices)
            writes = writer(body, ask)
            if self.settings.logs_prompts:
                self.say(readable(json.dumps(body, ensure_ascii=False)))
            answering = Answering(self.host, ask, self.served, self._warn)
            if not ask.stream:
                with place:
                    answers = await self.unless_left(request, answering.whole())
                    self.metrics.count(answers)
                    return json_response(writes.body(answers))
            frames = answering.stream(writes)
            first = await self.unless_left(request, anext(frames, None))
        except MemfitError as error:
            if place:
                place.close()
            return failure(error, dialect)
        except BaseException:
            if place:
                place.close()
            raise
        stream = self._bytes(first, frames, answering, dialect)
        return HeldStream(stream, frames, place, media_type=dialect.media)

    async def count(
        self,
        request: Request,
        read: Callable[[dict[str, Any]], Ask],
        written: Callable[[int], dict[str, Any]],
        dialect: Dialect = OPENAI,
    ) -> Response:
        """How many tokens a call's prompt has."""
        try:
            prompt = await describe(
                self.host, self.templated(read(await read_body(request, self.limits.of_descriptions)))
            )
        except MemfitError as error:
            return failure(error, dialect)
        return json_response(written(len(prompt.tokens)))

    async def loaded(self, request: Request) -> None:
        """Wait until the model is loaded.

        Raises:
            MemfitError: it cannot be, or the client does not wait for it.
        """
        state = self.host.state
        if state == "loading":
            state = await self.unless_left(request, self.host.settle())
        if state != "ready":
            raise self.host.failure or EngineError("the server is ending")

    async def unless_left(self, request: Request, work: Awaitable[_T], *, seconds: float | None = None) -> _T:
        """What comes of it, unless the client leaves or time is up; then it is cancelled.

        Raises:
            RefusedError: that has happened.
        """
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_leaving(request))
        try:
            await asyncio.wait(
                (task, leaving),
                timeout=seconds or self.settings.limits.call_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            if leaving.done():
                raise RefusedError(499, "invalid_request_error", "the client left")
            raise RefusedError(504, "timeout_error", "the answer took too long")
        finally:
            leaving.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    def filled_in(self, ask: Ask, *, must: bool = True) -> Ask:
        """With the text that is filled in between prefix and suffix, in the model's own tokens.

        Raises:
            UsageError: the model cannot, and it `must`; else the suffix is left out with a warning.
        """
        if ask.suffix is None:
            return ask
        if not self.served.fills_in and not must:
            warning = "suffix is left out: this model cannot fill in"
            return replace(ask, suffix=None, warnings=(*ask.warnings, warning))
        if not self.served.fills_in:
            raise UsageError("this model has no tokens for filling in; leave the suffix out", field="suffix")
        prompts = tuple(fill_in(one, ask.suffix, self.served.fill_tokens) for one in ask.prompts)
        return replace(ask, prompts=prompts)

    def with_ends(self, ask: Ask) -> Ask:
        """Where the model's own end is ignored, with what that comes to, as llama-server tells it."""
        if not ask.sampling.ignore_eos:
            return ask
        never = tuple((token, -inf) for token in self.served.end_tokens)
        sampling = replace(ask.sampling, logit_bias=(*ask.sampling.logit_bias, *never))
        return replace(ask, sampling=sampling)

    def templated(self, ask: Ask) -> ModelRequest:
        """What shows the prompt that a chat becomes."""
        ask = self._completed(ask)
        return replace(ask.requests()[0], template=ask.offered)

    async def _bytes(
        self, first: Frame | None, frames: AsyncGenerator[Frame], answering: Answering, dialect: Dialect
    ) -> AsyncGenerator[bytes]:
        if first is not None:
            yield dialect.encode(first)
            async with aclosing(with_pings(frames, pings=not dialect.lines)) as pinged:
                async for frame in pinged:
                    yield PING if frame is None else dialect.encode(frame)
        self.metrics.count(answering.answers)

    def _warn(self, problem: str) -> None:
        """A call of a tool that could not be read; what is wrong with it quotes the answer."""
        told = f": {problem}" if self.settings.logs_prompts else ", and came as text (--log-prompts shows it)"
        self.say(f"a call of a tool could not be read{told}")

    def _require_writes(self) -> None:
        """Raises RefusedError where the model was loaded to embed."""
        if self.plan.workload.embeds:
            raise RefusedError(
                501, "not_supported_error", "this server embeds texts; ask /v1/embeddings, or /v1/rerank"
            )

    def _completed(self, ask: Ask) -> Ask:
        """With what this server adds to every call."""
        settings, template = self.settings, ask.template
        # As llama-server: templates that can be told are told to reason, unless somebody says otherwise.
        values = {"enable_thinking": settings.thinks is not False, **template.values}
        return replace(
            ask,
            template=replace(template, values=values),
            verbose=ask.verbose or settings.verbose,
            parses_reasoning=ask.parses_reasoning and settings.parses_reasoning,
        )


def fill_in(prompt: str | tuple[int | str, ...], suffix: str, tokens: Sequence[int]) -> tuple[int | str, ...]:
    """As models are trained: prefix, suffix, and then what lies between; `tokens` mark the three."""
    before, after, between = tokens
    texts = (prompt,) if isinstance(prompt, str) else prompt
    return (before, *texts, after, suffix, between)


async def _leaving(request: Request) -> None:
    """Ends when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
