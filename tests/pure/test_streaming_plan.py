"""What stays on the disk, by hand-made models; how that slows a prediction down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeOracle, make_machine, make_spec, make_speeds

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.memory.streaming import ring_bytes, streamed_bytes
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.streaming import held_bytes, row_bytes, stream_out
from memfit.planner.llamacpp.tensor_devices import devices_of
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import Prediction, Rate
from memfit.planner.streaming import slowed
from memfit.units import MIB

_LAYERS = 10
_KINDS = ("attn_q", "ffn_gate", "ffn_up", "ffn_down")
_PARAMETERS = LlamaConfig(
    paths=(Path("/models/toy.gguf"),),
    context=1024,
    parallel=1,
    kv_type="f16",
    ubatch=32,
    threads=1,
    repack=False,
    load_mode="own",
)


def _spec(*, tied: bool = False, experts: bool = False) -> ModelSpec:
    """Ten layers of four matrices of 1 MiB and a norm, a table of 4 MiB, an output of 2 MiB if not tied."""
    tensors, offset = [], 0

    def add(name: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal offset
        tensors.append(
            TensorSpec(
                name=name, shape=shape, type="Q8_0", size_bytes=size, offset_bytes=offset, file_index=0
            )
        )
        offset += size

    add("token_embd.weight", (1024, 4096), 4 * MIB)
    for layer in range(_LAYERS):
        add(f"blk.{layer}.attn_norm.weight", (1024,), 4096)
        for kind in _KINDS:
            name = f"{kind}_exps" if experts and kind.startswith("ffn") else kind
            add(f"blk.{layer}.{name}.weight", (1024, 1024), MIB)
    if not tied:
        add("output.weight", (1024, 2048), 2 * MIB)
    return make_spec(*tensors)


@pytest.mark.parametrize("tied", [False, True])
def test_everything_fits(tied: bool) -> None:
    spec = _spec(tied=tied)
    found = stream_out(spec, _PARAMETERS, 100 * MIB)
    assert found is not None and found.streamed == () and found.ring_bytes == 0
    # A table that is read by row takes the pages of its rows only.
    whole = sum(one.size_bytes for one in spec.tensors)
    assert held_bytes(spec, found) == (whole if tied else whole - 4 * MIB)
    assert row_bytes(spec, found) == (0 if tied else 32 * 2 * 4096)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_table_stays_in_ram_when_the_output_leaves(tied: bool) -> None:
    """Nine layers of 4 MiB and a norm's page each go away, and the output with them."""
    spec = _spec(tied=tied)
    here = replace(_PARAMETERS, devices=("host:1",), layers=(9,))
    assert devices_of(spec, here)["token_embd.weight"] == (1 if tied else RAM)
    assert held_bytes(spec, here) == 4096 + 4 * MIB + (4 * MIB if tied else 0)


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("room", [38, 30, 20, 10, 8])
def test_as_little_as_possible_evenly(room: int, experts: bool) -> None:
    spec = _spec(experts=experts)
    found = stream_out(spec, _PARAMETERS, room * MIB)
    assert found is not None
    assert (
        held_bytes(spec, found) <= room * MIB < held_bytes(spec, found) + 2.1 * MIB
    )  # a tensor less would not
    read = streamed_bytes(spec.tensors, found.streamed)
    assert read + held_bytes(spec, found) - found.ring_bytes >= 42 * MIB  # all but the table
    assert found.ring_bytes == ring_bytes([one for one in spec.tensors if one.name in found.streamed])
    if room >= 10:
        layers = [int(name.split(".")[1]) for name in found.streamed if name.startswith("blk")]
        assert abs(sum(layer < 5 for layer in layers) - sum(layer >= 5 for layer in layers)) <= 2


def test_small_tensors_tables_and_norms_are_pinned() -> None:
    spec = _spec(tied=True)
    everything = stream_out(spec, _PARAMETERS, None)
    assert everything is not None
    assert set(everything.streamed) == {
        f"blk.{layer}.{kind}.weight" for layer in range(_LAYERS) for kind in _KINDS
    }
    least = held_bytes(spec, everything)
    assert least == 4 * MIB + _LAYERS * 4096 + 3 * MIB
    assert stream_out(spec, _PARAMETERS, least) is not None
    assert stream_out(spec, _PARAMETERS, least - 1) is None


def test_the_slower_of_computing_and_reading() -> None:
    generation = Rate(value=10, low=7, high=13)
    prediction = Prediction(
        prompt=Rate(value=100, low=70, high=130),
        generation=generation,
        together=Rate(value=40, low=28, high=52),  # 8 sequences, 0.2 s a pass
        basis="calibrated",
    )
    disk = (0.5e9, 2e9)
    hidden = slowed(prediction, 25_000_000, 0, disk, 512, 512, 8)  # 0.025 s a pass, 0.1 at the slowest
    assert hidden == prediction
    slow = slowed(prediction, 2_000_000_000, 0, disk, 512, 128, 8)  # 2 s a pass, 4 passes of a prompt
    assert slow.together.value == pytest.approx(4)  # 8 tokens a pass
    assert slow.generation.value == pytest.approx(0.5) and slow.prompt.value == pytest.approx(64)
    assert slow.generation.low == pytest.approx(0.25 / 2) and slow.generation.high == pytest.approx(2)
    barely = slowed(prediction, 100_000_000, 0, disk, 512, 512, 8)  # 0.1 s a pass, as computing
    assert barely.generation.value == 10 and barely.generation.high == 13
    assert barely.generation.low == pytest.approx(2.5)
    many = slowed(prediction, 100_000_000, 800, disk, 512, 512, 8)  # and 0.4 s for the tensors
    assert many.generation.value == pytest.approx(2) and many.generation.low == pytest.approx(1 / 0.8)


def test_a_plan_streams_only_where_it_must() -> None:
    """Beside the weights: 16 MiB of KV cache, 30 of compute for a ubatch of 512, 1 + 22 of the rest."""
    oracle = FakeOracle()

    def plan(ram: int, *, disk: bool = True) -> LlamaPlan:
        return make_plan(
            PlanInputs(
                spec=_spec(),
                machine=make_machine(),
                budget=Budget(ram=ram * MIB, disk=disk),
                workload=Workload(repack="off", context=1024),
                speeds=make_speeds(),
                disk_speed=lambda: (1e6, 1e6),
            ),
            oracle,
        )

    roomy = plan(1024)
    assert roomy.fits and roomy.config.load_mode == "mmap" and roomy.streamed_bytes == 0
    tight = plan(100)
    assert tight.fits and tight.config.load_mode == "own"
    assert tight.config.ubatch == 512  # each one reads everything once
    assert 94 * MIB <= tight.ram.total_bytes <= 96 * MIB  # with room for what reality adds
    seconds = tight.streamed_bytes / 1e6 + 0.5e-3 * len(tight.config.streamed)
    assert tight.prediction.generation.value == pytest.approx(1 / seconds)
    assert any("read from the disk for every pass" in line for line in tight.why)
    assert not plan(100, disk=False).fits
    short = plan(30)
    assert not short.fits and short.suggestions
    enough = next(one for one in short.suggestions if one.startswith("--ram"))
    assert plan(int(enough.removeprefix("--ram ").removesuffix("MiB"))).fits
    for asked in oracle.asked:  # which knows nothing of disks
        assert asked.streamed == () and asked.ring_bytes == 0
    assert any(asked.load_mode == "own" for asked in oracle.asked)


def _refused_to_stream(ram: int, *, disk: bool = True) -> LlamaPlan:
    """Asked for rewritten weights in less memory than they take."""
    return make_plan(
        PlanInputs(
            spec=_spec(),
            machine=make_machine(),
            budget=Budget(ram=ram, disk=disk),
            workload=Workload(context=256, repack="on"),
            speeds=make_speeds(),
        ),
        FakeOracle(),
    )


def test_weights_to_be_rewritten_are_never_streamed() -> None:
    plan = _refused_to_stream(100 * MIB)
    assert not plan.fits
    assert plan.config.repack and plan.config.streamed == ()
    # 112 of weights, 2.125 of cache, 1.875 + 1 to compute with, 20 + 2 of processes
    assert plan.ram.needs_bytes == 139 * MIB
    assert plan.suggestions == ("--repack auto", "--ram 144MiB")


def test_what_would_not_fit_on_the_disk_either_is_not_suggested() -> None:
    assert "--repack auto" not in _refused_to_stream(30 * MIB).suggestions
    assert "--repack auto" not in _refused_to_stream(100 * MIB, disk=False).suggestions
