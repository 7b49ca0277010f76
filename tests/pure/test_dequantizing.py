"""Which matrices are held as BF16: by what they gain per byte, as far as memory goes, and only for many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    FakeOracle,
    make_graph,
    make_machine,
    make_operation,
    make_spec,
    make_speed,
    make_tensor,
    one_after_another,
)

from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import LlamaConfig, MemoryEstimate
from memfit.memory.streaming import dequantized_bytes
from memfit.planner.llamacpp.dequantizing import dequantize, may_dequantize
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.streaming import held_bytes
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import WeightSpeed
from memfit.units import MIB

_LONG = 2048  # elements of a row: no shorter ones have speeds of their own


def _matrix(name: str, kind: str, bytes_each: float) -> Any:
    shape = (_LONG, 512)
    return make_tensor(f"{name}.weight", shape, kind, round(_LONG * 512 * bytes_each))


def _spec(*more: Any) -> ModelSpec:
    """A million weights a matrix: Q4 ones of half a MiB, Q8 ones of 1; as BF16 each has 2."""
    tensors = (
        _matrix("token_embd", "Q8_0", 1),
        _matrix("output", "Q8_0", 1),
        _matrix("blk.0.attn_q", "Q8_0", 1),
        _matrix("blk.0.ffn_up", "Q4_1", 0.5),
        _matrix("blk.0.ffn_down", "F16", 2),
        make_tensor("blk.0.attn_norm.weight", (_LONG,), "F32", 4 * _LONG),
        *more,
    )
    return make_spec(*one_after_another(tensors))


_SPEED = make_speed(
    weights={
        "Q8_0": WeightSpeed(bytes_per_second=1e9, operations_per_second=2e9),
        "Q4_1": WeightSpeed(bytes_per_second=1e9, operations_per_second=1e9),
        "BF16": WeightSpeed(bytes_per_second=1e9, operations_per_second=4e9, batch_operations_per_second=3e9),
    }
)
_PARAMETERS = LlamaConfig(
    paths=_spec().paths,
    context=1024,
    parallel=8,
    kv_type="f16",
    ubatch=32,
    threads=1,
    repack=False,
    load_mode="own",
)
_WORKLOAD = Workload(parallel=8, prompt_tokens=100, generated_tokens=100)


def _names(room_mib: float, **changes: Any) -> list[str]:
    spec = changes.pop("spec", _spec())
    workload = replace(_WORKLOAD, **changes)
    speed = _SPEED
    held = held_bytes(spec, _PARAMETERS)
    found = dequantize(spec, _PARAMETERS, speed, workload, held + int(room_mib * MIB))
    if found is None:
        return []
    assert found == replace(_PARAMETERS, dequantized=found.dequantized)
    assert held_bytes(spec, found) <= held + room_mib * MIB
    return [name.removesuffix(".weight") for name in found.dequantized]


def test_all_that_are_multiplied_where_there_is_room() -> None:
    assert sorted(_names(100)) == ["blk.0.attn_q", "blk.0.ffn_up", "output"]


@pytest.mark.parametrize(("room", "count"), [(0.9, 0), (1.4, 1), (2.6, 2), (3.6, 3)])
def test_as_many_as_fit(room: float, count: int) -> None:
    assert len(_names(room)) == count


def test_what_gains_most_per_byte_comes_first() -> None:
    """Q4_1 gains 1 - 1/4 and 1 - 1/3 ns an operation for 1.5 MiB, Q8_0 1/2 - 1/4 and 1/2 - 1/3 for 1."""
    assert _names(1.6) == ["blk.0.ffn_up"]
    assert _names(1.4) == ["output"]


def test_a_type_whose_kernels_are_as_fast_stays() -> None:
    """Q8_0 with one of 16 tokens is slower than BF16, with a prompt faster than the one below."""
    slow = replace(_SPEED.weights["BF16"], operations_per_second=1.5e9, batch_operations_per_second=1.5e9)
    speed = replace(_SPEED, weights={**_SPEED.weights, "BF16": slow})
    found = dequantize(_spec(), _PARAMETERS, speed, _WORKLOAD, 100 * MIB)
    assert found is not None and found.dequantized == ("blk.0.ffn_up.weight",)


def test_nothing_without_a_measured_speed() -> None:
    speed = replace(_SPEED, weights={"Q8_0": _SPEED.weights["Q8_0"]})
    assert dequantize(_spec(), _PARAMETERS, speed, _WORKLOAD, 100 * MIB) is None


def test_experts_and_tables_read_by_row_stay() -> None:
    experts = make_tensor("blk.0.ffn_up_exps.weight", (_LONG, 512, 4), "Q4_1", 2 * MIB)
    spec = _spec(experts)
    assert not may_dequantize(spec.tensors[0], spec)  # the output has a matrix of its own
    assert not may_dequantize(experts, spec)
    tied = make_spec(*(one for one in spec.tensors if one.name != "output.weight"))
    assert may_dequantize(tied.tensors[0], tied)


class _Oracle(FakeOracle):
    """Whose graph knows what weights are held as; a work buffer of `more_bytes` comes with it."""

    weights_bytes = sum(one.size_bytes for one in _spec().tensors)

    def __init__(self, more_bytes: int = 0) -> None:
        super().__init__()
        self._more_bytes = more_bytes

    def ask(self, config: LlamaConfig) -> MemoryEstimate:
        answer = super().ask(config)
        if not config.dequantized:
            return answer

        def graph(tokens: int) -> Any:
            size = self.weights_bytes
            return make_graph(
                make_operation(type_name="BF16", bytes=size, operations=2 * size * tokens), tokens=tokens
            )

        return replace(
            answer,
            generation=graph(1),
            prompt=graph(answer.prompt.tokens),
            scratch_bytes=answer.scratch_bytes + self._more_bytes,
        )


def _plan(ram: float, *, oracle: FakeOracle | None = None, **workload: Any) -> LlamaPlan:
    return make_plan(
        PlanInputs(
            spec=_spec(),
            machine=make_machine(),
            budget=Budget(ram=int(ram * MIB)),
            workload=Workload(**{"parallel": 8, "context": 1024, **workload}),
            speeds={False: _SPEED, True: _SPEED},
        ),
        oracle or _Oracle(),
    )


def test_a_plan_for_many_sequences_takes_them() -> None:
    plan = _plan(500)
    assert len(plan.config.dequantized) == 3 and plan.config.load_mode == "own"
    assert not plan.config.repack
    assert any("3 matrices held as BF16, for 3.50 MiB more" in line for line in plan.why)
    assert plan.to_json()["config"]["dequantized"] == plan.config.dequantized
    assert LlamaConfig.from_json(plan.config.to_json()) == plan.config


def test_a_single_request_has_them_beside_for_its_prompt() -> None:
    plan = _plan(500, parallel=1, prompt_tokens=900, generated_tokens=9)
    names = plan.config.prompt_dequantized
    assert len(names) == 3 and plan.config.load_mode == "own" and not plan.config.dequantized
    file, both = _plan(500, parallel=1, repack="off"), _plan(500, parallel=8)
    assert plan.prediction.prompt.value == pytest.approx(both.prediction.prompt.value)
    assert plan.prediction.generation == file.prediction.generation
    larger = sum(dequantized_bytes(one) for one in plan.spec.tensors if one.name in names)
    assert (
        plan.ram.weights_bytes == held_bytes(plan.spec, replace(plan.config, prompt_dequantized=())) + larger
    )
    assert any("3 matrices held as BF16 as well" in line and "--repack off" in line for line in plan.why)


@pytest.mark.parametrize("workload", [{"parallel": 1}, {"repack": "off"}, {"repack": "on"}])
def test_other_plans_do_not(workload: dict[str, Any]) -> None:
    assert _plan(500, **workload).config.dequantized == ()


@pytest.mark.parametrize(("more", "count"), [(2.5, 0), (4.0, 1), (4.6, 2), (5.6, 3)])
def test_the_budget_holds_with_the_larger_work_buffer(more: float, count: int) -> None:
    """One matrix takes 1.5 MiB more, the two others 1 each, and any of them a work buffer of 2."""
    least = _plan(500, repack="off").ram.needs_bytes / MIB
    plan = _plan(least + 4 + more, oracle=_Oracle(2 * MIB))
    assert plan.fits and plan.ram.needs_bytes <= plan.ram.limit_bytes - 4 * MIB
    assert len(plan.config.dequantized) == count


def test_pages_that_neighbours_share_are_counted() -> None:
    """Ten matrices of half a page more than whole ones, side by side."""
    tensors = [
        make_tensor(f"blk.{layer}.ffn_up.weight", (_LONG, 512), "Q4_1", 655360 + 2048) for layer in range(10)
    ]
    spec = make_spec(*one_after_another(tensors))
    for room in range(0, 16 * MIB, 300_000):
        found = dequantize(spec, _PARAMETERS, _SPEED, _WORKLOAD, room)
        assert found is None or held_bytes(spec, found) <= room
    assert found is not None and len(found.dequantized) > 5
