"""What one change would give is what a plan made for it says; and what a plan waits for, in words."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from fakes import (
    DeviceOracle,
    make_device,
    make_gpu,
    make_layered_spec,
    make_machine,
    make_plan_value,
    make_speed,
    make_speeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.cli.render import console, print_slow, print_why
from memfit.planner.limits import limits, main_limit
from memfit.planner.llamacpp.changes import changes
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.plan import Change
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import Rate, Term
from memfit.units import GIB, MIB
from thorough import times

_SPEC = make_layered_spec(40, experts=dict.fromkeys(range(40), 8))  # 2.2 GiB


def _inputs(*, ram: int, vram: int, context: int, prompt: int, is_capped: bool, sends: bool) -> PlanInputs:
    """A GPU of so many MiB, and RAM; as budgets, or as what is free."""
    device = replace(make_device("gpu0", 4 * GIB if is_capped else vram * MIB))
    machine = make_machine(4 * GIB if is_capped else ram * MIB, gpus=(make_gpu(),))
    budget = Budget(ram=ram * MIB, vram=vram * MIB) if is_capped else Budget()
    speed = make_speed(1e11, sent_bytes_per_second=1e10 * sends)
    return PlanInputs(
        spec=_SPEC,
        machine=machine,
        budget=budget,
        workload=Workload(repack="off", context=context, prompt_tokens=prompt),
        speeds=make_speeds(1e10, 1e10),
        devices=[(device, speed)],
        disk_speed=lambda: (1e9, 1e9),
    )


def _made(inputs: PlanInputs) -> LlamaPlan:
    return make_plan(inputs, DeviceOracle(inputs.spec))


def _asked_by_hand(inputs: PlanInputs, what: str) -> PlanInputs:
    """The same request with the change that the words name, written down a second time."""
    workload = inputs.workload
    if match := re.fullmatch(r"--ctx (\d+)", what):
        return replace(inputs, workload=replace(workload, context=int(match[1])))
    if what == "--kv-type q8_0":
        return replace(inputs, workload=replace(workload, kv_type="q8_0"))
    if match := re.fullmatch(r"prompts of (\d+) tokens", what):
        return replace(inputs, workload=replace(workload, prompt_tokens=int(match[1])))
    match = re.fullmatch(r"(\d)\.00 GiB more (RAM|on gpu0)", what)
    assert match, what
    more, budget = int(match[1]) * GIB, inputs.budget
    ((device, speed),) = inputs.devices
    if match[2] == "RAM":
        capped = None if budget.ram is None else int(budget.ram) + more
        ram = replace(
            inputs.machine.ram,
            available_bytes=inputs.machine.ram.available_bytes + more,
            total_bytes=inputs.machine.ram.total_bytes + more,
        )
        machine = replace(inputs.machine, ram=ram)
        return replace(inputs, machine=machine, budget=replace(budget, ram=capped))
    assert budget.vram is None or isinstance(budget.vram, int)
    larger = replace(device, free_bytes=device.free_bytes + more, total_bytes=device.total_bytes + more)
    capped = None if budget.vram is None else budget.vram + more
    return replace(inputs, devices=[(larger, speed)], budget=replace(budget, vram=capped))


@settings(max_examples=times(6, 200), deadline=None)
@given(
    ram=st.integers(300, 1500),
    vram=st.integers(200, 3000),
    context=st.sampled_from([1024, 4096, 16384]),
    prompt=st.sampled_from([16, 512, 1000]),
    is_capped=st.booleans(),
    sends=st.booleans(),
)
def test_each_change_is_a_plan_of_its_own(
    ram: int, vram: int, context: int, prompt: int, is_capped: bool, sends: bool
) -> None:
    inputs = _inputs(ram=ram, vram=vram, context=context, prompt=prompt, is_capped=is_capped, sends=sends)
    plan = _made(inputs)
    if not plan.fits:
        return
    for change in changes(plan, inputs, _made):
        by_hand = _made(_asked_by_hand(inputs, change.what))
        assert by_hand.fits
        for kind in ("prompt", "generation", "together"):
            assert getattr(change.prediction, kind) == getattr(by_hand.prediction, kind), change.what


def test_changes_of_a_plan_that_streams() -> None:
    inputs = _inputs(ram=800, vram=500, context=4096, prompt=512, is_capped=True, sends=False)
    plan = _made(inputs)
    assert plan.streamed_bytes
    found = {change.what: change.prediction for change in changes(plan, inputs, _made)}
    assert {"2.00 GiB more on gpu0", "2.00 GiB more RAM"} <= found.keys()
    assert found["2.00 GiB more RAM"].generation.value > 2 * plan.prediction.generation.value


def test_nothing_helps_a_model_that_lies_in_ram() -> None:
    inputs = replace(
        _inputs(ram=4000, vram=500, context=1024, prompt=512, is_capped=False, sends=False), devices=[]
    )
    assert list(changes(_made(inputs), inputs, _made)) == []


# --- in words ---


def _plan(*terms: Term, generation: float = 2.0) -> LlamaPlan:
    plan = make_plan_value()
    rate = Rate.between(generation, (0.5, 2.0))
    prediction = replace(plan.prediction, generation=rate, generation_terms=terms)
    return replace(plan, prediction=prediction)


def _lines(plan: LlamaPlan) -> list[str]:
    out = io.StringIO()
    print_slow(plan, console(file=out))
    return out.getvalue().splitlines()


def test_the_parts_that_take_the_time() -> None:
    plan = _plan(
        Term(device=0, kind="matmul Q8_0", seconds=0.1),
        Term(device=0, kind="matmul F16", seconds=0.1),
        Term(device=0, kind="experts Q8_0", seconds=0.25),
        Term(device=0, kind="attention F16", seconds=0.04),
        Term(device=0, kind="other", seconds=0.01),
    )
    assert list(limits(plan)) == [
        "generation: 50% reading experts in RAM, 40% reading weights in RAM, 8% attention in RAM"
    ]
    assert main_limit(plan) == "reading experts in RAM"


def test_a_disk_that_is_slower_than_all_computing() -> None:
    inputs = _inputs(ram=800, vram=500, context=4096, prompt=512, is_capped=True, sends=False)
    plan = _made(inputs)
    assert re.fullmatch(r"reading [\d.]+ [MG]iB from the disk for every pass", main_limit(plan) or "")


@pytest.mark.parametrize(("rate", "shown"), [(0.5, True), (1.0, False)])
def test_a_slow_run_says_so_unasked(rate: float, shown: bool) -> None:
    lines = _lines(_plan(Term(device=0, kind="matmul Q8_0", seconds=1 / rate), generation=rate))
    wanted = (
        "this is slow: 30 tokens a minute, most of it reading weights in RAM; "
        "memfit plan … --explain says what would help"
    )
    assert lines == ([wanted] if shown else [])
    assert _lines(_plan(generation=rate)) == []  # a plan without terms knows no reason


def test_a_change_in_one_line() -> None:
    plan = _plan(generation=2.0)
    faster = replace(plan.prediction, generation=Rate.between(2.5, (0.5, 2.0)))
    out = io.StringIO()
    changed = replace(plan, changes=(Change(what="--ctx 2048", prediction=faster),))
    print_why(changed, console(file=out))
    assert "  · --ctx 2048: generation 2.0 tok/s → 2.5 tok/s" in out.getvalue().splitlines()
