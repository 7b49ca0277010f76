"""Matrices in other forms than the engine's, on a real model: as good numbers, and the bytes of the plan."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.errors import EngineError
from memfit.hardware.probe import probe
from memfit.planner.llamacpp.forms import may_widen
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.streaming import is_dense_matrix
from memfit.units import MIB

pytestmark = pytest.mark.engine

_TOKENS = [2, *range(500, 756)]


def _plan(model: str) -> LlamaPlan:
    workload = memfit.Workload(context=512, threads=2, repack="on", outputs=16)
    return memfit.plan(model, budget=memfit.Budget(ram="1GiB"), workload=workload)


def _in_forms(plan: LlamaPlan, form: str) -> LlamaPlan:
    """Whether this CPU gains by it or not; with the bytes that the oracle tells."""
    names = tuple(
        one.name
        for one in plan.spec.tensors
        if (may_widen(one) if form == "widened" else is_dense_matrix(one) and one.type == "Q4_K")
    )
    assert names
    config = replace(plan.config, **{form: names})
    baseline = LlamaCalibration(cpu_model=probe().cpu.model, say=print).baseline(count_parent=True)
    with LlamaOracle(plan.spec, baseline, repack_modes=(True,)) as oracle:
        try:
            before, after = oracle.ask(plan.config), oracle.ask(config)
        except EngineError as error:
            pytest.skip(str(error))
    added = after.weights_bytes - before.weights_bytes
    computed = [sum(node.operations for node in one.prompt.operations) for one in (before, after)]
    assert computed[0] == computed[1]  # and so does the prediction
    moved = sum(one.size_bytes for one in plan.spec.tensors if one.name in names)
    # AMX has a layout of its own, which takes more; other CPUs' takes what the plain one does.
    assert added > 0.3 * moved if form == "widened" else -0.5 * moved < added <= 0
    parts = {**plan.ram.parts, "weights": plan.ram.weights_bytes + added}
    return replace(plan, config=config, tiers=(replace(plan.ram, parts=parts),))


@pytest.mark.parametrize("form", ["widened", "plain"])
def test_the_numbers_and_the_bytes(gemma: str, form: str) -> None:
    plan = _plan(gemma)
    scores = []
    for one in (plan, _in_forms(plan, form)):
        with memfit.load(one) as session:
            scores.append([score.logprob for score in session.score(_TOKENS, first=1)])
            report = session.report()
        assert report.within_budget and abs(report.tiers[0].error_bytes or 0) <= 8 * MIB
    assert scores[0] != scores[1]  # other kernels
    assert mean(abs(one - two) for one, two in zip(*scores, strict=True)) < 0.1
