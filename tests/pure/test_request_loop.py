"""The request path in llama.cpp's worker, without the library: prefixes, cancellations, grammars."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from memfit.engines.channel import Aborted
from memfit.engines.llamacpp.request_loop import RequestLoop
from memfit.engines.requests import Request, Sampling, Score
from memfit.engines.threads import Threads

_VOCABULARY = 1000


class _Library:
    """Its functions do nothing; a batch is a namespace."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **values: SimpleNamespace(**values)


class _Cache:
    """A KV cache that is always able."""

    may_hold_nan = False

    def share(self, source: int, target: int, tokens: int) -> None: ...

    def cut(self, sequence: int, tokens: int) -> bool:
        return True

    def reaches(self, sequence: int, tokens: int) -> bool:
        return True

    def clear(self) -> None: ...


class _Model:
    """Always goes on with token 7; fails at the passes of these numbers."""

    vocabulary_size, trained_tokens, ubatch, is_aborted = _VOCABULARY, 4096, 32, False

    def __init__(self, parallel: int = 1) -> None:
        self.cache = _Cache()
        self.config = SimpleNamespace(parallel=parallel, kv_unified=True, streamed=(), outputs=0)
        self.threads = Threads(1, lambda _: None)
        self.context_tokens = self.sequence_tokens = 256
        self.computed: list[int] = []  # tokens of each pass
        self.failures: dict[int, Exception] = {}

    def decode_batch(self, batch: Any) -> None:
        if failure := self.failures.get(len(self.computed)):
            raise failure
        self.threads.look()
        self.computed.append(batch.n_tokens)

    def choose(self, *_: object) -> int:
        return 7

    def is_end(self, token: int) -> bool:
        return False

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return b"a"


class _Grammar:
    is_closed = is_complete = False

    def close(self) -> None:
        self.is_closed = True

    def forced(self) -> list[int]:
        return []


class _World:
    def __init__(self, parallel: int = 1) -> None:
        self.model = _Model(parallel)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.messages: deque[dict[str, Any]] = deque()
        self.grammar = _Grammar()
        grammars = SimpleNamespace(grammar=lambda _: self.grammar, has_room=True)
        channel: Any = SimpleNamespace(
            next_request=lambda _: self.messages.popleft() if self.messages else None,
            send=lambda event, **values: self.sent.append((event, values)),
            together=nullcontext,
        )
        model: Any = self.model
        self.loop = RequestLoop(model, _Library(), channel, grammars)  # type: ignore[arg-type]

    def run(self, *requests: Request) -> dict[str, Any]:
        self.sent.clear()
        for one in requests:
            self.messages.append({"do": "add", "request": one.to_json(), "sends_text": False})
        self.messages.append({"do": "end"})
        return self.loop.run(0.0)

    def answers(self) -> dict[int, dict[str, Any]]:
        return {values["number"]: values["completion"] for event, values in self.sent if event == "answer"}


def _request(tokens: list[int], *, number: int = 0, most: int = 4, schema: Any = None) -> Request:
    sampling = Sampling(max_tokens=most, temperature=0)
    return Request(number=number, prompt=tuple(tokens), sampling=sampling, schema=schema)


def test_a_next_stream_computes_only_what_is_new() -> None:
    world = _World()
    prompt = list(range(100, 150))
    assert world.run(_request(prompt))["totals"]["prompt_tokens"] == 50
    found = world.run(_request([*prompt, 7, 7, 7, 1, 2, 3]))
    # The first answer's last token was never computed.
    assert found["totals"]["prompt_tokens"] == 3 and found["totals"]["shared_tokens"] == 53
    speed = world.answers()[0]["speed"]
    assert speed["prompt_tokens"] == 3 and speed["generated_tokens"] == 3


def test_a_batch_and_the_chat_after_it_share_a_beginning() -> None:
    world = _World(parallel=1)
    beginning = list(range(100, 140))
    world.run(*(_request([*beginning, number], number=number) for number in range(3)))
    assert set(world.answers()) == {0, 1, 2}
    assert world.run(_request([*beginning, 9, 9]))["totals"]["shared_tokens"] == 40


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_cancelled_answer_keeps_what_was_computed(at: int) -> None:
    """Whether it was cancelled in its prompt, which takes two passes, or in its answer."""
    world = _World()
    prompt = list(range(100, 150))
    world.model.failures = {at: Aborted()}
    assert world.run(_request(prompt, most=100))["cancelled"] is True
    answer = world.answers()[0]
    assert answer["finish_reason"] == "cancelled" and answer["completion_tokens"] == max(0, at - 1)
    world.model.failures = {}
    computed = sum(world.model.computed)
    found = world.run(_request([*prompt, *[7] * 10]))
    assert found["totals"]["shared_tokens"] == computed
    assert found["totals"]["prompt_tokens"] == 60 - computed


def test_a_cancelled_stream_answers_those_that_wait_too() -> None:
    world = _World()
    world.model.failures = {2: Aborted()}
    world.run(*(_request([number, 5, 6], number=number, most=100) for number in range(3)))
    assert {one["finish_reason"] for one in world.answers().values()} == {"cancelled"}
    assert set(world.answers()) == {0, 1, 2}


@pytest.mark.parametrize("failure", [Aborted(), RuntimeError()])
def test_a_grammar_is_given_back_when_its_prompt_ends_early(failure: Exception) -> None:
    world = _World()
    world.model.failures = {0: failure}
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError):
            world.run(_request([1, 2, 3], schema={"type": "object"}))
    else:
        world.run(_request([1, 2, 3], schema={"type": "object"}))
    assert world.grammar.is_closed


def test_after_a_failure_nothing_of_the_cache_is_used() -> None:
    world = _World()
    prompt = list(range(100, 150))
    world.model.failures = {1: RuntimeError()}
    with pytest.raises(RuntimeError):
        world.run(_request(prompt))
    world.model.failures = {}
    assert world.run(_request(prompt))["totals"]["shared_tokens"] == 0


def test_a_dropped_request_is_not_answered_and_leaves_its_prefix() -> None:
    world = _World()
    prompt = list(range(100, 130))
    one = _request(prompt, most=200)
    world.messages.append({"do": "add", "request": one.to_json(), "sends_text": False})
    passes = 0

    def next_request(_: float) -> dict[str, Any] | None:
        nonlocal passes
        passes += 1
        if passes == 6:
            world.messages.append({"do": "drop", "number": 0})
        if passes == 8:
            assert world.sent[-1][0] == "status", "it is told at once, though nothing is computed any more"
            told.update(world.sent[-1][1]["totals"])
            world.messages.append({"do": "end"})
        return world.messages.popleft() if world.messages else None

    told: dict[str, int] = {}
    world.loop._channel.next_request = next_request  # type: ignore[method-assign]
    world.loop.run(0.0)
    assert world.answers() == {}
    assert told["prompt_tokens"] == 30 and 0 < told["generated_tokens"] < 6
    world.loop._channel.next_request = lambda _: world.messages.popleft() if world.messages else None  # type: ignore[method-assign]
    assert world.run(_request([*prompt, 3]))["totals"]["shared_tokens"] == 30


def test_a_token_that_is_not_there_fails_alone() -> None:
    world = _World()
    world.run(_request([1, _VOCABULARY], number=0), _request([1, 2], number=1))
    assert set(world.answers()) == {1}
    (failed,) = [values for event, values in world.sent if event == "failed"]
    assert failed["number"] == 0


def test_every_token_is_scored_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    world = _World()
    tokens = [5, 6, 5, 6, 7]
    rows = numpy.full((1, _VOCABULARY), -1e9, dtype=numpy.float32)
    rows[0, 5:7] = 0.0, numpy.log(3)  # a quarter, three quarters
    monkeypatch.setattr(world.model, "logits", lambda first, count: rows, raising=False)
    request = Request(prompt=tuple(tokens), score=Score(first=2, top=1))
    world.run(request)
    (found,) = [values["scores"] for event, values in world.sent if event == "scores"]
    assert [round(2.718281828 ** one[0], 4) for one in found] == [0.25, 0.75, 0.0]
    assert [one[1] for one in found] == [False, True, False]
    assert all(one[2][0][0] == 6 for one in found)
    # The context before the first one is reused.
    world.run(Request(prompt=(*tokens[:3], 9), score=Score(first=3)))
    assert world.sent[-1][0] == "status" and world.model.computed[-1] == 1
