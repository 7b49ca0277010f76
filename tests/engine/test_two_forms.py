"""Matrices in two forms, on a real model: each pass has the numbers of its own, and the bytes are planned."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

import memfit
from memfit.planner.llamacpp.dequantizing import may_dequantize
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.streaming import held_bytes, is_dense_matrix
from memfit.units import MIB

pytestmark = pytest.mark.engine

_TOKENS = [2, *range(500, 756)]


def _plan(model: str, outputs: int) -> LlamaPlan:
    """Scores are computed `outputs` tokens a pass."""
    workload = memfit.Workload(context=512, threads=2, repack="off", outputs=outputs)
    return memfit.plan(model, budget=memfit.Budget(ram="2GiB"), workload=workload)


def _twofold(plan: LlamaPlan) -> LlamaPlan:
    # A type of which every CPU's kernels have another form, from AVX2 on.
    names = tuple(one.name for one in plan.spec.tensors if is_dense_matrix(one) and one.type == "Q4_K")
    assert names
    return _with(plan, twofold=names)


def _with(plan: LlamaPlan, **forms: tuple[str, ...]) -> LlamaPlan:
    config = replace(plan.config, load_mode="own", **forms)
    tier = replace(plan.ram, parts={**plan.ram.parts, "weights": held_bytes(plan.spec, config)})
    return replace(plan, config=config, tiers=(tier,))


def _scores(plan: LlamaPlan) -> list[float]:
    with memfit.load(plan) as session:
        found = [one.logprob for one in session.score(_TOKENS, first=1)]
        report = session.report()
    assert report.within_budget and abs(report.tiers[0].error_bytes or 0) <= 16 * MIB
    return found


def test_a_prompt_takes_the_plain_form(gemma: str) -> None:
    """Whether this CPU gains by it or not: the plan is told."""
    plan = _plan(gemma, 256)  # as many as there are scores, which fill the memory that is planned for them
    assert _scores(_twofold(plan)) == _scores(plan)


def test_few_tokens_take_the_other_form(gemma: str) -> None:
    """Which is another one, and as right."""
    plan = _plan(gemma, 16)
    plain, other = _scores(plan), _scores(_twofold(plan))
    assert other != plain
    assert mean(abs(one - two) for one, two in zip(plain, other, strict=True)) < 0.1


def test_bf16_is_for_prompts_alone(gemma: str) -> None:
    many, few = _plan(gemma, 256), _plan(gemma, 16)
    names = tuple(
        one.name for one in many.spec.tensors if is_dense_matrix(one) and may_dequantize(one, many.spec)
    )
    both = {"prompt_dequantized": names}
    assert _scores(_with(many, **both)) == _scores(_with(many, dequantized=names))
    assert _scores(_with(few, **both)) == _scores(few)
