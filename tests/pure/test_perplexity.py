"""Perplexity and KL divergence against sums of numpy's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memfit.engines.requests import LogitsBlock, Request, TokenScore
from memfit.errors import UsageError
from memfit.evaluate import perplexity as perplexities
from memfit.evaluate.perplexity import Tokens, divergences, perplexity, read_tokens, scoring_plan
from memfit.planner.request import Workload

_VOCABULARY = 11


class _Tokenizer:
    """A token for each letter; texts begin with `begin`."""

    def __init__(self, *begin: int) -> None:
        self._begin = list(begin)

    def tokenize(self, requests: Sequence[Request]) -> list[list[int] | None]:
        return [[*self._begin, *map(ord, str(one.prompt))] for one in requests]


class _Session:
    """Its logits depend on the token before, and on the model's `seed`."""

    def __init__(self, seed: int) -> None:
        self.logits = np.random.default_rng(seed).normal(size=(_VOCABULARY, _VOCABULARY)).astype(np.float32)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None: ...

    def score(
        self, tokens: Sequence[int], *, first: int, on_logits: Callable[[LogitsBlock], None] | None = None
    ) -> tuple[TokenScore, ...]:
        for start in range(first, len(tokens), 3):
            rows = self.logits[list(tokens[start - 1 : min(start + 3, len(tokens)) - 1])]
            if on_logits:
                on_logits(LogitsBlock(number=0, first=start, logits=memoryview(rows)))
        logprobs = _log_softmax(self.logits)
        return tuple(
            TokenScore(logprob=float(logprobs[before, token]), is_greedy=False)
            for before, token in zip(tokens[first - 1 : -1], tokens[first:], strict=True)
        )


def _log_softmax(rows: Any) -> Any:
    rows = rows.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def _chunks(count: int, context: int) -> Tokens:
    found = np.random.default_rng(5).integers(0, _VOCABULARY, size=(count, context))
    return Tokens(chunks=tuple(tuple(map(int, one)) for one in found), context=context)


def test_a_text_comes_in_chunks_that_begin_as_texts_do() -> None:
    found = read_tokens(_Tokenizer(1), "abcdefghijk", context=4, most=None)  # type: ignore[arg-type]
    assert found.chunks == ((1, *b"abc"), (1, *b"efg"), (1, *b"ijk"))
    assert (found.first, found.places) == (3, 1)
    plain = read_tokens(_Tokenizer(), "abcdefghijk", context=4, most=1)  # type: ignore[arg-type]
    assert plain.chunks == (tuple(b"abcd"),)


def test_a_text_of_less_than_a_chunk_is_refused() -> None:
    with pytest.raises(UsageError, match="the text has 4 tokens, and a chunk 8"):
        read_tokens(_Tokenizer(1), "abc", context=8, most=None)  # type: ignore[arg-type]


def test_perplexity_is_the_mean_surprise_of_second_halves() -> None:
    tokens, session = _chunks(3, 10), _Session(1)
    logprobs = _log_softmax(session.logits)
    surprises = np.array(
        [-logprobs[chunk[at - 1], chunk[at]] for chunk in tokens.chunks for at in range(6, 10)]
    )
    heard: list[int] = []
    found = perplexity(session, tokens, lambda done, _: heard.append(done))  # type: ignore[arg-type]
    assert found.value == pytest.approx(np.exp(surprises.mean()))
    assert found.tokens == 12
    assert found.error == pytest.approx(found.value * surprises.std() / np.sqrt(11))
    assert heard == [1, 2, 3]


@pytest.mark.parametrize("stored", [1 << 30, 1])
def test_divergence_is_summed_over_all_tokens(stored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks are kept at once."""
    monkeypatch.setattr(perplexities, "_STORED_BYTES", stored)
    tokens = _chunks(3, 10)
    sessions = {seed: _Session(seed) for seed in (1, 2)}
    sessions[2].logits[:, 3] = -17.0  # to the reference one token is next to impossible
    plans: dict[int, Any] = {
        seed: SimpleNamespace(seed=seed, engine="transformers", spec=SimpleNamespace(vocabulary=_VOCABULARY))
        for seed in (1, 2)
    }

    def load(plan: Any) -> Any:
        return sessions[plan.seed]

    theirs, ((ours, distance),) = divergences(load, plans[2], [plans[1]], tokens)
    model, reference = (_log_softmax(sessions[seed].logits) for seed in (1, 2))
    befores = [chunk[at - 1] for chunk in tokens.chunks for at in range(6, 10)]
    counted = reference > -16
    assert (counted.sum(1) == _VOCABULARY - 1).all()
    every = np.where(counted, np.exp(reference) * (reference - model), 0).sum(1)
    wanted = np.array([every[before] for before in befores])
    assert distance.mean == pytest.approx(wanted.mean(), rel=1e-5)
    assert distance.median == pytest.approx(np.median(wanted), rel=1e-5)
    assert distance.maximum == pytest.approx(wanted.max(), rel=1e-5)
    assert distance.percentile_99 == pytest.approx(np.percentile(wanted, 99), rel=1e-5)
    assert distance.error == pytest.approx(wanted.std() / np.sqrt(11), rel=1e-5)
    assert distance.same_top == np.mean([model[b].argmax() == reference[b].argmax() for b in befores])
    assert ours == perplexity(sessions[1], tokens)  # type: ignore[arg-type]
    assert theirs == perplexity(sessions[2], tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vocabulary", "context", "fitting", "outputs"),
    [
        (49_152, 512, 512, 256),
        (49_152, 4096, 512, 512),
        (49_152, 4096, 341, 341),
        (262_144, 512, 256, 256),
        (262_144, 512, 255, 64),
        (100, 4096, 512, 512),
        (100, 8, 16, 16),
    ],
)
def test_a_pass_has_as_many_logits_as_fit(vocabulary: int, context: int, fitting: int, outputs: int) -> None:
    def plan(workload: Workload) -> Any:
        return SimpleNamespace(outputs=workload.outputs, fits=workload.outputs <= fitting, streamed_bytes=0)

    planner: Any = SimpleNamespace(spec=SimpleNamespace(vocabulary=vocabulary), plan=plan)
    found: Any = scoring_plan(planner, Workload(context=context))
    assert found.outputs == outputs


def test_few_logits_where_the_model_streams() -> None:
    def plan(workload: Workload) -> Any:
        return SimpleNamespace(outputs=workload.outputs, fits=True, streamed_bytes=1)

    planner: Any = SimpleNamespace(spec=SimpleNamespace(vocabulary=10_000_000), plan=plan)
    found: Any = scoring_plan(planner, Workload(context=512))
    assert found.outputs == 16
