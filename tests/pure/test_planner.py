"""The planner against an oracle whose bytes are a formula (fakes.FakeOracle), worked out by hand.

4,096 tokens, one sequence, plain weights, in MiB: 100 weights + 64 KV + 1 scratch + 22 processes
= 187, and for the ubatch 30, 15, 7.5, 3.75 or 1.875 (512 down to 32). Repacked: 12 more.
With q8_0 the KV cache is 34 instead of 64, with q4_0 18.
"""

from __future__ import annotations

import json
import shlex
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import (
    DeviceOracle,
    FakeOracle,
    engine_devices,
    make_device,
    make_gpu,
    make_layered_spec,
    make_machine,
    make_plan_value,
    make_spec,
    make_speed,
    make_speeds,
    make_tier,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memfit.engines.llamacpp.options import context_options
from memfit.errors import DoesNotFitError, EngineError, UsageError
from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.planner.llamacpp.inputs import ROOM_FOR_ERROR, PlanInputs, repack_modes
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.placement import Placement, Problem
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.solver import solve
from memfit.planner.llamacpp.tiers import _receiving
from memfit.planner.request import Budget, Conditions, Workload
from memfit.planner.speed import DeviceSpeed, WeightSpeed
from memfit.units import GIB, KIB, MIB
from thorough import times


def _plan(
    ram: int | str | None = None,
    *,
    machine: Machine | None = None,
    spec: ModelSpec | None = None,
    oracle: FakeOracle | None = None,
    speeds: Mapping[bool, DeviceSpeed] | None = None,
    **workload: Any,
) -> LlamaPlan:
    """Repacking is off unless the test is about it, which keeps the sums short."""
    return make_plan(
        PlanInputs(
            spec=spec or make_spec(),
            machine=machine or make_machine(),
            budget=Budget(ram=ram, disk=False),
            workload=Workload(**{"repack": "off", **workload}),
            speeds=speeds or make_speeds(),
        ),
        oracle or FakeOracle(),
    )


def _mib(number: float) -> int:
    return int(number * MIB)


# --- the order of worth ---


@pytest.mark.parametrize(
    ("budget", "kv_type", "ubatch", "total"),
    [
        # 4 MiB of room for the prediction's error
        (1000, "f16", 512, 217),
        (221, "f16", 512, 217),
        (220.999, "f16", 256, 202),
        (206, "f16", 256, 202),
        (205, "f16", 128, 194.5),
        (198, "f16", 64, 190.75),
        (193.5, "f16", 32, 188.875),
        # without that room, rather than another KV type
        (192, "f16", 64, 190.75),
        (189, "f16", 32, 188.875),
        # only now: every f16 configuration was tried
        (188, "q8_0", 256, 172),
        (158.875, "q8_0", 32, 158.875),
    ],
)
def test_the_ubatch_shrinks_before_the_kv_cache_is_quantized(
    budget: float, kv_type: str, ubatch: int, total: float
) -> None:
    plan = _plan(_mib(budget))
    assert plan.fits
    assert (plan.config.kv_type, plan.config.ubatch) == (kv_type, ubatch)
    assert plan.ram.total_bytes == _mib(total)
    assert plan.suggestions == ()
    reason = "KV cache f16: it fits unquantized" if kv_type == "f16" else "f16 does not fit the budget"
    assert any(reason in line for line in plan.why)


def test_a_smaller_ubatch_is_said() -> None:
    assert "ubatch 512: full speed on prompts" in _plan(GIB).why
    assert "ubatch 256: a larger one does not fit" in _plan(_mib(210)).why
    assert "ubatch 64: full speed on prompts" in _plan(GIB, context=100).why


def test_no_ubatch_is_larger_than_the_context() -> None:
    oracle = FakeOracle()
    _plan(1, oracle=oracle, context=100)
    assert {one.ubatch for one in oracle.asked} <= {64, 32}
    tiny = FakeOracle()
    _plan(GIB, oracle=tiny, context=7)
    assert {one.ubatch for one in tiny.asked} == {7}


def test_each_part_of_the_tier_by_hand() -> None:
    ram = _plan(GIB, parallel=3).ram
    assert (ram.name, ram.kind, ram.budget_bytes) == ("ram", "ram", GIB)
    assert ram.weights_bytes == 100 * MIB
    assert ram.kv_cache_bytes == 64 * MIB
    assert ram.compute_bytes == 31 * MIB  # scratch counted with it
    assert ram.parts["overhead"] == 26 * MIB
    assert ram.total_bytes == 221 * MIB


# --- repacking ---


@pytest.mark.parametrize(
    ("plain", "repacked", "expected"),
    [
        (1e9, 1.5e9, True),
        (1e9, 1.019e9, False),  # below 2 %: the plain file's own pages are worth more
        (1e9, 1.021e9, True),
        (1e9, 1e9, False),
        (1.5e9, 1e9, False),
    ],
)
def test_repacking_follows_the_measured_kernels(plain: float, repacked: float, expected: bool) -> None:
    plan = _plan(GIB, repack="auto", speeds=make_speeds(plain, repacked))
    assert plan.config.repack is expected
    assert plan.config.load_mode == ("read" if expected else "mmap")
    assert plan.ram.weights_bytes == (112 if expected else 100) * MIB
    state = "on" if expected else "off"
    assert any(line.startswith(f"repack {state}: prompt ") and "against" in line for line in plan.why)


def test_repacking_that_does_not_fit_is_left_out_and_said() -> None:
    plan = _plan(_mib(224), repack="auto", speeds=make_speeds(1e9, 9e9))  # repacked would be 229
    assert not plan.config.repack
    assert plan.config.ubatch == 512
    assert "repack off: the other way does not fit" in plan.why


def test_the_workload_weighs_prompt_against_generation() -> None:
    """Repacking doubles prompt speed and halves generation: 100 Mi weights of a byte each take 0.1 s a
    prompt token plain (2 operations each at 2e9 a second), and 0.1 s a generated token."""
    plain = make_speed(1e9)
    repacked = replace(
        plain, weights={"Q8_0": WeightSpeed(bytes_per_second=0.5e9, operations_per_second=4e9)}
    )
    speeds = {False: plain, True: repacked}
    for prompt, generated, expected in ((100, 1, True), (1, 100, False)):
        plan = _plan(
            GIB,
            repack="auto",
            speeds=speeds,
            prompt_tokens=prompt,
            generated_tokens=generated,
        )
        assert plan.config.repack is expected


# --- what was asked for is obeyed ---


@pytest.mark.parametrize("repack", ["on", "off"])
def test_an_explicit_repack_is_obeyed_and_only_it_is_asked_about(repack: str) -> None:
    oracle = FakeOracle()
    slow = make_speeds(1e9, 9e9) if repack == "off" else make_speeds(9e9, 1e9)
    plan = _plan(GIB, oracle=oracle, repack=repack, speeds=slow)
    assert {one.repack for one in oracle.asked} == {repack == "on"}
    assert f"repack {repack}: as asked" in plan.why


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_an_explicit_kv_type_is_obeyed(kv_type: str) -> None:
    oracle = FakeOracle()
    plan = _plan(GIB, oracle=oracle, kv_type=kv_type)
    assert {one.kv_type for one in oracle.asked} == {kv_type}
    assert plan.config.kv_type == kv_type
    assert not any("KV cache" in line for line in plan.why)


def test_context_parallel_and_threads_are_obeyed() -> None:
    plan = _plan(GIB, context=1000, parallel=4, threads=5)
    assert (plan.config.context, plan.config.parallel, plan.config.threads) == (1000, 4, 5)
    assert plan.context == 1024
    assert "context 1000 becomes 1024: the engine rounds up" in plan.why
    assert "5 threads: as asked" in plan.why


def test_a_ubatch_holds_a_token_of_every_sequence() -> None:
    oracle = FakeOracle()
    _plan(1, oracle=oracle, parallel=100)
    tried = [one.ubatch for one in oracle.asked if one.parallel == 100]  # a suggestion asks for 1
    assert set(tried) == {512, 100}  # the least does not fit, so nothing between is asked


@pytest.mark.parametrize(
    ("physical", "logical", "threads"), [(6, 12, 6), (8, 2, 2), (4, 4, 4), (0, 3, 1), (2, 0, 1)]
)
def test_threads_are_the_physical_cores_that_may_be_used(physical: int, logical: int, threads: int) -> None:
    machine = make_machine(physical=physical, logical=logical)
    assert machine.cpu.threads == threads


@pytest.mark.parametrize(("repack", "modes"), [("auto", (False, True)), ("on", (True,)), ("off", (False,))])
def test_repack_modes(repack: str, modes: tuple[bool, ...]) -> None:
    assert repack_modes(Workload(repack=repack)) == modes


@pytest.mark.parametrize(("trained", "context"), [(32768, 4096), (4096, 4096), (2048, 2048), (512, 512)])
def test_the_default_context(trained: int, context: int) -> None:
    plan = _plan(GIB, spec=make_spec(context_length=trained))
    assert plan.config.context == plan.context == context
    assert f"context {context}: the default; --ctx sets it" in plan.why


def test_a_context_beyond_the_trained_one_is_obeyed_with_a_warning() -> None:
    plan = _plan(GIB, spec=make_spec(context_length=2048), context=4096)
    assert plan.context == 4096
    assert any("trained for 2048 tokens" in line for line in plan.why)


# --- configurations that the engine refuses ---


def _no_q8(config: Any) -> bool:
    return bool(config.kv_type == "q8_0")


def test_a_refused_kv_type_is_passed_over_under_auto() -> None:
    plan = _plan(_mib(188), oracle=FakeOracle(_no_q8))
    assert not plan.fits
    assert plan.config.kv_type == "f16"
    assert plan.ram.total_bytes == _mib(188.875)
    assert "--kv-type q8_0" not in plan.suggestions


def test_a_refused_kv_type_is_raised_when_it_was_asked_for() -> None:
    with pytest.raises(EngineError, match="q8_0"):
        _plan(GIB, oracle=FakeOracle(_no_q8), kv_type="q8_0")


def test_an_engine_that_refuses_everything_is_raised() -> None:
    with pytest.raises(EngineError):
        _plan(GIB, oracle=FakeOracle(lambda _: True))


def test_why_does_not_claim_a_fit_where_there_is_none() -> None:
    plan = _plan(_mib(188), oracle=FakeOracle(_no_q8))
    assert not plan.fits
    assert not any("it fits" in line for line in plan.why)


# --- the budget ---


def test_no_budget_is_what_is_free_less_the_reserve() -> None:
    plan = _plan(machine=make_machine(2 * GIB))
    assert plan.ram.budget_bytes == plan.ram.limit_bytes == 2 * GIB - 512 * MIB
    assert plan.why[0] == "budget: 2.00 GiB free less 512.00 MiB reserve; --ram sets it"


def test_a_percentage_is_of_what_is_free() -> None:
    assert _plan("50%", machine=make_machine(3 * GIB)).ram.budget_bytes == 1_610_612_736


def test_a_budget_above_what_is_free_is_limited_and_said() -> None:
    plan = _plan(4 * GIB, machine=make_machine(GIB))
    assert plan.fits
    assert (plan.ram.budget_bytes, plan.ram.limit_bytes) == (4 * GIB, GIB)
    assert "only 1.00 GiB of the budget is free now" in plan.why
    short = _plan(4 * GIB, machine=make_machine(_mib(150)))
    assert not short.fits
    assert short.to_json()["short_bytes"] == _mib(158.875 - 150)


def test_a_nonsense_budget() -> None:
    with pytest.raises(UsageError, match="--ram"):
        _plan("lots")


# --- when nothing fits ---


def test_needs_and_short_by_hand() -> None:
    plan = _plan(_mib(150))
    document = plan.to_json()
    assert document["fits"] is False
    assert document["needs_bytes"] == _mib(158.875)
    assert document["short_bytes"] == _mib(8.875)
    with pytest.raises(DoesNotFitError) as caught:
        plan.require_fit()
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (_mib(158.875), _mib(150))
    assert caught.value.suggestions == plan.suggestions == tuple(document["try"])


def test_suggestions_by_hand() -> None:
    """150 MiB: q8_0 with ubatch 32 and 4 MiB of room for the
    prediction's error leaves 150 - 128.875 = 21.125 MiB for the KV cache: 9.9 steps of 256 tokens (2.125 MiB
    each), so 2,304 tokens; q4_0 needs 142.875; 158.875 and the room round up to 176."""
    assert _plan(_mib(150)).suggestions == ("--ctx 2304", "--kv-type q4_0", "--ram 176MiB")


def test_fewer_sequences_are_suggested_where_they_fit() -> None:
    plan = _plan(_mib(164), parallel=8)  # 172.875 with eight, 158.875 with one
    assert "--parallel 1" in plan.suggestions
    assert "--parallel 1" not in _plan(_mib(150), parallel=8).suggestions


def test_an_explicit_f16_gets_the_other_types_suggested() -> None:
    assert "--kv-type q8_0" in _plan(_mib(164), kv_type="f16").suggestions
    assert "--kv-type q4_0" in _plan(_mib(150), kv_type="f16").suggestions
    assert not any("--kv-type" in text for text in _plan(_mib(130), kv_type="f16").suggestions)


def test_a_hopeless_budget_on_a_small_machine_suggests_a_smaller_model() -> None:
    assert _plan(MIB, machine=make_machine(100 * MIB)).suggestions == (
        "a smaller quantization of this model",
    )


def _applied(
    suggestion: str, plan: LlamaPlan, budget: int | None, machine: Machine, asked: dict[str, Any]
) -> LlamaPlan:
    """Plan once more, with the suggested option in device of what was asked."""
    option, value = shlex.split(suggestion)
    if option == "--ram":
        return _plan(value, machine=machine, **asked)
    name, convert = {
        "--ctx": ("context", int),
        "--parallel": ("parallel", int),
        "--kv-type": ("kv_type", str),
    }[option]
    return _plan(budget, machine=machine, **{**asked, name: convert(value)})


@given(
    budget=st.none() | st.integers(1, 400 * MIB),
    available=st.integers(MIB, GIB),
    context=st.none() | st.integers(1, 40_000),
    parallel=st.integers(1, 64),
    kv_type=st.sampled_from(["auto", "f16", "q8_0", "q4_0"]),
    repack=st.sampled_from(["auto", "on", "off"]),
)
@example(budget=1, available=159 * MIB, context=None, parallel=1, kv_type="auto", repack="off")
def test_every_suggestion_really_fits(
    budget: int | None, available: int, context: int | None, parallel: int, kv_type: str, repack: str
) -> None:
    machine = make_machine(available)
    asked: dict[str, Any] = {
        "context": context,
        "parallel": parallel,
        "kv_type": kv_type,
        "repack": repack,
    }
    plan = _plan(budget, machine=machine, **asked)
    if plan.fits:
        assert plan.suggestions == ()
        return
    for suggestion in plan.suggestions:
        if suggestion == "a smaller quantization of this model":
            assert plan.ram.total_bytes > available - 16 * MIB
            continue
        applied = _applied(suggestion, plan, budget, machine, asked)
        assert applied.fits, suggestion
        if suggestion.startswith("--ctx"):
            value = int(suggestion.split()[1])
            assert value % 256 == 0
            assert value < plan.config.context
            larger = value + 256
            if larger < plan.config.context:
                more = _plan(budget, machine=machine, **{**asked, "context": larger})
                room = 4 * MIB  # suggestions leave it for the prediction's error
                assert more.ram.total_bytes + room > more.ram.limit_bytes


@given(
    budget=st.integers(1, 400 * MIB),
    context=st.integers(1, 20_000),
    parallel=st.integers(1, 256),
    repack=st.sampled_from(["auto", "on", "off"]),
)
def test_a_plan_fits_exactly_if_the_smallest_configuration_does(
    budget: int, context: int, parallel: int, repack: str
) -> None:
    plan = _plan(budget, context=context, parallel=parallel, repack=repack)
    rounded = -(-context // 256) * 256
    ubatch = max(min(32, context), parallel)
    smallest = (
        (121 + 2 * parallel + 12 * (repack == "on")) * MIB + rounded * (8 * KIB + 512) + ubatch * 60 * KIB
    )
    assert plan.fits == (smallest <= budget)
    assert plan.fits == (plan.ram.total_bytes <= budget)
    if not plan.fits:
        assert plan.ram.total_bytes == smallest


# --- JSON ---


def test_the_json_is_that_of_the_docs() -> None:
    document = json.loads(json.dumps(_plan(GIB).to_json()))
    assert {
        "model",
        "engine",
        "context",
        "parallel",
        "kv_type",
        "fits",
        "why",
        "tiers",
        "streamed_bytes_per_pass",
        "predicted",
    } <= set(document)
    assert not {"needs_bytes", "short_bytes", "try"} & set(document)
    assert document["model"] == {
        "source": "toy.gguf",
        "architecture": "llama",
        "name": "Toy",
        "file_bytes": 104857600,
        "parameters": 1200,
        "loss": None,
        "quantization": "Q8_0",
    }
    assert document["engine"] == "llamacpp"
    assert (document["context"], document["parallel"], document["kv_type"]) == (4096, 1, "f16")
    assert document["fits"] is True
    assert document["streamed_bytes_per_pass"] == 0
    (tier,) = document["tiers"]
    assert tier == {
        "name": "ram",
        "kind": "ram",
        "budget_bytes": 1073741824,
        "limit_bytes": 1073741824,
        "weights_bytes": 104857600,
        "kv_cache_bytes": 67108864,
        "compute_bytes": 32505856,
        "overhead_bytes": 23068672,
        "reserved_bytes": 0,
        "total_bytes": 227540992,
    }
    assert document["predicted"]["basis"] == "calibrated"
    for name in ("prompt_tokens_per_second", "generation_tokens_per_second"):
        rate = document["predicted"][name]
        assert set(rate) == {"value", "low", "high"}
        assert rate["low"] < rate["value"] < rate["high"]


def _byte_values(value: Any, key: str = "") -> list[Any]:
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in _byte_values(inner, name)]
    if isinstance(value, list):
        return [found for inner in value for found in _byte_values(inner, key)]
    return [value] if "bytes" in key else []


@pytest.mark.parametrize("budget", [GIB, 150 * MIB])
def test_every_byte_count_is_an_integer_and_the_parts_sum_up(budget: int) -> None:
    document = _plan(budget).to_json()
    assert all(type(value) is int for value in _byte_values(document))
    for tier in document["tiers"]:
        parts = ("weights_bytes", "kv_cache_bytes", "compute_bytes", "overhead_bytes")
        assert sum(tier[part] for part in parts) == tier["total_bytes"]


def test_a_finished_plan_by_hand() -> None:
    plan = make_plan_value()
    assert plan.fits
    plan.require_fit()
    assert plan.ram.total_bytes == 217 * MIB
    for limit, fits in ((217 * MIB - 1, False), (217 * MIB, True)):
        tier = make_tier(100 * MIB, 64 * MIB, 31 * MIB, 22 * MIB, GIB, limit=limit)
        assert make_plan_value(tier=tier).fits is fits


def test_every_tier_must_fit_and_the_error_names_it() -> None:
    full = make_tier(MIB, 0, 0, 0, 2 * MIB, name="gpu0")
    plan = make_plan_value(devices=(full, replace(full, name="gpu1", limit_bytes=MIB - 1)))
    assert (plan.fits, plan.ram.name) == (False, "ram")
    with pytest.raises(DoesNotFitError, match="gpu1") as caught:
        plan.require_fit()
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (MIB, MIB - 1)
    document = plan.to_json()
    assert (document["needs_bytes"], document["short_bytes"]) == (MIB, 1)
    short = make_plan_value(tier=make_tier(2, 0, 0, 0, 1), devices=(replace(full, limit_bytes=1),))
    with pytest.raises(DoesNotFitError, match="RAM"):  # which takes what devices do not
        short.require_fit()


def test_what_a_worker_must_have_for_a_moment_must_fit_too() -> None:
    """2 MiB lie there in the end, and 3 MiB are counted while they are sent."""
    alone = make_tier(MIB, MIB, 0, 0, 4 * MIB, name="host:1")
    assert (alone.needs_bytes, alone.total_bytes) == (2 * MIB, 2 * MIB)
    worker = replace(alone, reserved_bytes=3 * MIB)
    assert (worker.needs_bytes, worker.total_bytes) == (3 * MIB, 2 * MIB)
    less = replace(alone, reserved_bytes=2 * MIB - 1)
    assert (less.needs_bytes, less.total_bytes) == (2 * MIB, 2 * MIB)
    exact = make_plan_value(devices=(replace(worker, limit_bytes=3 * MIB),))
    assert (exact.overfull, exact.fits) == (None, True)
    exact.require_fit()
    short = replace(worker, limit_bytes=3 * MIB - 1)
    plan = make_plan_value(devices=(short,))
    assert (plan.overfull, plan.fits) == (short, False)
    with pytest.raises(DoesNotFitError, match="host:1") as caught:
        plan.require_fit()
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (3 * MIB, 3 * MIB - 1)
    document = plan.to_json()
    assert (document["fits"], document["needs_bytes"], document["short_bytes"]) == (False, 3 * MIB, 1)
    tier = document["tiers"][1]
    assert (tier["reserved_bytes"], tier["total_bytes"]) == (3 * MIB, 2 * MIB)


# --- devices: fakes.DeviceOracle, three layers of 8 + 3 * 16 MiB ---


def _device_plan(
    ram: int | str | None,
    *devices: Device,
    spec: ModelSpec | None = None,
    speeds: tuple[DeviceSpeed | None, ...] = (),
    vram: Any = None,
    rpc: Mapping[str, Any] | None = None,
    available: int = 8 * GIB,
    conditions: Conditions | None = None,
    **workload: Any,
) -> LlamaPlan:
    spec = spec or make_layered_spec()
    lent = tuple(zip(devices, speeds or (make_speed(1e11),) * len(devices), strict=True))
    remote = {one.name: None for one in devices if one.is_memfit_server} if rpc is None else rpc
    return make_plan(
        PlanInputs(
            spec=spec,
            machine=make_machine(available, gpus=(make_gpu(),)),
            budget=Budget(ram=ram, vram=vram, rpc=remote, disk=False),
            workload=Workload(**{"repack": "off", **workload}),
            conditions=conditions or Conditions(),
            speeds=make_speeds(),
            devices=lent,
        ),
        DeviceOracle(spec),
    )


@pytest.mark.parametrize(
    ("name", "repack", "mode", "table", "rows", "staging"),
    [
        ("gpu0", "off", "read", 10, 0, 0),
        ("host:1", "on", "read", 10, 0, 32 - 5),
        ("host:1", "off", "own", 0, 4, 0),
    ],
)
def test_a_model_that_fits_a_device_lies_there_whole(
    name: str, repack: str, mode: str, table: int, rows: int, staging: int
) -> None:
    """On the device 3 * 56 + 12 MiB of weights, 3 * 4 MiB of KV, 5 MiB of buffers and its 7 of runtime; in
    RAM the embedding, 5 MiB of buffers, 20 of processes. A tensor of 16 that the engine sends away lies twice
    in RAM meanwhile, before those buffers are made, and at its receiver once more, less than the 17 beside
    the weights. Our pieces of 1 MiB are less than either; and of the embedding we hold 2 pages a row, for
    512 rows."""
    plan = _device_plan(GIB, make_device(name, GIB, 7 * MIB), repack=repack)
    assert (len(plan.config.devices), plan.config.layers) == (1, (3,))
    assert (plan.config.overrides, plan.config.load_mode) == ((), mode)
    ram, device = plan.tiers
    assert (device.name, device.kind) == (name, "vram")
    assert device.weights_bytes == (3 * 56 + 12) * MIB + 4 * 256
    assert (device.kv_cache_bytes, device.compute_bytes, device.parts["overhead"]) == (
        12 * MIB,
        5 * MIB,
        7 * MIB,
    )
    assert (ram.weights_bytes, ram.kv_cache_bytes) == (table * MIB, 0)
    assert (ram.compute_bytes, ram.parts["overhead"]) == ((5 + rows) * MIB, (20 + staging) * MIB)
    assert device.reserved_bytes == (
        (7 + 3 * 56 + 12 + (1 if mode == "own" else 16)) * MIB + 4 * 256 if name == "host:1" else 0
    )
    assert any(line.startswith(f"{name}: 3 layers") for line in plan.why)


def test_the_json_tells_the_placement() -> None:
    document = json.loads(json.dumps(_device_plan(GIB, make_device()).to_json()))
    assert (document["devices"], document["layers"], document["overrides"]) == (["CUDA0"], [3], [])
    assert [tier["name"] for tier in document["tiers"]] == ["ram", "gpu0"]
    partly = json.loads(json.dumps(_device_plan(GIB, make_device("gpu0", 100 * MIB), vram="100%").to_json()))
    assert partly["overrides"]
    assert all(isinstance(pattern, str) and device in (0, 1) for pattern, device in partly["overrides"])


def test_the_budgets_of_devices() -> None:
    gpus = make_device("gpu0"), make_device("gpu1")
    both = _device_plan(GIB, *gpus, vram="25%")
    assert [tier.budget_bytes for tier in both.tiers] == [GIB, 256 * MIB, 256 * MIB]
    one = _device_plan(GIB, *gpus, vram={1: "200MiB"})
    assert [tier.name for tier in one.tiers] == ["ram", "gpu1"]
    assert one.config.devices == ("CUDA1",)
    free = _device_plan(GIB, *gpus)
    assert [tier.budget_bytes for tier in free.tiers] == [GIB, 960 * MIB, 960 * MIB]  # less the reserve
    remote = _device_plan(GIB, make_device("host:1"))
    assert remote.tiers[1].budget_bytes == GIB  # all that is lent
    capped = _device_plan(GIB, make_device("host:1"), rpc={"host:1": "50%"})
    assert capped.tiers[1].budget_bytes == 512 * MIB


def test_a_device_budget_above_what_is_free_is_limited() -> None:
    plan = _device_plan(GIB, make_device("gpu0", 150 * MIB), vram=GIB)
    assert plan.fits
    assert (plan.tiers[1].budget_bytes, plan.tiers[1].limit_bytes) == (GIB, 150 * MIB)
    assert plan.tiers[1].total_bytes <= 150 * MIB


def test_a_budget_below_a_devices_runtime_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"gpu0: the budget is 100.00 MiB.* its runtime alone takes 100.00 MiB"
    ):
        _device_plan(GIB, make_device("gpu0", GIB, 100 * MIB), vram="100MiB")


def test_a_device_that_is_slower_than_ram_is_left_alone_and_said() -> None:
    plan = _device_plan(GIB, make_device(), speeds=(make_speed(1e8),))
    assert (plan.config.devices, plan.config.layers, plan.config.overrides) == ((), (), ())
    assert plan.config.load_mode == "mmap"
    assert plan.tiers[1].total_bytes == 0
    assert "gpu0 is not used: with it the model would be slower, and RAM suffices" in plan.why


def test_a_device_that_is_slower_than_ram_takes_what_ram_does_not_hold() -> None:
    plan = _device_plan(150 * MIB, make_device(), speeds=(make_speed(1e8),))
    assert plan.fits
    assert plan.tiers[1].weights_bytes > 0


def test_a_device_that_could_not_be_measured_is_assumed() -> None:
    plan = _device_plan(GIB, make_device(), speeds=(None,))
    assert plan.config.devices
    assert plan.prediction.basis == "assumed"


@pytest.mark.parametrize(("repack", "needs"), [("on", 180 + 16), ("off", 180 + 0.75 + 5)])
def test_a_lender_needs_room_for_what_is_on_its_way(repack: str, needs: float) -> None:
    """Its wall counts all weights and then what comes at once. Of weights that are rewritten that is the
    largest tensor: 180 + 16 MiB, which is more than it holds in the end, with a context of 256 and so 0.75
    MiB of KV. Otherwise it is a piece of 1 MiB, less than the KV and 5 MiB of buffers that come later."""
    total = int(needs * MIB) + 4 * 256
    for budget, whole in ((total + 2 * MIB, True), (total, False)):
        plan = _device_plan(GIB, make_device("host:1", budget), context=256, repack=repack)
        assert (plan.config.layers == (3,) and not plan.config.overrides) is whole


@pytest.mark.parametrize(
    ("devices", "repack", "mode"),
    [
        ((make_device("host:1"),), "off", "own"),
        ((make_device("host:1"), make_device("host:2")), "off", "own"),
        ((make_device("host:1"),), "on", "read"),
        ((make_device("gpu0"),), "off", "read"),
        ((make_device("gpu0"), make_device("host:1")), "off", "read"),
        ((replace(make_device("host:1"), is_memfit_server=False),), "off", "own"),
    ],
)
def test_workers_are_sent_plain_weights_by_ourselves(
    devices: tuple[Device, ...], repack: str, mode: str
) -> None:
    rpc = {one.name: None for one in devices if one.is_remote}
    plan = _device_plan(GIB, *devices, repack=repack, rpc=rpc)
    assert (bool(plan.config.devices), plan.config.load_mode) == (True, mode)
    assert (plan.config.streamed, plan.config.ring_bytes, plan.streamed_bytes) == ((), 0, 0)
    assert sum(line.startswith(f"load mode {mode}: ") for line in plan.why) == 1
    assert not any("from the disk" in line for line in plan.why)


def test_a_model_larger_than_ram_and_device_names_ram_and_what_helps() -> None:
    plan = _device_plan(60 * MIB, make_device("gpu0", 100 * MIB), vram="100%")
    assert not plan.fits
    with pytest.raises(DoesNotFitError, match="RAM"):
        plan.require_fit()
    assert plan.tiers[1].weights_bytes > 60 * MIB  # the device holds what it can
    assert any(text.startswith("--ram") for text in plan.suggestions)


@settings(max_examples=times(15, 150))
@given(
    ram=st.integers(30, 260),
    vram=st.lists(st.integers(10, 220), min_size=1, max_size=2),
    context=st.sampled_from([256, 4096, 16384]),
    tied=st.booleans(),
    is_memfit_server=st.booleans(),
)
def test_no_plan_with_devices_exceeds_a_budget(
    ram: int, vram: list[int], context: int, tied: bool, is_memfit_server: bool
) -> None:
    """And what RAM alone holds, RAM and devices hold too."""
    names = [f"host:{index + 1}" if is_memfit_server else f"gpu{index}" for index in range(len(vram))]
    devices = [make_device(name, size * MIB, MIB) for name, size in zip(names, vram, strict=True)]
    spec = make_layered_spec(tied=tied)
    oracle = DeviceOracle(spec)
    asked: dict[str, Any] = {"spec": spec, "context": context, "kv_type": "f16"}
    plan = _device_plan(ram * MIB, *devices, vram="100%", **asked)
    if plan.fits:
        assert all(tier.total_bytes <= tier.limit_bytes for tier in plan.tiers)
        answer = oracle.ask(plan.config)
        own = plan.config.load_mode == "own"
        assert own == (is_memfit_server and bool(plan.config.devices))
        # We map a table that is read by row, and hold two pages of each row of a ubatch.
        mapped = 10 * MIB - plan.config.ubatch * 2 * 4096 if own and not tied else 0
        assert plan.ram.total_bytes >= answer.total_bytes - mapped
        for tier, device in zip(plan.tiers[1:], answer.devices, strict=bool(answer.devices)):
            assert tier.total_bytes >= device.total_bytes + MIB
        # A worker's own wall: its runtime, all it is sent, and a piece of that once more.
        found = not plan.suggestions  # and so not merely the smallest configuration
        for device, tier in enumerate(plan.tiers[1:], start=1):
            if is_memfit_server and answer.devices and found:
                there = engine_devices(spec, plan.config)
                sizes = [one.size_bytes for one, where in there if where == device]
                assert MIB + sum(sizes) + min(MIB, max(sizes, default=0)) <= tier.limit_bytes
    alone = oracle.ask(replace(plan.config, devices=(), layers=(), overrides=(), ubatch=32))
    assert plan.fits or alone.total_bytes > ram * MIB


@pytest.mark.parametrize(("ram", "vram", "context"), [(100, 60, 4096), (60, 100, 16384), (45, 30, 4096)])
@pytest.mark.parametrize("name", ["gpu0", "host:1"])
def test_suggestions_with_devices_fit(ram: int, vram: int, context: int, name: str) -> None:
    device = make_device(name, vram * MIB, MIB)
    asked: dict[str, Any] = {"vram": "100%", "context": context}
    plan = _device_plan(ram * MIB, device, **asked)
    assert not plan.fits
    assert any(one.startswith("--ram") for one in plan.suggestions)
    for suggestion in plan.suggestions:
        option, value = shlex.split(suggestion)
        size: int | str = value if option == "--ram" else ram * MIB
        more = {"--ctx": {"context": value}, "--kv-type": {"kv_type": value}}.get(option, {})
        changed = {key: int(text) if key == "context" else text for key, text in more.items()}
        assert _device_plan(size, device, **{**asked, **changed}).fits, suggestion


def test_a_ram_that_is_suggested_was_tried() -> None:
    """A larger budget is another placement, which may need more of it than the one that did not fit."""
    device = make_device("host:1", 40 * MIB, MIB)
    asked: dict[str, Any] = {"vram": "100%", "context": 16384}
    plan = _device_plan(150 * MIB, device, **asked)
    assert not plan.fits
    (size,) = [text.split()[1] for text in plan.suggestions if text.startswith("--ram")]
    assert _device_plan(size, device, **asked).fits


@pytest.mark.parametrize("small", [2, 4, 5, 6])
def test_a_device_too_small_for_compute_buffers_is_left_out_and_said(small: int) -> None:
    """5 MiB of buffers and 1.5 of room: opened, it would take the others' use from them."""
    spec = make_layered_spec()
    gpu0, gpu1 = make_device("gpu0", 181 * MIB), make_device("gpu1", small * MIB)
    without = _device_plan(120 * MIB, gpu0, vram="100%")
    plan = _device_plan(120 * MIB, gpu0, gpu1, vram="100%")
    assert (plan.fits, plan.config) == (True, without.config)
    assert [tier.name for tier in plan.tiers] == ["ram", "gpu0"]
    said = "gpu1 is not used: its budget holds little more than compute buffers"
    assert said in plan.why and said not in without.why
    alone = _device_plan(GIB, gpu1, vram="100%", spec=spec)
    assert (alone.config.devices, said in alone.why) == ((), True)


def test_a_device_with_a_little_more_room_is_used() -> None:
    plan = _device_plan(GIB, make_device("gpu0", 40 * MIB), vram="100%")
    assert plan.tiers[1].weights_bytes + plan.tiers[1].kv_cache_bytes > 30 * MIB
    assert not any("little more than compute buffers" in line for line in plan.why)


@pytest.mark.parametrize("lent", [(110, 91), (16,)])
def test_what_ram_alone_holds_is_planned_beside_any_lender(lent: tuple[int, ...]) -> None:
    spec = make_layered_spec()
    devices = [make_device(f"host:{index}", size * MIB, MIB) for index, size in enumerate(lent, start=1)]
    asked: dict[str, Any] = {"spec": spec, "context": 16384 if len(lent) > 1 else 256, "kv_type": "f16"}
    ram = 264 * MIB if len(lent) > 1 else 219 * MIB
    alone = _plan(ram, oracle=DeviceOracle(spec), **asked)  # type: ignore[arg-type]
    assert alone.fits
    assert _device_plan(ram, *devices, **asked).fits


def _offloading(link: float, conditions: Conditions | None = None, **workload: Any) -> LlamaPlan:
    """A GPU with room for a part of the model, that gets `link` bytes of weights a second."""
    gpu = make_speed(1e11, sent_bytes_per_second=link)
    asked = {"prompt_tokens": 512, "generated_tokens": 16, "context": 1024, **workload}
    return _device_plan(GIB, make_device(), speeds=(gpu,), vram=100 * MIB, conditions=conditions, **asked)


def test_a_gpu_multiplies_prompts_with_what_lies_in_ram_where_that_is_faster() -> None:
    taking, slow = _offloading(1e10), _offloading(1e3)
    for plan, takes_over in ((taking, True), (slow, False)):
        assert plan.config.devices and plan.config.op_offload is takes_over
        (why,) = (line for line in plan.why if "multiplies prompts with what lies in RAM" in line)
        assert why.startswith("gpu0 multiplies" if takes_over else "this CPU computes")
    assert taking.prediction.prompt.value > 2 * slow.prediction.prompt.value


@pytest.mark.parametrize("share", [0.7, 1.5])
@pytest.mark.parametrize(("ubatch", "prompt_tokens"), [(64, 640), (256, 1024), (512, 1024), (512, 100)])
def test_who_multiplies_is_the_faster_one(ubatch: int, prompt_tokens: int, share: float) -> None:
    """W bytes in RAM and n tokens of a pass: the CPU takes 2 W n / 2e9 seconds, the GPU W / link to get them
    and 2 W n / 2e11, so that it is faster with a link above 1e9 / 0.99 n bytes a second."""
    link = share * 1e9 / 0.99 / min(ubatch, prompt_tokens)
    plan = _offloading(link, prompt_tokens=prompt_tokens, conditions=Conditions(ubatch=ubatch))
    assert plan.config.devices and plan.config.ubatch == ubatch
    assert plan.config.op_offload is (share > 1)


@pytest.mark.parametrize(
    ("prompt_tokens", "context", "ubatch"),
    [(512, 8192, 512), (513, 8192, 1024), (3000, 8192, 4096), (8000, 8192, 4096), (3000, 3000, 2048)],
)
def test_what_is_sent_for_each_ubatch_makes_it_larger(prompt_tokens: int, context: int, ubatch: int) -> None:
    """As large as a prompt fills, where the link is what limits it."""
    plan = _offloading(1e8, prompt_tokens=prompt_tokens, context=context)
    assert (plan.config.op_offload, plan.config.ubatch) == (True, ubatch)
    assert any(line.startswith(f"ubatch {ubatch}: ") for line in plan.why)
    by_cpu = _offloading(1e3, prompt_tokens=prompt_tokens, context=context)
    assert (by_cpu.config.op_offload, by_cpu.config.ubatch) == (False, 512)


@pytest.mark.parametrize("asked", [{"prompt_tokens": 31}, {"repack": "on"}])
def test_prompts_below_32_tokens_and_rewritten_weights_stay_with_the_cpu(asked: dict[str, Any]) -> None:
    assert not _offloading(1e10, **asked).config.op_offload


def test_what_we_hold_is_not_sent_whatever_a_plan_says() -> None:
    api = SimpleNamespace(llama_context_default_params=lambda: SimpleNamespace(op_offload=True))
    config = replace(_offloading(1e10).config, threads=2)
    assert context_options(api, config).op_offload
    assert not context_options(api, replace(config, load_mode="own")).op_offload


def test_streamed_weights_are_not_sent() -> None:
    """The engine would send what has not been read yet."""
    spec = make_layered_spec()
    gpu = make_speed(1e11, sent_bytes_per_second=1e12)
    plan = make_plan(
        PlanInputs(
            spec=spec,
            machine=make_machine(gpus=(make_gpu(),)),
            budget=Budget(ram=80 * MIB, vram=60 * MIB, disk=True),
            workload=Workload(context=256),
            speeds=make_speeds(),
            devices=[(make_device(), gpu)],
        ),
        DeviceOracle(spec),
    )
    assert plan.config.devices and plan.config.streamed and not plan.config.op_offload


def test_a_plan_that_opens_no_gpu_gets_no_help_from_it() -> None:
    """It multiplies fast, but streams and enters too slowly to be worth opening."""
    spec = make_layered_spec()
    gpu = make_speed(
        1e8,
        sent_bytes_per_second=1e12,
        weights={"Q8_0": WeightSpeed(bytes_per_second=1e8, operations_per_second=1e15)},
    )
    plan = _device_plan(GIB, make_device(), spec=spec, speeds=(gpu,))
    assert plan.config.devices == () and not plan.config.op_offload
    alone = _plan(GIB, spec=spec, oracle=DeviceOracle(spec))  # type: ignore[arg-type]
    assert plan.prediction == alone.prediction


def test_what_lies_on_an_integrated_gpu_counts_as_ram_once() -> None:
    integrated = replace(make_device(), is_integrated=True)
    own, shared = (_device_plan(GIB, one, vram="1GiB") for one in (make_device(), integrated))
    assert own.config == shared.config and own.config.devices
    assert shared.tiers[1] == own.tiers[1]
    assert shared.ram.total_bytes == own.ram.total_bytes + own.tiers[1].total_bytes
    assert sum("gpu0 is integrated" in line for line in shared.why) == 1
    # With RAM for the model and no more, it does not fit twice.
    tight = _device_plan(shared.ram.total_bytes - 16 * MIB, integrated, vram="1GiB")
    assert tight.ram.total_bytes < shared.ram.total_bytes
    assert _device_plan(GIB, integrated).config.devices == ()  # nobody asked for it


def test_what_is_on_its_way_to_a_worker_by_hand() -> None:
    """Each tensor lies there twice while it comes; those before it, once."""
    whole = 16 * MIB
    assert _receiving([], whole) == 0
    assert _receiving([8 * MIB, 256], whole) == 8 * MIB - 256
    # 60 before the last matrix, so 76 with it, of which 68 and two norms stay
    assert _receiving([16 * MIB, 16 * MIB, 16 * MIB, 12 * MIB, 8 * MIB, 256, 256], whole) == 8 * MIB - 512
    assert _receiving([16 * MIB, 8 * MIB, 256], whole) == 8 * MIB - 256
    assert _receiving([16 * MIB], whole) == 16 * MIB


def test_what_is_on_its_way_in_pieces_by_hand() -> None:
    """Of the tensor that comes, a piece lies there twice."""
    assert _receiving([16 * MIB], MIB) == MIB
    assert _receiving([16 * MIB, 8 * MIB, 256], MIB) == MIB - 256
    # 4 + 1, or 4 + 3 * 256 KiB before the last and that twice
    assert _receiving([4 * MIB, *[256 * KIB] * 4], MIB) == 256 * KIB
    assert _receiving([4 * MIB, *[256 * KIB] * 2], MIB) == 512 * KIB


@pytest.mark.parametrize(("repack", "piece"), [("on", 16 * MIB), ("off", MIB)])
def test_a_worker_keeps_room_for_what_comes_to_it_and_not_to_another(repack: str, piece: int) -> None:
    """A context of 256 has 0.75 MiB of KV: beside 5 of buffers little is free for what is on its way."""
    devices = [make_device("host:1", 130 * MIB, MIB), make_device("host:2", 100 * MIB, MIB)]
    spec = make_layered_spec()
    plan = _device_plan(100 * MIB, *devices, spec=spec, context=256, repack=repack)
    assert plan.fits and len(plan.config.devices) == 2
    answer = DeviceOracle(spec).ask(plan.config)
    for device, (tier, held) in enumerate(zip(plan.tiers[1:], answer.devices, strict=True), start=1):
        there = engine_devices(spec, plan.config)
        sizes = sorted((one.size_bytes for one, where in there if where == device), reverse=True)
        assert sizes
        peak = max(sum(sizes[:index]) + size + min(size, piece) for index, size in enumerate(sizes))
        assert tier.parts["overhead"] == MIB + max(0, peak - sum(sizes) - held.kv_cache_bytes - 5 * MIB)
        assert MIB + sum(sizes) + piece == tier.reserved_bytes <= tier.limit_bytes


@pytest.mark.parametrize(("threads", "scratch"), [(0, 1), (2, 1), (4, 1), (5, 1.5), (20, 9)])
def test_a_worker_with_more_threads_needs_more_scratch(threads: int, scratch: float) -> None:
    """This side has 4; each thread beyond them takes half a MiB there, and nothing here."""
    device = replace(make_device("host:1"), threads=threads)
    plan = _device_plan(GIB, device, threads=4)
    assert plan.config.layers == (3,)
    assert plan.tiers[1].compute_bytes == (4 + scratch) * MIB
    assert plan.ram.compute_bytes == (4 + 1 + 4) * MIB


def test_another_rpc_server_receives_into_its_own_account() -> None:
    """It counts nothing by itself; what is on its way to it is counted here, in our pieces of 1 MiB."""
    server = replace(make_device("host:1", GIB), is_memfit_server=False)
    plan = _device_plan(GIB, server, rpc={"host:1": None}, context=256)
    assert plan.config.layers == (3,) and plan.config.load_mode == "own"
    assert (plan.tiers[1].parts["overhead"], plan.tiers[1].reserved_bytes) == (0, 0)
    assert plan.ram.parts["overhead"] == 20 * MIB
    whole = _device_plan(GIB, server, rpc={"host:1": None}, context=256, repack="on")
    assert whole.tiers[1].parts["overhead"] > 0
    assert whole.ram.parts["overhead"] == (20 + 32 - 5) * MIB


def test_the_solver_may_be_another() -> None:
    """make_plan asks the one it is given, and that one only."""
    spec = make_layered_spec()
    problems: list[Problem] = []

    def solver(problem: Problem) -> Placement | None:
        problems.append(problem)
        return solve(problem)

    plan = make_plan(
        PlanInputs(
            spec=spec,
            machine=make_machine(gpus=(make_gpu(),)),
            budget=Budget(ram=GIB),
            workload=Workload(repack="off"),
            speeds=make_speeds(),
            devices=((make_device(), make_speed(1e11)),),
        ),
        DeviceOracle(spec),
        solver,
    )
    assert plan.config.devices == ("CUDA0",)
    assert problems and all(len(one.devices) == 2 for one in problems)


@pytest.mark.parametrize(("name", "asked"), [("gpu0", {"vram": "100%"}), ("host:1", {})])
def test_a_device_that_was_asked_for_is_filled_even_where_ram_is_faster(
    name: str, asked: dict[str, Any]
) -> None:
    """As far as blocks of 16 MiB come out even, and it is said what that costs."""
    device = make_device(name, 100 * MIB)
    plan = _device_plan(GIB, device, speeds=(make_speed(1e8),), **asked)
    assert plan.fits
    assert 84 * MIB <= plan.tiers[1].total_bytes <= 100 * MIB
    said = [line for line in plan.why if line.startswith("devices are used because they were asked for")]
    assert len(said) == 1
    faster = _device_plan(GIB, device, **asked)
    assert not any("asked for: RAM alone" in line for line in faster.why)


@pytest.mark.parametrize(("disk", "streams"), [(1e12, True), (1e6, False)])
def test_a_part_is_rather_streamed_than_prompts_read_all_weights_for_every_few_tokens(
    disk: float, streams: bool
) -> None:
    """Where only short ubatches leave all weights in RAM, and the disk is fast."""
    spec = make_layered_spec()
    multiplied = WeightSpeed(bytes_per_second=1e9, operations_per_second=1e15)
    reading = replace(make_speed(1e9), weights={"": multiplied})

    def planned(ram: int, *, may_stream: bool) -> LlamaPlan:
        return make_plan(
            PlanInputs(
                spec=spec,
                machine=make_machine(),
                budget=Budget(ram=ram, disk=may_stream),
                workload=Workload(context=512, repack="off", kv_type="f16", generated_tokens=1),
                speeds={False: reading},
                disk_speed=lambda: (disk, disk),
            ),
            FakeOracle(),
        )

    sizes = range(0, GIB, MIB)
    least = sizes[bisect_left(sizes, True, key=lambda ram: planned(ram, may_stream=False).fits)]
    assert planned(least, may_stream=False).ubatch == 32
    plan = planned(least + ROOM_FOR_ERROR, may_stream=True)
    assert (plan.fits, bool(plan.config.streamed), plan.ubatch) == (True, streams, 512 if streams else 32)
