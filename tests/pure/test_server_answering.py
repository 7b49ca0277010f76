"""From asks to answers over a host without a model: choices, echoes, truncation, grammars, streams, ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from memfit.engines.chat_format import ChatFormat
from memfit.engines.chat_format.form import CallSyntax, ReasoningSyntax
from memfit.engines.requests import (
    Begun,
    ChosenToken,
    Completion,
    Progress,
    PromptText,
    Request,
    RequestResult,
    Sampling,
    Speed,
    TemplateOptions,
    TextDelta,
    TokenScore,
)
from memfit.engines.served import Served
from memfit.engines.session import StreamEvent
from memfit.errors import ContextExceededError, EngineError, MemfitError, UsageError
from memfit.openai.answers import Answer
from memfit.openai.ask import REQUIRED, Ask
from memfit.openai.chat_writer import ChatWriter
from memfit.openai.completion_writer import CompletionWriter
from memfit.server import answering as answering_module
from memfit.server.answering import Answering, describe

_WEATHER = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
_FORM = ChatFormat(
    has_tools=True,
    reasoning=ReasoningSyntax(start="<think>", end="</think>"),
    calls=(CallSyntax(kind="json", start="<call>", end=("</call>",)),),
)
_SERVED = Served(form=_FORM, control_tokens={"<call>": 7}, sequence_tokens=100)
_SPEED = Speed(prompt_tokens=3, prompt_seconds=0.5, generated_tokens=2, generation_seconds=0.5)
_USER = {"role": "user", "content": "Weather?"}

Says = Callable[[Request], Sequence[StreamEvent]]


class _Call:
    """Gives what the host says to each request, in turns."""

    def __init__(self, host: _Host, requests: Sequence[Request]) -> None:
        self._host, self._requests = host, requests
        self.is_closed = False

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        said = [list(self._host.say(replace(one, number=place))) for place, one in enumerate(self._requests)]
        while any(said):
            for place, events in enumerate(said):
                if events:
                    await asyncio.sleep(0)
                    yield place, events.pop(0)
        if not all(one.describes for one in self._requests):
            await self._host.may_end.wait()

    def close(self) -> None:
        self.is_closed = True


class _Host:
    """Satisfies as much of ModelHost as answers need. A token is a letter."""

    def __init__(self, says: Says | str = "well") -> None:
        self._says = says
        self.asked: list[Request] = []
        self.sends_text: list[bool] = []
        self.calls: list[_Call] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    def ask(self, requests: Sequence[Request], *, sends_text: bool) -> _Call:
        self.asked += [one for one in requests if not one.describes]
        self.sends_text.append(sends_text)
        self.calls.append(_Call(self, requests))
        return self.calls[-1]

    def say(self, request: Request) -> Sequence[StreamEvent]:
        number = request.number
        if request.describes:
            return [RequestResult(number=number, prompt=_described(request))]
        if request.score:
            assert isinstance(request.prompt, tuple)
            scores = [TokenScore(logprob=-1.0, is_greedy=False, top=((ord("z"), -0.5),))] * (
                len(request.prompt) - 1
            )
            return [RequestResult(number=number, scores=tuple(scores))]
        if callable(self._says):
            return self._says(request)
        return _spoken(request, self._says, as_it_comes=self.sends_text[-1])


def _described(request: Request) -> PromptText:
    if request.prompt is None:
        tools = f"[{len(request.template.tools)} tools]" if request.template.tools else ""
        text = tools + "".join(f"<{one['role']}>{one['content']}" for one in request.messages)
    else:
        pieces = (request.prompt,) if isinstance(request.prompt, str) else request.prompt
        text = "".join(one if isinstance(one, str) else chr(one) for one in pieces)
    return PromptText(text=text, tokens=tuple(map(ord, text)), pieces=tuple(one.encode() for one in text))


def _done(request: Request, text: str, **values: Any) -> RequestResult:
    completion = Completion(
        **{
            "text": text,
            "finish_reason": "stop",
            "prompt_tokens": 5,
            "completion_tokens": len(text),
            "speed": _SPEED,
            **values,
        }
    )
    return RequestResult(number=request.number, completion=completion)


def _begun(request: Request, ending: str = "") -> Begun:
    return Begun(number=request.number, prompt_tokens=5, ending=ending)


def _spoken(request: Request, text: str, *, as_it_comes: bool, ending: str = "") -> list[StreamEvent]:
    names = request.logprobs is not None
    deltas = [
        TextDelta(
            number=request.number,
            text=letter,
            tokens=(ChosenToken(token=ord(letter), piece=letter.encode(), logprob=-0.5),) if names else (),
        )
        for letter in text
    ]
    return [_begun(request, ending), *(deltas if as_it_comes else []), _done(request, text)]


def _chat(**values: Any) -> Ask:
    return Ask(**{"messages": (_USER,), **values})


def _run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def bounded() -> Any:
        found = await asyncio.wait_for(work(), 20)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    return asyncio.run(bounded())


def _whole(
    ask: Ask, says: Says | str = "well", served: Served = _SERVED
) -> tuple[list[Answer], _Host, list[str]]:
    async def work() -> tuple[list[Answer], _Host, list[str]]:
        host, warnings = _Host(says), []
        answers = await Answering(host, ask, served, warnings.append).whole()  # type: ignore[arg-type]
        assert all(one.is_closed for one in host.calls)
        return answers, host, warnings

    found: tuple[list[Answer], _Host, list[str]] = _run(work)
    return found


def _stream(ask: Ask, says: Says | str = "well", served: Served = _SERVED) -> list[Any]:
    """The JSON of the frames."""

    async def work() -> list[Any]:
        host = _Host(says)
        writer = CompletionWriter(ask, "toy") if ask.prompts else ChatWriter(ask, "toy")
        answering = Answering(host, ask, served, lambda _: None)  # type: ignore[arg-type]
        frames = [frame.data async for frame in answering.stream(writer)]
        assert all(one.is_closed for one in host.calls)
        return frames

    found: list[Any] = _run(work)
    return found


def test_choices_are_in_their_order_and_have_seeds_of_their_own() -> None:
    ask = Ask(prompts=("a", "b"), n=2, sampling=Sampling(seed=7))
    answers, host, _ = _whole(
        ask, lambda request: [_begun(request), _done(request, f"{request.prompt}{request.sampling.seed}")]
    )
    assert [one.text for one in answers] == ["a7", "a8", "b7", "b8"]
    assert host.sends_text == [False]
    assert len(_whole(_chat(n=3))[0]) == 3
    assert answers[0].usage.prompt_tokens == 5 and answers[0].usage.cached_tokens == 2


def test_seeds_of_choices_stay_seeds_and_are_never_the_random_one() -> None:
    for seed in (2**32 - 2, 2**32 - 3):
        seeds = [one.sampling.seed for one in _chat(n=128, sampling=Sampling(seed=seed)).requests()]
        assert len(set(seeds)) == 128 and 2**32 - 1 not in seeds


def test_a_stop_string_and_a_limit_are_told() -> None:
    stopped, _, _ = _whole(_chat(), lambda request: [_begun(request), _done(request, "a", stop="END")])
    assert (stopped[0].stop, stopped[0].reason) == ("END", "stop")
    cut, _, _ = _whole(
        _chat(), lambda request: [_begun(request), _done(request, "a", finish_reason="length")]
    )
    assert cut[0].reason == "length"


def test_an_echo_is_the_prompt_and_its_probabilities() -> None:
    ask = Ask(prompts=("ab", "c"), n=2, echo=True, logprobs=1)
    answers, host, _ = _whole(ask, "xy")
    assert [one.text for one in answers] == ["abxy", "abxy", "cxy", "cxy"]
    assert [one.logprob for one in answers[0].tokens] == [None, -1.0, -0.5, -0.5]
    assert answers[0].tokens[1].top == ((ord("z"), b"z", -0.5),)
    assert [one.token for one in answers[2].tokens] == [ord("c"), ord("x"), ord("y")]
    scored = [one for one in host.asked if one.score]
    assert [one.prompt for one in scored] == [(97, 98)], "a single token has nothing before it"


def test_an_echo_alone_scores_nothing_and_generates_nothing() -> None:
    ask = Ask(prompts=("ab",), echo=True, generates=False, sampling=Sampling(max_tokens=1))
    answers, host, _ = _whole(ask, "x")
    assert answers[0].text == "ab" and answers[0].usage.completion_tokens == 0 and not answers[0].tokens
    assert len(host.asked) == 1


def test_an_echo_is_the_first_piece_of_a_stream() -> None:
    frames = _stream(Ask(prompts=("ab",), echo=True, logprobs=0, stream=True), "xy")
    entries = [one["choices"][0] for one in frames[:-1]]
    assert [one["text"] for one in entries] == ["ab", "x", "y", ""]
    offsets = [offset for one in entries for offset in one["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3]


def test_logprobs_of_a_chat_come_with_its_text() -> None:
    answers, host, _ = _whole(_chat(logprobs=0), "well")
    assert b"".join(one.piece for one in answers[0].tokens) == b"well" and host.sends_text == [True]


def test_logprobs_are_of_the_text_alone_whether_it_is_streamed_or_not() -> None:
    text = "<think>hmm</think>well"
    (whole,), _, _ = _whole(_chat(logprobs=0), text)
    frames = _stream(_chat(logprobs=0, stream=True), text)
    entries = [one["choices"][0]["logprobs"] for one in frames[:-1] if one["choices"][0]["logprobs"]]
    streamed = [token["token"] for entry in entries for token in entry["content"]]
    assert streamed == [one.piece.decode() for one in whole.tokens]
    assert "".join(streamed).endswith("well") and "hmm" not in "".join(streamed)


_LONG = (
    {"role": "system", "content": "rules"},
    {"role": "user", "content": "1" * 30},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
    {"role": "tool", "content": "2" * 30},
    {"role": "assistant", "content": "3" * 30},
    {"role": "user", "content": "4" * 30},
    {"role": "assistant", "content": "5" * 30},
    {"role": "user", "content": "last"},
)


def _cramped(most: int) -> Says:
    """Refuses what has more letters."""

    def says(request: Request) -> Sequence[StreamEvent]:
        size = sum(len(str(one["content"])) for one in request.messages)
        if size > most:
            error = ContextExceededError("too long", got=size, needed=most)
            return [RequestResult(number=request.number, error=error)]
        return [_begun(request), _done(request, "well")]

    return says


@pytest.mark.parametrize("most", [130, 100, 80, 45, 9])
def test_truncation_drops_the_oldest_and_keeps_system_and_last_question(most: int) -> None:
    _, host, _ = _whole(_chat(messages=_LONG, truncates=True, n=2), _cramped(most))
    kept = host.asked[-1].messages
    assert kept == host.asked[-2].messages, "all choices answer the same"
    assert kept[0] == _LONG[0] and kept[-1] == _LONG[-1]
    assert kept[1:] == _LONG[len(_LONG) - len(kept) + 1 :], "what is left is the end of it"
    assert kept[1]["role"] == "user", "a call's result never stands without its call"
    assert sum(len(str(one["content"])) for one in kept) <= most


def test_truncation_gives_up_where_nothing_can_go() -> None:
    with pytest.raises(ContextExceededError, match="too long"):
        _whole(_chat(messages=_LONG, truncates=True), _cramped(8))
    with pytest.raises(ContextExceededError):
        _whole(_chat(messages=(_USER,), truncates=True), _cramped(1))
    with pytest.raises(ContextExceededError):
        _whole(_chat(messages=_LONG), _cramped(100))
    with pytest.raises(ContextExceededError):  # of texts nothing is left out
        _whole(
            Ask(prompts=("a",), truncates=True),
            lambda request: [
                RequestResult(number=0, error=ContextExceededError("too long", got=9, needed=1))
            ],
        )


def test_a_stream_is_truncated_before_it_begins() -> None:
    frames = _stream(_chat(messages=_LONG, truncates=True, stream=True), _cramped(80))
    assert frames[0]["choices"][0]["delta"]["role"] == "assistant" and frames[-1] == "[DONE]"
    assert sum("role" in one["choices"][0]["delta"] for one in frames[:-1]) == 1


def test_what_can_never_fit_is_refused_without_the_model() -> None:
    served = replace(_SERVED, longest_piece_bytes=1)
    with pytest.raises(ContextExceededError) as raised:
        _whole(_chat(messages=({"role": "user", "content": "x" * 101},)), served=served)
    assert (raised.value.got, raised.value.needed) == (101, 100)
    many = tuple({"role": "user", "content": "x" * 10} for _ in range(1000))
    answers, host, _ = _whole(_chat(messages=many, truncates=True), served=served)
    assert answers[0].text == "well" and len(host.asked) == 1 and len(host.asked[0].messages) <= 10


@pytest.mark.parametrize("function", [None, "weather"])
def test_a_call_that_is_required_is_forced_by_a_grammar(
    function: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def grammar(form: ChatFormat, tools: Any, **values: Any) -> str:
        asked.append((form, tools, values))
        return "start: call"

    monkeypatch.setattr(answering_module, "call_grammar", grammar)
    ask = _chat(
        template=TemplateOptions(tools=(_WEATHER,)),
        tool_choice=REQUIRED,
        function=function,
        parallel_calls=False,
        schema={"type": "object"},
    )
    _, host, _ = _whole(ask, '<call>{"name":"weather","arguments":{}}</call>')
    assert host.asked[0].grammar == "start: call" and host.asked[0].schema is None
    assert asked == [
        (
            _FORM,
            (_WEATHER,),
            {
                "choice": function or "required",
                "parallel": False,
                "in_reasoning": False,
                "special_tokens": {"<call>": 7},
            },
        )
    ]


def test_calls_are_read_with_ids_and_end_the_answer_by_their_reason() -> None:
    tools = TemplateOptions(tools=(_WEATHER,))
    text = 'I look.<call>{"name": "weather", "arguments": {"city": "Köln"}}</call>'
    for says in (text, lambda request: _spoken(request, text, as_it_comes=False)):
        (answer,), host, warnings = _whole(_chat(template=tools), says)
        (call,) = answer.calls
        assert call.name == "weather" and json.loads(call.arguments) == {"city": "Köln"}
        assert call.id.startswith("call_") and answer.text == "I look." and answer.reason == "tool_calls"
        assert host.asked[0].shows_markers and not warnings
    one, other = (_whole(_chat(template=tools), text)[0][0].calls[0].id for _ in range(2))
    assert one != other
    cut = _whole(
        _chat(template=tools), lambda request: [_begun(request), _done(request, text, finish_reason="length")]
    )
    assert cut[0][0].reason == "length" and cut[0][0].calls


def test_no_call_is_read_where_none_may_be_made() -> None:
    text = '<call>{"name": "weather", "arguments": {}}</call>'
    for ask in (_chat(), _chat(template=TemplateOptions(tools=(_WEATHER,)), tool_choice="none")):
        (answer,), host, _ = _whole(ask, text)
        assert not answer.calls and answer.reason == "stop" and "weather" in answer.text
        assert not host.asked[0].template.tools, "the template offers none"
    assert _whole(Ask(prompts=("a",)), text)[0][0].text == text


def test_a_call_that_cannot_be_read_is_text_with_a_warning_in_the_log() -> None:
    text = '<call>{"name": "weather", "arguments": {</call> and more words'
    (answer,), _, warnings = _whole(_chat(template=TemplateOptions(tools=(_WEATHER,))), text)
    assert not answer.calls and answer.reason == "stop" and "and more words" in answer.text
    assert len(warnings) == 1 and "cannot be read" in warnings[0]
    streamed = _stream(_chat(template=TemplateOptions(tools=(_WEATHER,)), stream=True), text)
    shown = "".join(one["choices"][0]["delta"].get("content") or "" for one in streamed[:-1])
    assert shown == answer.text


def test_reasoning_is_apart_and_counted() -> None:
    (answer,), host, _ = _whole(_chat(), "<think>hmm</think>well")
    assert (answer.reasoning, answer.text) == ("hmm", "well") and answer.usage.reasoning_tokens == 3
    opened = _whole(
        _chat(), lambda request: [_begun(request, "…<think>\n"), _done(request, "hmm</think>well")]
    )
    assert (opened[0][0].reasoning, opened[0][0].text) == ("hmm", "well")
    (plain,), _, _ = _whole(_chat(parses_reasoning=False), "<think>hmm</think>well")
    assert not plain.reasoning and plain.text == "<think>hmm</think>well"
    assert plain.usage.reasoning_tokens == 0
    assert sum(not one.describes for one in host.asked) == 1


def test_a_verbose_answer_has_its_prompt() -> None:
    (answer,), _, _ = _whole(_chat(verbose=True))
    assert answer.prompt == "<user>Weather?"
    assert _whole(_chat())[0][0].prompt is None


def test_a_stream_says_what_the_whole_answer_says() -> None:
    text = '<think>hmm</think>I look.<call>{"name": "weather", "arguments": {"a": 1}}</call>'
    ask = _chat(template=TemplateOptions(tools=(_WEATHER,)), n=2)
    (whole, _), _, _ = _whole(ask, text)
    frames = _stream(replace(ask, stream=True), text)
    assert frames[-1] == "[DONE]" and all(one["object"] == "chat.completion.chunk" for one in frames[:-1])
    for choice in range(2):
        entries = [one["choices"][0] for one in frames[:-1] if one["choices"][0]["index"] == choice]
        deltas = [one["delta"] for one in entries]
        assert deltas[0] == {"role": "assistant", "content": None}
        assert "".join(one.get("content") or "" for one in deltas) == whole.text
        assert "".join(one.get("reasoning_content", "") for one in deltas) == whole.reasoning
        calls = [call for one in deltas for call in one.get("tool_calls", ())]
        assert calls[0]["id"].startswith("call_")
        assert "".join(one["function"]["arguments"] for one in calls) == whole.calls[0].arguments
        assert [one["finish_reason"] for one in entries][-1] == "tool_calls"


def test_progress_is_told_where_it_comes() -> None:
    progress = Progress(number=0, total=5, shared=2, processed=5, seconds=0.1)
    frames = _stream(
        _chat(stream=True, tells_progress=True),
        lambda request: [_begun(request), progress, _done(request, "a")],
    )
    assert [one["prompt_progress"]["processed"] for one in frames[:-1] if "prompt_progress" in one] == [5]


def _failing(*before: StreamEvent) -> Says:
    return lambda request: [*before, RequestResult(number=request.number, error=EngineError("it failed"))]


def test_an_error_before_the_first_frame_is_raised_and_one_after_it_is_written() -> None:
    for ask in (_chat(stream=True), Ask(prompts=("a",), stream=True)):
        with pytest.raises(EngineError, match="it failed"):
            _stream(ask, _failing())
        frames = _stream(ask, _failing(_begun(Request(prompt="a")), TextDelta(number=0, text="half")))
        assert "it failed" in frames[-2]["error"]["message"] and frames[-1] == "[DONE]"
    with pytest.raises(EngineError):
        _whole(_chat(n=2), _failing(_begun(Request(prompt="a"))))


def test_an_answer_that_was_cancelled_is_an_error() -> None:
    def says(request: Request) -> Sequence[StreamEvent]:
        return [_begun(request), _done(request, "half", finish_reason="cancelled")]

    with pytest.raises(EngineError, match="the server is ending"):
        _whole(_chat(), says)
    frames = _stream(_chat(stream=True), says)
    assert "ending" in frames[-2]["error"]["message"]


def test_leaving_a_stream_drops_its_requests() -> None:
    async def work() -> None:
        host = _Host()
        host.may_end.clear()
        answering = Answering(host, _chat(stream=True), _SERVED, lambda _: None)  # type: ignore[arg-type]
        frames = answering.stream(ChatWriter(_chat(), "toy"))
        await anext(frames)
        assert not host.calls[-1].is_closed
        await frames.aclose()
        assert host.calls[-1].is_closed

        whole = asyncio.ensure_future(
            Answering(host, _chat(), _SERVED, lambda _: None).whole()  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.01)
        whole.cancel()
        await asyncio.wait((whole,))
        assert host.calls[-1].is_closed

    _run(work)


def test_a_prompt_that_cannot_be_described_is_the_requests_error() -> None:
    class Refusing(_Host):
        def say(self, request: Request) -> Sequence[StreamEvent]:
            return [RequestResult(number=0, error=UsageError("no template"))]

    async def work() -> None:
        with pytest.raises(UsageError, match="no template"):
            await describe(Refusing(), Request(messages=(_USER,)))  # type: ignore[arg-type]
        found = await describe(_Host(), Request(messages=(_USER,), adds_special=False))  # type: ignore[arg-type]
        assert found.text == "<user>Weather?"

    _run(work)


def test_errors_are_memfits_own() -> None:
    with pytest.raises(MemfitError):
        _whole(Ask(prompts=("a",), echo=True), _failing())
