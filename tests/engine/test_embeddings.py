"""Embeddings and scores of the real engine: encoders, a reranker, and a decoder that embeds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.engines.requests import Request, RequestResult
from memfit.errors import ModelError, UsageError
from memfit.planner.request import Workload
from memfit.units import MIB

pytestmark = pytest.mark.engine

_TEXTS = ("a fox", "the quick brown fox jumps over the lazy dog", "what is a dog?", "1, 2, 3")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        made = importlib.import_module("encoders")
    room = tmp_path_factory.mktemp("encoders")
    yield {
        name: made.write_encoder(room / f"{name}.gguf", pooling=made.PoolingType[name])
        for name in ("MEAN", "CLS", "RANK")
    }


def _embedded(path: str | Path, texts: Sequence[str], **workload: Any) -> list[Any]:
    with memfit.load(str(path), workload=Workload(threads=1, **workload)) as session:
        found = session.embed(texts)
        assert session.report().within_budget
    return found


def _are_close(one: Sequence[float], other: Sequence[float]) -> bool:
    """As far as kernels agree, which are others for many tokens than for few."""
    product = sum(left * right for left, right in zip(one, other, strict=True))
    lengths = math.hypot(*one), math.hypot(*other)
    return product / lengths[0] / lengths[1] > 0.99999 and math.isclose(*lengths, rel_tol=1e-3)


def test_texts_together_are_embedded_as_alone(encoders: dict[str, Path]) -> None:
    together = _embedded(encoders["MEAN"], _TEXTS)
    assert all(one.values.shape == (1, 64) for one in together)
    with memfit.load(str(encoders["MEAN"]), workload=Workload(threads=1)) as session:
        for text, beside in zip(_TEXTS, together, strict=True):
            (alone,) = session.embed([text])
            assert _are_close(alone.vector, beside.vector)
            assert alone.prompt_tokens == beside.prompt_tokens
    assert not _are_close(together[0].vector, together[1].vector)


def test_the_poolings_of_one_model_agree(encoders: dict[str, Path]) -> None:
    """What each makes of the rows that there are without pooling."""
    path, (text, *_) = encoders["MEAN"], _TEXTS
    (every,) = _embedded(path, [text], pooling="none")
    rows = every.values.tolist()
    assert len(rows) == every.prompt_tokens
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    for pooling, expected in (("mean", mean), (None, mean), ("cls", rows[0]), ("last", rows[-1])):
        (one,) = _embedded(path, [text], pooling=pooling)
        assert _are_close(one.vector, expected), pooling


def test_more_texts_than_a_pass_takes(encoders: dict[str, Path]) -> None:
    texts = [f"{number} dogs and {number % 7} foxes" for number in range(200)]
    found = _embedded(encoders["MEAN"], texts)
    assert len(found) == 200
    assert _are_close(found[3].vector, _embedded(encoders["MEAN"], [texts[3]])[0].vector)


def test_a_text_that_is_too_long_fails_alone(encoders: dict[str, Path]) -> None:
    with memfit.load(str(encoders["MEAN"]), workload=Workload(threads=1)) as session:
        with pytest.raises(UsageError, match="it has 502 tokens, the model reads at most 128"):
            session.embed(["a" * 500])
        stream = session.open()
        for number, text in enumerate(("fox", "a" * 500, "dog")):
            stream.add(Request(number=number, prompt=text, embed=True))
        stream.end()
        results = {one.number: one for one in stream.events() if isinstance(one, RequestResult)}
        assert results[0].embedding and results[2].embedding
        assert isinstance(results[1].error, UsageError)
        assert stream.totals.prompt_tokens == sum(results[one].embedding.prompt_tokens for one in (0, 2))  # type: ignore[union-attr]


def test_a_reranker_scores_a_query_and_each_document(encoders: dict[str, Path]) -> None:
    """Joined as llama.cpp's server joins them: [CLS] query [SEP] document, for this vocabulary."""
    with memfit.load(str(encoders["RANK"]), workload=Workload(threads=1)) as session:
        scores = session.rank("what is a fox", ["a dog", "an animal", "a dog"])
        assert scores[0] == pytest.approx(scores[2]) and scores[0] != pytest.approx(scores[1])
        (whole,) = session.embed(["what is a fox"])
        assert whole.values.shape == (1, 1)


@pytest.mark.parametrize("pooling", ["last", "mean", "none"])
def test_a_decoder_embeds_inside_its_plan(demo: str, pooling: str) -> None:
    found = _embedded(demo, _TEXTS, context=512, embeds=True, pooling=pooling)
    assert [one.values.shape for one in found] == [
        (one.prompt_tokens if pooling == "none" else 1, 576) for one in found
    ]


def test_a_long_text_in_parts_is_as_in_one_pass(demo: str) -> None:
    """Causal attention, and the last token tells: 900 tokens by passes of 512 and of 1024."""
    text = "The quick brown fox jumps over the lazy dog. " * 85
    plans = [
        memfit.plan(
            demo,
            workload=Workload(context=1024, embeds=True, pooling="last", threads=2),
            conditions=memfit.Conditions(ubatch=ubatch),
        )
        for ubatch in (512, 1024)
    ]
    found = []
    for plan in plans:
        assert plan.sequence_context == 1024
        with memfit.load(plan) as session:
            found += session.embed([text])
    assert found[0].prompt_tokens > 800
    assert _are_close(*(one.vector for one in found))


def test_memory_is_as_planned_with_a_full_pass(encoders: dict[str, Path], demo: str) -> None:
    """Rows of logits and embeddings for every token, which the engine allocates with the first such pass."""
    for path, workload in (
        (encoders["MEAN"], Workload(threads=2)),
        (demo, Workload(embeds=True, pooling="mean", context=512, threads=2)),
    ):
        with memfit.load(str(path), workload=workload) as session:
            session.embed(["a dog and a fox " * 6] * 40)
            (tier,) = session.report().tiers
        assert tier.within_budget
        assert tier.error_bytes is not None and abs(tier.error_bytes) <= 4 * MIB, tier


def test_sessions_do_what_they_were_planned_for(encoders: dict[str, Path], demo: str) -> None:
    with memfit.load(str(encoders["MEAN"]), workload=Workload(threads=1)) as session:
        with pytest.raises(UsageError, match="generates nothing"):
            session.generate("x")
        with pytest.raises(UsageError, match="generates nothing"):
            session.measure(8, 8)
    with (
        memfit.load(demo, workload=Workload(threads=1, context=256)) as session,
        pytest.raises(UsageError, match="makes no embeddings"),
    ):
        session.embed(["x"])


def test_a_plan_that_must_write_refuses_an_encoder(encoders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"an encoder: .* memfit serve serves it"):
        memfit.plan(str(encoders["MEAN"]), writes=True)


def test_a_dropped_text_is_not_answered(encoders: dict[str, Path]) -> None:
    with memfit.load(str(encoders["MEAN"]), workload=Workload(threads=1)) as session:
        stream = session.open()
        for number in range(300):
            stream.add(Request(number=number, prompt="dog " * 30, embed=True))
        stream.drop(299)
        stream.end()
        numbers = {one.number for one in stream.events() if isinstance(one, RequestResult)}
        assert numbers == set(range(299))


def test_a_pass_of_any_length_is_divided_evenly(encoders: dict[str, Path]) -> None:
    """The engine aborts where its ubatch is no multiple of its sequences."""
    for longest, at_once in ((60, 60), (62, 62), (100, 50), (127, 1)):
        plan = memfit.plan(str(encoders["MEAN"]), workload=Workload(context=longest, threads=1, embeds=True))
        assert (plan.config.ubatch, plan.parallel) == (longest, at_once)  # type: ignore[attr-defined]
    assert len(_embedded(encoders["MEAN"], _TEXTS, context=100)) == len(_TEXTS)
