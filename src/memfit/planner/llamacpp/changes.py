"""What one change of the machine or of the options would give, and what a plan without the user's conditions:
each priced by a plan of its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from memfit.errors import MemfitError
from memfit.planner.llamacpp.inputs import PlanInputs, UsedDevice
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import Change
from memfit.planner.request import Budget, Conditions
from memfit.planner.speed import Prediction
from memfit.units import GIB, format_bytes

__all__ = ["changes", "own_choice"]

_MORE_VRAM = 2 * GIB
_MORE_RAM = (2 * GIB, 8 * GIB)  # the latter where the budget is at least twice that
_LONG_PROMPT = 2048  # tokens
_LEAST_CONTEXT = 2048
_CLEAR = 0.03  # a smaller gain of either speed is not worth a line


def changes(
    plan: LlamaPlan, inputs: PlanInputs, make_plan: Callable[[PlanInputs], LlamaPlan]
) -> Iterator[Change]:
    """Those that clearly speed up a `plan` that was made of `inputs`."""
    for what, changed in _changed(plan, inputs):
        try:
            other = make_plan(changed)
        except MemfitError:
            continue  # this model knows no such KV cache
        if other.fits and _gains(plan, other):
            yield Change(what=what, prediction=_without_terms(other))


def own_choice(inputs: PlanInputs, make_plan: Callable[[PlanInputs], LlamaPlan]) -> Prediction | None:
    """Of the plan without the conditions; None where that does not fit."""
    own = make_plan(replace(inputs, conditions=Conditions()))
    return _without_terms(own) if own.fits else None


def _without_terms(plan: LlamaPlan) -> Prediction:
    """What a plan keeps of another one: its rates."""
    return replace(plan.prediction, prompt_terms=(), generation_terms=())


def _gains(plan: LlamaPlan, other: LlamaPlan) -> bool:
    before, after = plan.prediction.rates, other.prediction.rates
    return any(after[name].value / before[name].value - 1 >= _CLEAR for name in before)


def _changed(plan: LlamaPlan, inputs: PlanInputs) -> Iterator[tuple[str, PlanInputs]]:
    workload = inputs.workload
    for used in inputs.used_devices:
        if used.device.name in _in_use(plan):
            more = format_bytes(_MORE_VRAM)
            yield f"{more} more on {used.device.name}", _with_more_vram(inputs, used)
    if plan.streamed_bytes:
        small, large = _MORE_RAM
        more_ram = large if inputs.ram_budget >= 2 * large else small
        yield f"{format_bytes(more_ram)} more RAM", _with_more_ram(inputs, more_ram)
    if plan.config.op_offload or plan.streamed_bytes:
        longer = min(_LONG_PROMPT, inputs.context)
        if workload.prompt_tokens < longer:
            yield (
                f"prompts of {longer} tokens",
                replace(inputs, workload=replace(workload, prompt_tokens=longer)),
            )
    if plan.config.kv_type == "f16":
        yield "--kv-type q8_0", replace(inputs, workload=replace(workload, kv_type="q8_0"))
    if inputs.context > _LEAST_CONTEXT and (plan.config.devices or plan.streamed_bytes):
        half = inputs.context // 2
        yield f"--ctx {half}", replace(inputs, workload=replace(workload, context=half))


def _in_use(plan: LlamaPlan) -> set[str]:
    return {tier.name for tier in plan.tiers if tier.kind == "vram"} if plan.config.devices else set()


def _with_more_vram(inputs: PlanInputs, used: UsedDevice) -> PlanInputs:
    """On a larger device; what was asked for as a budget grows with it."""
    name = used.device.name
    devices = [
        (
            replace(
                device,
                free_bytes=device.free_bytes + _MORE_VRAM,
                total_bytes=device.total_bytes + _MORE_VRAM,
            )
            if device.name == name
            else device,
            speed,
        )
        for device, speed in inputs.devices
    ]
    budget = inputs.budget
    sizes = {
        one.device.name: one.budget_bytes + _MORE_VRAM * (one.device.name == name)
        for one in inputs.used_devices
        if one.is_asked_for
    }
    return replace(inputs, devices=devices, budget=_with_sizes(budget, sizes))


def _with_sizes(budget: Budget, sizes: dict[str, int]) -> Budget:
    """Bytes of devices by their names, where the budget had said sizes."""
    vram: dict[int | str, str | int] = {
        int(name.removeprefix("gpu")): size for name, size in sizes.items() if name not in budget.rpc
    }
    rpc = {name: lent if lent is None else sizes.get(name, lent) for name, lent in budget.rpc.items()}
    return replace(budget, vram=budget.vram if budget.vram is None else vram, rpc=rpc)


def _with_more_ram(inputs: PlanInputs, more_bytes: int) -> PlanInputs:
    ram, budget = inputs.machine.ram, inputs.budget
    machine = replace(
        inputs.machine,
        ram=replace(
            ram,
            available_bytes=ram.available_bytes + more_bytes,
            total_bytes=ram.total_bytes + more_bytes,
            physical_bytes=ram.physical_bytes + more_bytes,
        ),
    )
    if budget.ram is not None:
        budget = replace(budget, ram=inputs.ram_budget + more_bytes)
    return replace(inputs, machine=machine, budget=budget)
