"""Checkpoints on machines that are only described: speeds by hand from a profile's figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memfit.hardware.profile import Figure, Profile, ProfileGpu, profile_names, read_profile
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import LOAD_IN
from memfit.planner.request import ASSUMED_DISK
from memfit.planner.transformers.profile_speed import described_runtimes
from memfit.planner.transformers.runtime import Processes, Runtime
from memfit.units import MIB

_PROCESSES = Processes(process_bytes=400 * MIB, loading_process_bytes=380 * MIB, starting_bytes=500 * MIB)


def _config(load_in: str, *, double_quant: bool = False) -> TransformersConfig:
    return TransformersConfig(
        folder=Path("folder"),
        paths=(),
        load_in=load_in,
        double_quant=double_quant,
        context=4096,
        ubatch=512,
        threads=2,
    )


def _runtimes(profile: Profile, load_in: str = "bf16", *, double_quant: bool = False) -> list[Runtime]:
    gpus = [(gpu, gpu.free_bytes) for gpu in profile.to_machine().gpus if gpu.compute_capability]
    return described_runtimes(profile, _config(load_in, double_quant=double_quant), _PROCESSES, gpus)


def _with_gpu(profile: Profile, **changes: object) -> Profile:
    gpu: ProfileGpu = replace(profile.gpus[0], **changes)  # type: ignore[arg-type]
    return replace(profile, gpus=(gpu,))


def test_a_t4_by_hand() -> None:
    """70 % of 320 GB/s in 2 bytes a weight; 70 % of 23.5 T a second in fp16, and a 4.3th of that in bf16."""
    gpu, cpu = _runtimes(read_profile("colab-t4"))
    assert gpu.elements_per_second["bf16"] == pytest.approx(0.7 * 320e9 / 2)
    assert gpu.operations_per_second["fp16"] == pytest.approx(0.7 * 23.5e12)
    assert gpu.operations_per_second["bf16"] == pytest.approx(0.7 * 23.5e12 / 4.3)
    assert gpu.gpus[0].emulates_bf16 and gpu.basis == "profile"
    assert gpu.process_bytes > cpu.process_bytes == 400 * MIB
    assert (cpu.basis, cpu.gpus) == ("assumed", ())  # nobody states that RAM's bandwidth


def test_nf4_is_read_packed_and_unpacked_for_prompts() -> None:
    """Half a byte and a 64th of a float32 each; for a prompt that, and 2 bytes written and read, per pass of
    512 tokens."""
    gpu, _ = _runtimes(read_profile("rtx3090-24gb"), "nf4")
    bandwidth = 0.7 * 936e9
    assert gpu.elements_per_second["nf4"] == pytest.approx(bandwidth / 0.5625, rel=1e-3)
    seconds = 1 / gpu.operations_per_second["bf16"] + 4.5625 / bandwidth / 1024
    assert gpu.operations_per_second["nf4"] == pytest.approx(1 / seconds, rel=1e-3)
    assert not gpu.gpus[0].emulates_bf16 and not gpu.packs_4bit


def test_layers_take_longer_where_cores_are_slow_and_weights_quantized() -> None:
    desktop, server, colab = map(read_profile, ("rtx4090-24gb", "h100-80gb", "colab-t4"))
    plain = [_runtimes(one)[0].layer_seconds for one in (desktop, server, colab)]
    assert plain == sorted(plain)
    found = [_runtimes(desktop, one)[0].layer_seconds for one in ("bf16", "nf4", "int8")]
    assert found == sorted(found)
    nested = _runtimes(desktop, "nf4", double_quant=True)[0].layer_seconds
    assert found[1] < nested < found[2]


def test_what_a_profile_does_not_know_is_assumed() -> None:
    known = read_profile("rtx3060-12gb")
    assert [one.basis for one in _runtimes(known)] == ["profile", "profile"]
    assert _runtimes(_with_gpu(known, bandwidth_bytes_per_second=None))[0].basis == "assumed"
    assert _runtimes(replace(known, disk=None))[0].disk_bytes_per_second == ASSUMED_DISK
    halved = Figure(value=180e9, source=None)
    slower = _runtimes(_with_gpu(known, bandwidth_bytes_per_second=halved))[0]
    assert slower.elements_per_second["bf16"] == _runtimes(known)[0].elements_per_second["bf16"] / 2


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_all_precisions(name: str) -> None:
    for runtime in _runtimes(read_profile(name)):
        for rates in (runtime.elements_per_second, runtime.operations_per_second):
            assert set(rates) == set(LOAD_IN) and all(rate > 1e8 for rate in rates.values())
