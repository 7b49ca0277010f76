"""From an Ask to its answers: requests for the model, its events fed to choices, choices to a writer.

Every API's calls go through `Answering`; what their bodies look like only their writers know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from memfit.engines.chat_format import TextPart, call_grammar
from memfit.engines.requests import (
    Begun,
    ChosenToken,
    Completion,
    Progress,
    PromptText,
    Request,
    RequestResult,
    Score,
    TextDelta,
    TokenScore,
)
from memfit.engines.served import Served
from memfit.engines.session import StreamEvent
from memfit.errors import ContextExceededError, EngineError, MemfitError, UsageError
from memfit.openai.answers import Answer, AnswerWriter, Frame
from memfit.openai.ask import REQUIRED, Ask
from memfit.server.choice import Choice, Piece
from memfit.server.host import Call, ModelHost

__all__ = ["Answering", "describe"]


async def describe(host: ModelHost, request: Request) -> PromptText:
    """A prompt as the model reads it.

    Raises:
        MemfitError: as the request would.
    """
    call = host.ask([replace(request, describes=True, score=None)], sends_text=False)
    try:
        async for _, event in call.events():
            if isinstance(event, RequestResult):
                return _done(event).prompt or _nothing()
    finally:
        call.close()
    return _nothing()


class Answering:
    """One call's answers. Used once, by `stream` or `whole`."""

    def __init__(self, host: ModelHost, ask: Ask, served: Served, warn: Callable[[str], None]) -> None:
        """`warn` hears of calls that could not be read."""
        self._host, self._ask, self._served, self._warn = host, ask, served, warn
        self._choices: dict[int, Choice] = {}  # that have begun: a call may have thousands
        self._answers: dict[int, Answer] = {}

    async def whole(self) -> list[Answer]:
        """Every choice.

        Raises:
            MemfitError: one has failed.
        """
        async with aclosing(self._events(sends_text=False)) as events:
            async for place, event in events:
                await self._take(place, event)
        return self._in_order()

    async def stream(self, writer: AnswerWriter) -> AsyncGenerator[Frame]:
        """The frames of all choices. What fails before the first one is raised, what fails later is written.

        Raises:
            MemfitError: before there is any frame.
        """
        began = False
        try:
            async with aclosing(self._events(sends_text=True)) as events:
                async for place, event in events:
                    pieces = await self._take(place, event)
                    for frame in self._frames(writer, place, event, pieces, begins=not began):
                        yield frame
                    began = began or isinstance(event, Begun)
            for frame in writer.end(self._in_order()):
                yield frame
        except MemfitError as error:
            if not began:
                raise
            for frame in writer.fail(error):
                yield frame

    @property
    def answers(self) -> list[Answer]:
        """Those that are whole."""
        return list(self._answers.values())

    def _in_order(self) -> list[Answer]:
        return [self._answers[place] for place in range(self._ask.choices)]

    def _choice(self, place: int) -> Choice:
        if place not in self._choices:
            self._choices[place] = Choice(self._ask, self._served.form)
        return self._choices[place]

    def _frames(
        self,
        writer: AnswerWriter,
        place: int,
        event: StreamEvent,
        pieces: Sequence[Piece],
        *,
        begins: bool,
    ) -> Iterable[Frame]:
        if isinstance(event, Begun) and begins:
            yield from writer.begin(event.prompt_tokens)
        if isinstance(event, Progress):
            yield from writer.progress(place, event)
        for piece in pieces:
            yield from writer.part(place, piece.part, piece.tokens)
        if place in self._answers:
            yield from writer.finish(place, self._answers[place])

    async def _take(self, place: int, event: StreamEvent) -> list[Piece]:
        choice = self._choice(place)
        if isinstance(event, Begun):
            choice.begin(event.ending)
            return choice.echo()
        if isinstance(event, TextDelta):
            return choice.feed(event.text, event.tokens)
        if not isinstance(event, RequestResult):
            return []
        completion = _completed(event)
        pieces = [] if self._sends_text else choice.feed(completion.text)
        pieces += choice.finish()
        if choice.warning:
            self._warn(choice.warning)
        thoughts = 0
        if choice.thoughts:
            read = await describe(self._host, Request(prompt=choice.thoughts, adds_special=False))
            thoughts = min(len(read.tokens), completion.completion_tokens)
        self._answers[place] = choice.answer(completion, reasoning_tokens=thoughts)
        del self._choices[place]
        return pieces

    async def _events(self, *, sends_text: bool) -> AsyncGenerator[tuple[int, StreamEvent]]:
        """With the messages that are too many left out, where that is asked for."""
        self._sends_text = sends_text or self._ask.names_tokens or self._ask.logprobs is not None
        requests = await self._requests()
        while True:
            call: Call | None = None
            try:
                for request in requests:
                    self._served.require_room(request)
                call = self._host.ask(requests, sends_text=self._sends_text)
                async for place, event in call.events():
                    if isinstance(event, RequestResult) and event.error:
                        raise event.error
                    yield place, event
                return
            except ContextExceededError as error:
                shorter = _without_oldest(requests, error) if self._ask.truncates else None
                if shorter is None:
                    raise
                requests = shorter
            except UsageError as error:
                if error.field != "grammar" or self._ask.tool_choice != REQUIRED:
                    raise
                said = f"tools: a call cannot be held to them: {error}"  # the grammar is ours
                raise UsageError(said, field="tools") from None
            finally:
                if call:
                    call.close()

    async def _requests(self) -> list[Request]:
        """What the model is asked, and what is to be known of prompts before."""
        ask, form = self._ask, self._served.form
        asked = ask.requests()
        if not ask.prompts:
            asked = [replace(one, template=ask.offered, shows_markers=form.needs_special) for one in asked]
            if ask.tool_choice == REQUIRED:
                asked = [replace(one, grammar=await self._grammar(one), schema=None) for one in asked]
        if ask.echo or ask.verbose:
            for place in range(0, len(asked), ask.n):
                read = await describe(self._host, asked[place])
                echoed = await self._echo(read) if ask.echo else None
                for choice in map(self._choice, range(place, place + ask.n)):
                    choice.prompt_text, choice.echoed = read.text, echoed
        return asked

    async def _grammar(self, request: Request) -> str:
        """Of a call that must come."""
        ending = (await describe(self._host, request)).text
        return call_grammar(
            self._served.form,
            self._ask.tools,
            choice=self._ask.function or REQUIRED,
            parallel=self._ask.parallel_calls and self._ask.function is None,
            in_reasoning=self._served.form.opens_reasoning(ending),
            special_tokens=self._served.control_tokens,
        )

    async def _echo(self, read: PromptText) -> Piece:
        """A prompt as a part of its answer, with its tokens' probabilities where these are asked for."""
        top = self._ask.logprobs
        text = b"".join(read.pieces).decode("utf-8", errors="replace")
        if top is None:
            return Piece(part=TextPart(text=text))
        scores: Sequence[TokenScore] = ()
        if len(read.tokens) > 1:
            scores = await self._scores(Request(prompt=read.tokens, score=Score(top=top)))
        likeliest = sorted({token for score in scores for token, _ in score.top})
        named = await describe(self._host, Request(prompt=tuple(likeliest))) if likeliest else None
        pieces = dict(zip(likeliest, named.pieces, strict=True)) if named else {}
        tokens = [ChosenToken(token=read.tokens[0], piece=read.pieces[0])] if read.tokens else []
        for token, piece, score in zip(read.tokens[1:], read.pieces[1:], scores, strict=True):
            top_named = tuple((each, pieces[each], one) for each, one in score.top)
            tokens.append(ChosenToken(token=token, piece=piece, logprob=score.logprob, top=top_named))
        return Piece(part=TextPart(text=text), tokens=tuple(tokens))

    async def _scores(self, request: Request) -> Sequence[TokenScore]:
        call = self._host.ask([request], sends_text=False)
        try:
            async for _, event in call.events():
                if isinstance(event, RequestResult):
                    return _done(event).scores
        finally:
            call.close()
        return ()


def _done(result: RequestResult) -> RequestResult:
    if result.error:
        raise result.error
    return result


def _completed(result: RequestResult) -> Completion:
    completion = _done(result).completion
    if completion is None or completion.finish_reason == "cancelled":
        raise EngineError("the server is ending")
    return completion


def _nothing() -> PromptText:
    return PromptText(text="", tokens=(), pieces=())


def _without_oldest(requests: Sequence[Request], error: ContextExceededError) -> list[Request] | None:
    """The same conversation without what is oldest in it; None where nothing can go.

    What goes is as large a share of the text as is too much, and one message at least. A system message and
    the last question stay.
    """
    messages = requests[0].messages
    first = 1 if messages and messages[0]["role"] == "system" else 0
    last = max((place for place, one in enumerate(messages) if one["role"] == "user"), default=0)
    too_many = 1 - error.needed / error.got if error.got else 0.0
    sizes = [len(str(one)) for one in messages]
    end, gone = first, 0
    while end < last and (gone == 0 or gone < too_many * sum(sizes)):
        gone += sizes[end]
        end += 1
    # A call's result makes no sense without the call.
    while end < last and messages[end]["role"] != "user":
        end += 1
    if end == first:
        return None
    return [replace(one, messages=(*messages[:first], *messages[end:])) for one in requests]
