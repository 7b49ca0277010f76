"""How many sequences a job runs at once, against speeds and sizes that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import make_plan_value, make_tier

from memfit.batch.input import InputSizes
from memfit.batch.job_plan import lengths_in_tokens
from memfit.engines.requests import Request
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.parallel import Lengths, plan_parallel, request_seconds
from memfit.planner.request import Workload
from memfit.planner.speed import Rate
from memfit.units import MIB

_LENGTHS = Lengths(requests=1000, prompt=100.0, answer=50.0, longest=400)


class Maker:
    """Plans with a pass of 0.1 s and 0.01 more for each sequence; 1 MiB of RAM for 10 cells."""

    def __init__(self, *, budget_mib: int = 10_000, gain: bool = True) -> None:
        self.asked: list[Workload] = []
        self._budget, self._gain = budget_mib * MIB, gain

    def __call__(self, workload: Workload) -> LlamaPlan:
        self.asked.append(workload)
        plan = make_plan_value(tier=make_tier(0, (workload.context or 0) // 10 * MIB, 0, 0, self._budget))
        together = workload.parallel / (0.1 + 0.01 * workload.parallel) if self._gain else 9.0
        rate = Rate(value=together, low=together, high=together)
        return replace(
            plan,
            workload=workload,
            context=workload.context or 0,
            config=replace(plan.config, parallel=workload.parallel, kv_unified=workload.kv_unified),
            prediction=replace(plan.prediction, together=rate),
        )


def test_as_many_as_pay_off() -> None:
    make = Maker(budget_mib=1600)
    plan = plan_parallel(_LENGTHS, Workload(), make)
    assert [one.parallel for one in make.asked] == [32, 16, 32]
    assert plan.config.parallel == 32 and plan.workload.kv_unified
    # A tenth more than 32 * (100 + 50) cells, rounded up to 256.
    assert plan.workload.context == 5376
    assert (plan.workload.prompt_tokens, plan.workload.generated_tokens) == (100, 50)
    assert request_seconds(plan, _LENGTHS) == pytest.approx(100 / 200 + 50 / (32 / 0.42))


def test_each_sequence_has_its_own_part_where_there_is_memory() -> None:
    """The longest request's 400 tokens are 2 * 256, and 32 times that takes 1,638 MiB."""
    plan = plan_parallel(_LENGTHS, Workload(), Maker(budget_mib=1638))
    assert not plan.workload.kv_unified and plan.workload.context == 32 * 512
    assert plan_parallel(_LENGTHS, Workload(), Maker(budget_mib=1637)).workload.kv_unified
    asked = Workload(context=2047)  # less than 4 * 512
    assert plan_parallel(_LENGTHS, asked, Maker(), 4).workload.kv_unified
    asked = Workload(context=2048)
    assert plan_parallel(_LENGTHS, asked, Maker(), 4).workload == replace(
        asked, parallel=4, kv_unified=False, prompt_tokens=100, generated_tokens=50
    )


def test_no_more_than_fit() -> None:
    plan = plan_parallel(_LENGTHS, Workload(), Maker(budget_mib=200))  # 2,000 cells
    assert plan.config.parallel == 8 and plan.fits  # 16 want 2,640


def test_one_request_that_is_too_long_does_not_keep_the_others_waiting() -> None:
    """5,000 cells fit: not the 20 * 256 of 5,000 tokens, but those of half as many."""
    lengths = replace(_LENGTHS, longest=40_000)
    plan = plan_parallel(lengths, Workload(), Maker(budget_mib=500))
    assert plan.fits and plan.config.parallel == 16 and plan.context == 2816
    assert plan.why[-1] == "requests of more than 2816 tokens fail: the longest, of 40000, does not fit"
    asked = plan_parallel(lengths, Workload(context=6000), Maker(budget_mib=500))
    assert not asked.fits


def test_more_where_it_makes_no_difference_and_one_where_nothing_fits() -> None:
    assert plan_parallel(_LENGTHS, Workload(), Maker(gain=False)).config.parallel == 32
    plan = plan_parallel(_LENGTHS, Workload(), Maker(budget_mib=1))
    assert plan.config.parallel == 1 and not plan.fits


def test_no_more_than_there_are_requests() -> None:
    plan = plan_parallel(replace(_LENGTHS, requests=3), Workload(), Maker())
    assert plan.config.parallel == 3
    assert plan.workload.context == 3 * 512


def test_what_was_asked_for_is_obeyed() -> None:
    make = Maker()
    plan = plan_parallel(_LENGTHS, Workload(context=3000), make, 5)
    assert {one.parallel for one in make.asked} == {5} and plan.workload.context == 3000
    assert plan_parallel(_LENGTHS, Workload(), Maker(), 1).config.parallel == 1
    plan = plan_parallel(_LENGTHS, Workload(context=700), Maker())
    assert plan.config.parallel == 4  # 8 * 150 tokens have no room in 700


def test_tokens_are_estimated_by_those_counted() -> None:
    found = InputSizes(
        count=100,
        mean_prompt_bytes=300.0,
        largest_prompt_bytes=2000,
        with_max_tokens=40,
        mean_max_tokens=20.0,
        largest_max_tokens=90,
    )
    sample = [
        Request(number=1, prompt="a" * 100),
        Request(number=2, messages=({"role": "user", "content": "b" * 300},)),
        Request(number=3, prompt="c"),
    ]
    lengths = lengths_in_tokens(found, sample, [30, 70, None], 64)
    # 10 tokens and a fifth for each byte; 40 answers of 20 tokens and 60 of 64.
    assert lengths == Lengths(requests=100, prompt=70.0, answer=46.4, longest=round(410 * 1.25) + 90 + 1)
    # The longest is in the sample: 400 tokens for 2,000 bytes where the others have 50 for 200.
    longest = Request(number=4, prompt="d" * 2000)
    lengths = lengths_in_tokens(found, [*sample[:3], longest], [30, 70, None, 400], 64)
    assert lengths.longest == 500 + 90 + 1
    assert lengths.prompt == pytest.approx(50 + (300 - 200) * 350 / 1800)
    # One of 1,000 tokens would leave less than none for the template: it says nothing of the others.
    lengths = lengths_in_tokens(found, [*sample[:3], longest], [30, 70, None, 1000], 64)
    assert (lengths.longest, lengths.prompt) == (1250 + 90 + 1, 75.0)
    # Short ones are mostly template: 30 tokens, and one for each of 4 bytes.
    short = [Request(number=5, prompt="e" * 8), Request(number=6, prompt="f" * 2000)]
    assert lengths_in_tokens(found, short, [32, 530], 64).prompt == pytest.approx(30 + 300 / 4)
    nothing = lengths_in_tokens(found, [], [], 128)
    assert nothing.prompt == 75.0 and nothing.longest == 625 + 128 + 1
