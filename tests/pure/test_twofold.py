"""Which matrices are held plain and rewritten: by what they gain, as far as memory goes, all of a kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeOracle, make_machine, make_spec, make_speed, make_tensor, one_after_another

from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.streaming import held_bytes, is_dense_matrix
from memfit.planner.llamacpp.twofold import hold_twofold, twofold_speed
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import WeightSpeed
from memfit.units import MIB

_ROW = 2048


def _matrix(name: str, kind: str, mebibytes: int) -> Any:
    return make_tensor(f"{name}.weight", (_ROW, 512), kind, mebibytes * MIB)


def _spec(*more: Any) -> ModelSpec:
    tensors = (
        _matrix("token_embd", "Q6_K", 1),
        _matrix("output", "Q6_K", 1),
        _matrix("blk.0.attn_q", "Q4_K", 2),
        _matrix("blk.0.ffn_up", "Q4_K", 3),
        _matrix("blk.0.ffn_down", "Q6_K", 4),
        make_tensor("blk.0.attn_norm.weight", (_ROW,), "F32", 4 * _ROW),
        *more,
    )
    return make_spec(*one_after_another(tensors))


def _speed(generation: float, prompt: float) -> WeightSpeed:
    return WeightSpeed(bytes_per_second=generation, operations_per_second=prompt)


_PLAIN = make_speed(weights={"Q4_K": _speed(1e9, 16e9), "Q6_K": _speed(1e9, 10e9)})
_REWRITTEN = make_speed(weights={"Q4_K": _speed(1.5e9, 10e9), "Q6_K": _speed(1.25e9, 8e9)})
_CONFIG = LlamaConfig(
    paths=_spec().paths,
    context=1024,
    parallel=1,
    kv_type="f16",
    ubatch=32,
    threads=1,
    repack=False,
    load_mode="own",
)
_WORKLOAD = Workload(prompt_tokens=100, generated_tokens=100)


def _names(room_mib: float = 100, *, spec: ModelSpec | None = None, **speeds: Any) -> list[str]:
    spec = spec or _spec()
    plain, rewritten = speeds.get("plain", _PLAIN), speeds.get("rewritten", _REWRITTEN)
    found = hold_twofold(spec, _CONFIG, plain, rewritten, _WORKLOAD, int(room_mib * MIB))
    if found is None:
        return []
    assert found == replace(_CONFIG, twofold=found.twofold)
    assert held_bytes(spec, found) <= held_bytes(spec, _CONFIG) + room_mib * MIB
    return [name.removesuffix(".weight") for name in found.twofold]


def test_all_that_gain_where_there_is_room() -> None:
    assert sorted(_names()) == ["blk.0.attn_q", "blk.0.ffn_down", "blk.0.ffn_up", "output"]


@pytest.mark.parametrize(
    ("room", "names"),
    [
        (4.9, []),
        (5, ["blk.0.attn_q", "blk.0.ffn_up"]),  # Q4_K gains most per byte
        (9.9, ["blk.0.attn_q", "blk.0.ffn_up"]),
        (10, ["blk.0.attn_q", "blk.0.ffn_up", "output", "blk.0.ffn_down"]),
    ],
)
def test_all_of_a_kind_or_none(room: float, names: list[str]) -> None:
    assert _names(room) == names


def test_what_is_slower_rewritten_stays_plain() -> None:
    slower = replace(_REWRITTEN, weights={**_REWRITTEN.weights, "Q6_K": _speed(0.9e9, 20e9)})
    assert _names(rewritten=slower) == ["blk.0.attn_q", "blk.0.ffn_up"]


def test_what_has_no_other_form_or_no_speed_stays_plain() -> None:
    assert _names(rewritten=replace(_PLAIN)) == []
    assert _names(rewritten=replace(_REWRITTEN, weights={"Q4_K": _REWRITTEN.weights["Q4_K"]})) == [
        "blk.0.attn_q",
        "blk.0.ffn_up",
    ]


def test_short_rows_have_a_speed_of_their_own() -> None:
    short = make_tensor("blk.1.attn_q.weight", (576, 576), "Q4_K", MIB)
    assert "blk.1.attn_q" not in _names(spec=_spec(short))


def test_experts_norms_and_tables_stay() -> None:
    experts = make_tensor("blk.0.ffn_up_exps.weight", (_ROW, 512, 4), "Q4_K", 2 * MIB)
    spec = _spec(experts)
    assert [one.name for one in spec.tensors if not is_dense_matrix(one)] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.ffn_up_exps.weight",
    ]


def test_prompts_have_the_one_speed_and_tokens_the_other() -> None:
    config = replace(_CONFIG, twofold=("blk.0.attn_q.weight", "blk.0.ffn_up.weight"))
    both = twofold_speed(_spec(), config, _PLAIN, _REWRITTEN)
    assert both.weight("Q4_K", _ROW) == _speed(1.5e9, 16e9)
    assert both.weight("Q6_K", _ROW) == _PLAIN.weight("Q6_K", _ROW)
    provisional = replace(_REWRITTEN, basis="provisional")
    assert twofold_speed(_spec(), config, _PLAIN, provisional).basis == "provisional"


# --- the planner ---


def _plan(ram_mib: float, *, gain: float = 1.5, **workload: Any) -> LlamaPlan:
    """A model of 100 MiB in a single type, as the fake oracle's graph has it; repacked it has 112."""
    tensor = make_tensor("blk.0.ffn_up.weight", (_ROW, 50 * 1024), "Q8_0", 100 * MIB)
    plain = make_speed(weights={"Q8_0": _speed(1e10, 16e10)})
    rewritten = make_speed(weights={"Q8_0": _speed(gain * 1e10, 10e10)})
    inputs = PlanInputs(
        spec=make_spec(tensor),
        machine=make_machine(),
        budget=Budget(ram=f"{ram_mib}MiB"),
        workload=Workload(context=1024, prompt_tokens=256, generated_tokens=48, **workload),
        speeds={False: plain, True: rewritten},
    )
    return make_plan(inputs, FakeOracle())


def test_both_forms_where_there_is_room() -> None:
    plan = _plan(600)
    assert plan.fits and plan.config.twofold == ("blk.0.ffn_up.weight",)
    assert (plan.config.repack, plan.config.load_mode) == (False, "own")
    assert plan.ram.weights_bytes == 200 * MIB
    assert any("1 matrices held rewritten as well, for 100.00 MiB more" in reason for reason in plan.why)
    single = [_plan(600, repack=repack).prediction for repack in ("off", "on")]
    assert plan.prediction.prompt == single[0].prompt
    assert plan.prediction.generation == single[1].generation


def test_one_form_where_there_is_not() -> None:
    assert _plan(250).fits and not _plan(250).config.twofold


def test_a_gain_within_the_noise_is_not_worth_its_memory() -> None:
    assert not _plan(600, gain=1.02).config.twofold


@pytest.mark.parametrize("repack", ["on", "off"])
def test_who_asks_for_one_form_gets_it(repack: str) -> None:
    plan = _plan(600, repack=repack)
    assert not plan.config.twofold and plan.config.repack is (repack == "on")
