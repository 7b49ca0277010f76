"""What the KV cache keeps: a chat's next turn computes only what is new in it, whatever came between, in both
engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import memfit
from memfit.engines.requests import Request, RequestResult
from memfit.units import GIB

pytestmark = pytest.mark.engine
_GREEDY = memfit.Sampling(temperature=0, max_tokens=6)
_QUESTION = [{"role": "user", "content": "Name the largest city of Italy, and nothing else."}]


@pytest.fixture(scope="module", params=["llamacpp", "llamacpp of four sequences", "transformers"])
def session(request: pytest.FixtureRequest, demo: str, llama: Path) -> Iterator[memfit.Session]:
    parallel = 4 if "four" in request.param else 1
    model = str(llama) if request.param == "transformers" else demo
    workload = memfit.Workload(context=512 * parallel, parallel=parallel)
    with memfit.load(model, budget=memfit.Budget(ram=4 * GIB), workload=workload) as found:
        yield found


def _new_tokens(session: memfit.Session, first: memfit.Completion) -> int:
    """Computed in a second turn beyond its own: the last one of the answer, which nothing followed, and where
    a random model's answer is other tokens when it is read as a text."""
    history = [*_QUESTION, {"role": "assistant", "content": first.text}]
    second = session.chat([*history, {"role": "user", "content": "And of France?"}], _GREEDY)
    assert second.prompt_tokens > first.prompt_tokens + first.completion_tokens
    return second.speed.prompt_tokens - (second.prompt_tokens - first.prompt_tokens - first.completion_tokens)


def test_a_next_turn(session: memfit.Session) -> None:
    assert 0 <= _new_tokens(session, session.chat(_QUESTION, _GREEDY)) <= 6


def test_after_a_cancelled_answer(session: memfit.Session) -> None:
    first = session.chat(_QUESTION, _GREEDY)
    for _ in session.stream(_QUESTION, memfit.Sampling(temperature=0, max_tokens=200)):
        break
    again = session.chat(_QUESTION, _GREEDY)
    assert again.text == first.text and again.speed.prompt_tokens == 1
    assert 0 <= _new_tokens(session, again) <= 6


def test_after_a_batch_with_the_same_beginning(session: memfit.Session) -> None:
    first = session.chat(_QUESTION, _GREEDY)
    stream = session.open()
    for number in range(5):
        words = [{**_QUESTION[0], "content": f"{_QUESTION[0]['content']} Number {number}."}]
        stream.add(Request(number=number, messages=tuple(words), sampling=_GREEDY))
    stream.end()
    results = [event for event in stream.events() if isinstance(event, RequestResult)]
    assert sorted(one.number for one in results) == [0, 1, 2, 3, 4]
    assert stream.totals.shared_tokens > 4 * 0.5 * first.prompt_tokens
    again = session.chat(_QUESTION, _GREEDY)
    assert again.text == first.text
    # What the batch's questions begin with, which is all but the template's end.
    assert again.speed.prompt_tokens < 0.35 * again.prompt_tokens
    assert 0 <= _new_tokens(session, again) <= 6
