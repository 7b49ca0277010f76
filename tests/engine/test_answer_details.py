"""What a server asks of an answer beside its text: tokens, probabilities, grammars, biases, progress."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

import memfit
from memfit.engines.requests import (
    Begun,
    Completion,
    Idle,
    Progress,
    Request,
    RequestResult,
    Sampling,
    TemplateOptions,
    TextDelta,
)
from memfit.engines.session import Session
from memfit.errors import ContextExceededError, MemfitError, UsageError

pytestmark = pytest.mark.engine

_GREEDY = Sampling(temperature=0, max_tokens=6)
_STORY = "Once upon a time there was"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    workload = memfit.Workload(context=512, parallel=2, grammars=True, outputs=16)
    with memfit.load("demo", workload=workload) as loaded:
        yield loaded


def _events(session: Session, **asked: Any) -> list[Any]:
    stream = session.open()
    stream.add(Request(number=1, **asked), sends_text=True)
    stream.end()
    return [event for event in stream.events() if not isinstance(event, Idle)]


def _completion(events: list[Any]) -> Completion:
    last = events[-1]
    assert isinstance(last, RequestResult)
    if last.error:
        raise last.error
    assert last.completion
    return last.completion


def test_an_answer_names_its_tokens_with_the_models_probabilities(session: Session) -> None:
    events = _events(session, prompt=_STORY, sampling=_GREEDY, logprobs=3)
    tokens = [token for event in events if isinstance(event, TextDelta) for token in event.tokens]
    completion = _completion(events)
    assert b"".join(one.piece for one in tokens).decode() == completion.text
    assert len(tokens) == completion.completion_tokens == 6
    for one in tokens:  # greedy: the likeliest is chosen, and the others follow by their probability
        assert one.top[0][0] == one.token and one.top[0][2] == one.logprob
        assert sorted((chance for *_, chance in one.top), reverse=True) == [chance for *_, chance in one.top]
    prompt = _events(session, prompt=_STORY, describes=True)[-1].prompt
    whole = (*prompt.tokens, *(one.token for one in tokens))
    scored = session.score(whole, first=len(prompt.tokens))
    for one, score in zip(tokens, scored, strict=True):
        assert one.logprob == pytest.approx(score.logprob, abs=0.05)


def test_probabilities_after_sampling_are_those_of_what_it_leaves(session: Session) -> None:
    sampling = Sampling(temperature=1.0, top_k=4, top_p=1.0, min_p=0.0, max_tokens=3, seed=7)
    events = _events(session, prompt=_STORY, sampling=sampling, logprobs=10, probabilities_after=True)
    tokens = [token for event in events if isinstance(event, TextDelta) for token in event.tokens]
    assert len(tokens) == 3
    for one in tokens:
        assert len(one.top) == 4
        assert math.fsum(math.exp(chance) for *_, chance in one.top) == pytest.approx(1, abs=1e-4)
        assert one.token in [token for token, *_ in one.top]


def test_a_written_grammar_is_followed(session: Session) -> None:
    events = _events(session, prompt="A", grammar='root ::= "ab"{3} ("!" | "?")')
    assert _completion(events).text in ("ababab!", "ababab?")


@pytest.mark.parametrize("grammar", ["root ::= (", "no grammar at all", 'root ::= missing "a"'])
def test_what_is_no_grammar_is_refused_by_that_field(session: Session, grammar: str) -> None:
    with pytest.raises(UsageError, match="grammar") as caught:
        _completion(_events(session, prompt="A", grammar=grammar))
    assert caught.value.field == "grammar"


def test_a_bias_bans_a_token_and_a_text(session: Session) -> None:
    plain = _events(session, prompt=_STORY, sampling=_GREEDY, names_tokens=True)
    first = next(event.tokens[0] for event in plain if isinstance(event, TextDelta))
    for which in (first.token, first.piece.decode()):
        sampling = Sampling(temperature=0, max_tokens=1, logit_bias=((which, -100.0),))
        events = _events(session, prompt=_STORY, sampling=sampling, names_tokens=True)
        assert next(event.tokens[0].token for event in events if isinstance(event, TextDelta)) != first.token
    with pytest.raises(UsageError, match="there is no token 1000000"):
        _completion(_events(session, prompt="A", sampling=Sampling(logit_bias=((1_000_000, 1.0),))))


def test_an_answer_goes_on_where_the_model_would_end(session: Session) -> None:
    question = ({"role": "user", "content": "Say only: yes"},)
    ends = _completion(_events(session, messages=question, sampling=Sampling(temperature=0, max_tokens=60)))
    goes_on = Sampling(temperature=0, max_tokens=60, ignore_eos=True)
    on = _completion(_events(session, messages=question, sampling=goes_on))
    assert ends.finish_reason == "stop"
    assert (on.finish_reason, on.completion_tokens) == ("length", 60)


_SAMPLERS: list[dict[str, Any]] = [
    {"repeat_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.5, "repeat_last_n": -1},
    {"dry_multiplier": 0.8, "typical_p": 0.9, "top_n_sigma": 2.0},
    {"xtc_probability": 0.5, "dynatemp_range": 0.3},
    {"mirostat": 1},
    {"mirostat": 2, "mirostat_tau": 4.0},
]


def test_every_sampler_chooses_the_same_by_the_same_seed() -> None:
    """In two sessions: where the cache holds a prompt moves rounding, which may move a choice."""
    found = []
    for _ in range(2):
        with memfit.load("demo", workload=memfit.Workload(context=512)) as session:
            asked = [Sampling(max_tokens=8, seed=3, **settings) for settings in _SAMPLERS]
            answers = [_completion(_events(session, prompt=_STORY, sampling=one)) for one in asked]
        found.append([answer.text for answer in answers])
    assert found[0] == found[1] and all(found[0])


def test_a_prompt_may_mix_texts_and_tokens_and_is_shown_as_it_is_read(session: Session) -> None:
    hello = _events(session, prompt="hello", describes=True)[-1].prompt
    mixed = _events(session, prompt=("hello", *hello.tokens), describes=True)[-1].prompt
    assert mixed.tokens == hello.tokens * 2
    assert mixed.text == "hellohello" == b"".join(mixed.pieces).decode()


def test_a_template_is_given_tools_and_may_leave_the_answers_beginning_to_the_last_message(
    session: Session,
) -> None:
    messages = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, my"})
    options = TemplateOptions(continues=True)
    prompt = _events(session, messages=messages, template=options, describes=True)[-1].prompt
    assert prompt.text.endswith("<|im_start|>assistant\nWell, my")


def test_beginning_and_progress_are_told(session: Session) -> None:
    prompt = "A quite unusual sentence about kettles, tables and chairs. " * 6
    asked = {"prompt": prompt, "sampling": _GREEDY, "tells_beginning": True, "tells_progress": True}
    for _ in range(2):
        events = _events(session, **asked)
        begun = next(event for event in events if isinstance(event, Begun))
        told = [event for event in events if isinstance(event, Progress)]
        assert told[0].processed == told[0].shared
        assert told[-1].processed == told[-1].total == begun.prompt_tokens
    assert told[0].shared == begun.prompt_tokens - 1  # the second time the cache has it


def test_a_context_that_is_exceeded_says_both_numbers(session: Session) -> None:
    with pytest.raises(ContextExceededError) as caught:
        _completion(_events(session, prompt="word " * 600))
    error: MemfitError = caught.value
    assert error.needed == 512 and error.got > 600 and f"{error.got}" in str(error)
