"""Matrices held as BF16, on a real model: the very numbers that a file of BF16 has, within the budget."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

import memfit
from memfit.engines.requests import Request, RequestResult
from memfit.planner.llamacpp.dequantizing import may_dequantize
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.streaming import held_bytes

pytestmark = pytest.mark.engine

_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
)
_GREEDY = memfit.Sampling(temperature=0, max_tokens=24)


def _plan(model: str, ram: str, repack: str) -> LlamaPlan:
    workload = memfit.Workload(context=1024, parallel=4, threads=2, repack=repack)
    return memfit.plan(model, budget=memfit.Budget(ram=ram), workload=workload)


def _texts(plan: LlamaPlan) -> list[str]:
    with memfit.load(plan) as session:
        texts = [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS]
        report = session.report()
    assert report.within_budget and abs(report.tiers[0].error_bytes or 0) <= 16 << 20
    return texts


def test_the_text_is_that_of_a_file_of_bf16(demo: str, tmp_path: Path, benchmarks: None) -> None:
    """Whatever this CPU's kernels are best at: the plan is told."""
    whole = _plan(demo, "700MiB", "off")
    names = tuple(one.name for one in whole.spec.tensors if may_dequantize(one, whole.spec))
    config = replace(whole.config, load_mode="own", dequantized=names)
    tier = replace(whole.ram, parts={**whole.ram.parts, "weights": held_bytes(whole.spec, config)})
    (file,) = importlib.import_module("rewrite").rewrite(demo, tmp_path / "bf16.gguf", kind="BF16")
    texts = _texts(replace(whole, config=config, tiers=(tier,)))
    assert texts == _texts(_plan(str(file), "700MiB", "off"))
    assert len(set(texts)) == 3
    file.unlink()


def test_a_batch_holds_its_budget_with_whatever_was_chosen(demo: str) -> None:
    for ram in ("260MiB", "330MiB", "600MiB"):
        plan = _plan(demo, ram, "auto")
        with memfit.load(plan) as session:
            batch = session.open()
            for number, prompt in enumerate(_PROMPTS):
                batch.add(Request(number=number, prompt=prompt, sampling=_GREEDY))
            batch.end()
            answers = [one for one in batch.events() if isinstance(one, RequestResult)]
            report = session.report()
        assert len(answers) == 3 and all(one.completion for one in answers)
        assert report.within_budget and abs(report.tiers[0].error_bytes or 0) <= 16 << 20
