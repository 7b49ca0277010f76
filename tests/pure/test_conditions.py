"""llama.cpp's placement options: kept to the tensor, priced against the planner's own choice, or refused.

Where llama.cpp would put each tensor is written down here a second time, from its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fakes import (
    DeviceOracle,
    engine_devices,
    make_device,
    make_layered_spec,
    make_machine,
    make_speed,
    make_speeds,
    make_tensor,
)

from memfit.cli.main import main
from memfit.cli.options import placement_options, take_conditions
from memfit.engines.protocol import PlanOptions
from memfit.engines.transformers.planning import TransformersPlanner
from memfit.errors import DoesNotFitError, UsageError
from memfit.headers.model_spec import ModelSpec
from memfit.planner.llamacpp.changes import own_choice
from memfit.planner.llamacpp.conditions import layers_per_device
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.request import ALL_LAYERS, Budget, Conditions, Workload
from memfit.planner.saved import _PATTERN
from memfit.units import GIB, KIB, MIB

_BIAS = make_tensor("blk.1.attn_q.bias", (1024,), "F32", 4096)
_DENSE = make_layered_spec(4, more=(_BIAS,))
_MOE = make_layered_spec(4, experts=dict.fromkeys(range(1, 4), 8))


def _plan(
    spec: ModelSpec,
    conditions: Conditions,
    *,
    ram: int = GIB,
    vram: int = GIB,
    device_speed: float = 1e11,
    devices: int = 1,
    **changes: Any,
) -> LlamaPlan:
    lent = [(make_device(f"gpu{index}"), make_speed(device_speed)) for index in range(devices)]
    inputs = PlanInputs(
        spec=spec,
        machine=make_machine(),
        budget=Budget(ram=ram, vram=dict.fromkeys(range(devices), vram), disk=False),
        workload=Workload(repack="off", context=1024),
        conditions=conditions,
        speeds=make_speeds(),
        devices=lent,
    )
    inputs = replace(inputs, **changes)
    plan = _made(inputs)
    return replace(plan, own_choice=own_choice(inputs, _made)) if conditions else plan


def _made(inputs: PlanInputs) -> LlamaPlan:
    return make_plan(inputs, DeviceOracle(inputs.spec))


def _lies(plan: LlamaPlan) -> dict[str, int]:
    """Device of each tensor, as the engine understands the plan's config."""
    return {tensor.name: device for tensor, device in engine_devices(plan.spec, plan.config)}


def _llamacpp(spec: ModelSpec, gpu_layers: int, *patterns: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """llama_model::load_tensors: with `i_gpu_start = n_layer + 1 - n_gpu_layers`, one device."""
    layers = 4
    start = max(layers + 1 - gpu_layers, 0)
    for tensor in spec.tensors:
        found = [device for pattern, device in patterns if re.search(pattern, tensor.name)]
        index = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else layers
        if tensor.name == "token_embd.weight":
            index = -1
        yield tensor.name, found[0] if found else int(index >= start)


@pytest.mark.parametrize("gpu_layers", range(7))
def test_layers_lie_where_llamacpp_puts_them(gpu_layers: int) -> None:
    plan = _plan(_DENSE, Conditions(gpu_layers=gpu_layers))
    assert _lies(plan) == dict(_llamacpp(_DENSE, gpu_layers))
    assert plan.fits


@pytest.mark.parametrize("layers", [0, 2, 3, ALL_LAYERS])
def test_experts_stay_in_ram(layers: int) -> None:
    plan = _plan(_MOE, Conditions(cpu_moe_layers=layers))
    pattern = rf"blk\.({'|'.join(map(str, range(min(layers, 9))))})\.ffn_(up|down|gate)_exps"
    assert _lies(plan) == dict(_llamacpp(_MOE, 5, *([(pattern, 0)] if layers else [])))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([("ffn_down", "CPU")], [("ffn_down", 0)]),
        ([(r"blk\.[12]\..*", "ram")], [(r"blk\.[12]\..*", 0)]),
        ([("attn_q.weight", "cpu")], [("attn_q.weight", 0)]),  # without its bias
        ([("blk.0.ffn_up", "CUDA0"), ("ffn_up", "CPU")], [("blk.0.ffn_up", 1), ("ffn_up", 0)]),
        ([("^output", "CPU")], [("^output", 0)]),
        ([("token_embd", "gpu0")], [("token_embd", 1)]),
        ([("ffn_gate", "RPC0[gpu0]")], [("ffn_gate", 1)]),
    ],
)
def test_single_tensors(given: list[tuple[str, str]], meant: list[tuple[str, int]]) -> None:
    """With all layers on the device, and where the planner is free: there all of them fit it."""
    for gpu_layers in (ALL_LAYERS, None):
        conditions = Conditions(gpu_layers=gpu_layers, overrides=tuple(given))
        plan = _plan(_DENSE, conditions)
        assert _lies(plan) == dict(_llamacpp(_DENSE, 5, *meant))
        assert all(_PATTERN.fullmatch(pattern) for pattern, _ in plan.config.overrides)


def test_a_tensor_on_a_device_that_holds_nothing_else() -> None:
    """RAM is faster, so all else stays there."""
    plan = _plan(_DENSE, Conditions(overrides=(("blk.2.ffn_up", "gpu0"),)), device_speed=1e8, budget=Budget())
    assert [name for name, device in _lies(plan).items() if device] == ["blk.2.ffn_up.weight"]
    assert plan.tiers[1].weights_bytes == 16 * MIB


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_table_on_a_device_is_not_in_ram_as_well(tied: bool) -> None:
    spec = make_layered_spec(4, tied=tied)
    conditions = Conditions(gpu_layers=2, overrides=(("token_embd", "host:1"),))
    inputs = PlanInputs(
        spec=spec,
        machine=make_machine(),
        budget=Budget(ram=GIB, rpc={"host:1": GIB}, disk=False),
        workload=Workload(repack="off", context=1024),
        conditions=conditions,
        speeds=make_speeds(),
        devices=[(make_device("host:1"), make_speed(1e11))],
    )
    plan = _made(inputs)
    held = sum(tensor.size_bytes for tensor, device in engine_devices(spec, plan.config) if not device)
    assert plan.config.load_mode == "own" and plan.ram.weights_bytes == pytest.approx(held, abs=64 * KIB)


def test_several_devices_take_shares_of_their_room() -> None:
    assert layers_per_device(10, ALL_LAYERS, [100, 100]) == (6, 4)
    assert layers_per_device(10, 4, [300, 100]) == (3, 0)
    assert layers_per_device(10, 1, [100, 100]) == (0, 0)
    assert layers_per_device(10, 0, [100, 100]) == (0, 0)
    plan = _plan(_DENSE, Conditions(gpu_layers=ALL_LAYERS), devices=2)
    assert plan.config.layers == (3, 1)
    assert _lies(plan)["output.weight"] == 2


def test_the_ubatch_that_was_asked_for() -> None:
    for asked, given in ((64, 64), (100, 100), (5000, 1024)):
        plan = _plan(_DENSE, Conditions(ubatch=asked))
        assert plan.config.ubatch == given
    assert "ubatch 1024: the context is 1024" in plan.why


# --- priced ---


def test_the_planners_own_choice_is_priced_beside() -> None:
    plan, own = (_plan(_DENSE, one) for one in (Conditions(gpu_layers=2), Conditions()))
    assert plan.own_choice is not None
    assert plan.own_choice.generation == own.prediction.generation
    assert plan.own_choice.generation.value > plan.prediction.generation.value
    assert "as asked: --gpu-layers 2" in plan.why
    assert own.own_choice is None
    written = json.loads(json.dumps(plan.to_json()))
    assert written["own_choice"]["generation"]["value"] == own.prediction.generation.value
    assert own.to_json()["own_choice"] is None


def test_conditions_as_options() -> None:
    conditions = Conditions(gpu_layers=ALL_LAYERS, cpu_moe_layers=3, overrides=(("a", "CPU"),), ubatch=64)
    assert str(conditions) == "--gpu-layers all, --n-cpu-moe 3, -ot a=CPU, --ubatch 64"
    assert str(Conditions(cpu_moe_layers=ALL_LAYERS)) == "--cpu-moe"
    assert not Conditions()


def test_without_layers_on_devices_there_are_none() -> None:
    plan, alone = _plan(_DENSE, Conditions(gpu_layers=0)), _plan(_DENSE, Conditions(), devices=0)
    assert plan.tiers == alone.tiers and plan.config == alone.config


# --- refused ---


def test_what_ram_could_hold_does_not_stream_where_a_device_is_too_small() -> None:
    budget = Budget(ram=GIB, vram={0: 150 * MIB})
    plan = _plan(_DENSE, Conditions(gpu_layers=5), vram=150 * MIB, budget=budget)
    assert not plan.fits and plan.overfull == plan.tiers[1]
    assert not plan.streamed_bytes


@pytest.mark.parametrize("name", ["MEMFIT_GPU_LAYERS", "MEMFIT_UBATCH"])
def test_the_first_long_spelling_names_the_variable(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "many")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "demo"])
    assert stopped.value.code == 2
    assert "many" in capfd.readouterr().err


def test_layers_that_do_not_fit_are_refused_with_as_many_as_do() -> None:
    plan = _plan(_DENSE, Conditions(gpu_layers=5), vram=150 * MIB)
    with pytest.raises(DoesNotFitError, match="gpu0") as caught:
        plan.require_fit()
    assert caught.value.suggestions[0] == "--gpu-layers 3"
    assert _plan(_DENSE, Conditions(gpu_layers=3), vram=150 * MIB).fits
    assert not _plan(_DENSE, Conditions(gpu_layers=4), vram=150 * MIB).fits


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions(overrides=(("nothing", "CPU"),)), "--override-tensor nothing: no tensor of this model"),
        (
            Conditions(overrides=(("ffn_up", "CUDA7"),)),
            "there is no device CUDA7 to use; known here: CPU, CUDA0",
        ),
        (Conditions(overrides=(("ffn_(up", "CPU"),)), r"ffn_\(up is no regular expression"),
        (Conditions(overrides=(("[[:digit:]]+.ffn", "CPU"),)), r"is no regular expression"),
        (Conditions(cpu_moe_layers=2), "--n-cpu-moe: this model has no experts"),
        (Conditions(cpu_moe_layers=ALL_LAYERS), "--cpu-moe: this model has no experts"),
    ],
)
def test_conditions_that_nothing_can_keep(conditions: Conditions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _plan(_DENSE, conditions)


def test_layers_without_a_device() -> None:
    with pytest.raises(UsageError, match=r"no device that could hold layers; it takes a GPU or --rpc"):
        _plan(_DENSE, Conditions(gpu_layers=1), devices=0)
    with pytest.raises(UsageError, match=r"it takes more memory on gpu0"):
        _plan(_DENSE, Conditions(gpu_layers=1), vram=6 * MIB)
    assert _plan(_DENSE, Conditions(gpu_layers=0), devices=0).fits


@pytest.mark.parametrize("value", [-1, 65_537])
@pytest.mark.parametrize("name", ["gpu_layers", "cpu_moe_layers", "ubatch"])
def test_numbers_that_make_no_sense(name: str, value: int) -> None:
    with pytest.raises(UsageError, match="must be between"):
        Conditions(**{name: value})


# --- the command line ---


def _taken(*arguments: str) -> Conditions:
    taken: list[Conditions] = []

    @click.command
    @placement_options
    def command(**options: Any) -> None:
        taken.append(take_conditions(options))
        assert options == {}

    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return taken[0]


def test_llamacpps_spellings() -> None:
    for name in ("--gpu-layers", "--n-gpu-layers", "-ngl"):
        assert _taken(name, "7") == Conditions(gpu_layers=7)
    assert _taken("-ngl", "all") == Conditions(gpu_layers=ALL_LAYERS)
    assert _taken("-ngl", "auto") == Conditions()
    assert _taken("-cmoe") == _taken("--cpu-moe") == Conditions(cpu_moe_layers=ALL_LAYERS)
    assert _taken("-ncmoe", "3") == _taken("--n-cpu-moe", "3") == Conditions(cpu_moe_layers=3)
    assert _taken("-ub", "64") == _taken("--ubatch-size", "64") == Conditions(ubatch=64)
    expected = Conditions(overrides=(("a.*", "CPU"), ("b", "CUDA0"), ("c", "host:1")))
    assert _taken("-ot", "a.*=CPU,b=CUDA0", "--override-tensor", "c=host:1") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-ngl", "-1"], "gpu-layers is '-1'; it must be a number of layers, all or auto"),
        (["-ngl", "9999999999"], "--gpu-layers is '9999999999'"),
        (["-ngl", "many"], "--gpu-layers is 'many'"),
        (["-ot", "a"], "--override-tensor is 'a'; it must be PATTERN=DEVICE"),
        (["-ot", "a=CPU,"], "--override-tensor is ''"),
        (["--cpu-moe", "--n-cpu-moe", "3"], "are two answers to one question"),
        (["-n", "100"], "memfit has --gen-tokens N."),
        (["-p", "512"], "memfit has --prompt-tokens N."),
        (["--temp", "0"], "No such option '--temp'."),
        (["-c", "4096"], "No such option '-c'. For llama.cpp's -c, memfit has --ctx N."),
        (["-fa", "on"], "For llama.cpp's -fa, memfit has nothing: the engine uses flash attention"),
        (["--no-mmap"], "For llama.cpp's --no-mmap, memfit has nothing"),
        (["--tensor-split", "3,1"], "memfit has --vram 0=SIZE"),
        (["--no-such-thing"], "No such option '--no-such-thing'"),
    ],
)
def test_refusals(capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "demo", *arguments])
    assert stopped.value.code == 2
    assert message in capfd.readouterr().err


def test_a_checkpoint_has_no_such_options() -> None:
    options = PlanOptions(conditions=Conditions(gpu_layers=3))
    with pytest.raises(UsageError, match=r"--gpu-layers 3: placement options are for GGUF files"):
        TransformersPlanner(None, options, Workload())  # type: ignore[arg-type]
