"""Speeds of a described machine: halving a figure moves the prediction as it must, and unknown is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import make_device_bytes, make_graph, make_operation

from memfit.hardware.profile import (
    Figure,
    Measured,
    Profile,
    ProfileCpu,
    ProfileGpu,
    ProfileRam,
    profile_names,
    read_profile,
)
from memfit.memory.estimate import MemoryEstimate
from memfit.planner.llamacpp.profile_speed import profile_speeds
from memfit.planner.speed import (
    ASSUMED_GPU,
    DeviceSpeed,
    Prediction,
    predict,
)
from memfit.units import GIB


def _figure(value: float) -> Figure:
    return Figure(value=value, source="https://example.org")


def _result(what: str, rate: float) -> Measured:
    return Measured(what=what, tokens_per_second=rate, source="https://example.org")


_RAM = ProfileRam(total_bytes=32 * GIB, system_bytes=0, bandwidth_bytes_per_second=_figure(50e9), type=None)
_CPU = ProfileCpu(
    model="Toy",
    architecture="x86_64",
    physical_cores=8,
    logical_cores=16,
    operations_per_second=_figure(400e9),
)
_GPU = ProfileGpu(
    name="Toy GPU",
    total_bytes=12 * GIB,
    reserved_bytes=0,
    bandwidth_bytes_per_second=_figure(400e9),
    operations_per_second=_figure(50e12),
    link_bytes_per_second=_figure(16e9),
    compute_capability="8.6",
    measured=(),
)
_PUBLISHED = (_result("llama 7B Q4_0 pp512", 2000.0), _result("llama 7B Q4_0 tg128", 75.0))


def _profile(*gpus: ProfileGpu, cpu: ProfileCpu = _CPU, ram: ProfileRam = _RAM) -> Profile:
    return Profile(name="toy", description="toy", cpu=cpu, ram=ram, gpus=gpus, disk=None)


def _predict(profile: Profile, device: int, *, link_bytes: int = 0, sent_bytes: int = 0) -> Prediction:
    """4 GB of weights at `device`; a prompt token takes 2 operations a byte."""
    ram, gpus = profile_speeds(profile)
    gigabytes = 4_000_000_000
    splits = (0,) * (1 + len(gpus))
    generation = make_graph(make_operation(bytes=gigabytes, device=device), splits=splits)
    prompt = make_graph(
        make_operation(bytes=gigabytes, operations=2 * gigabytes * 512, device=device),
        tokens=512,
        splits=splits,
    )
    if gpus:
        prompt = replace(
            prompt,
            split_bytes=(0, link_bytes, *[0] * len(gpus[1:])),
            sent_bytes=(0, sent_bytes, *[0] * len(gpus[1:])),
        )
    answer = MemoryEstimate(
        context=4096,
        weights_bytes=0,
        kv_cache_bytes=0,
        compute_bytes=0,
        scratch_bytes=0,
        process_bytes=0,
        generation=generation,
        prompt=prompt,
        devices=make_device_bytes(len(gpus)),
    )
    return predict(answer, [ram, *gpus], prompt_tokens=512, generated_tokens=128)


def test_ram_by_hand() -> None:
    """4 GB at 80 % of 50 GB/s: 0.1 s; 512 tokens of 8 G operations at 400 G a second: 10.24 s."""
    prediction = _predict(_profile(), 0)
    assert prediction.generation.value == pytest.approx(10.0, rel=1e-3)
    assert prediction.prompt.value == pytest.approx(50.0, rel=1e-3)
    assert prediction.basis == "profile"


def test_a_gpu_by_hand() -> None:
    """4 GB at 85 % of 400 GB/s; 8 G operations a token at 110 % of 50 T a second; 1.5 us for the one node."""
    prediction = _predict(_profile(_GPU), 1)
    assert prediction.generation.value == pytest.approx(1 / (1 / 85 + 1.5e-6))
    assert prediction.prompt.value == pytest.approx(6875.0, rel=1e-3)
    assert prediction.basis == "profile"


def test_published_results_are_evidence_and_nothing_more() -> None:
    """Else a user's own bandwidth would not move the prediction."""
    assert _predict(_profile(replace(_GPU, measured=_PUBLISHED)), 1) == _predict(_profile(_GPU), 1)


@pytest.mark.parametrize(
    ("capability", "prompt", "generation"),
    [
        (None, 0.25, 70),
        ("7.5", 0.7, 70),
        ("8.0", 0.16, 46),
        ("9.0", 0.16, 46),
        ("8.6", 1.1, 85),
        ("12.0", 1.1, 85),
    ],
)
def test_kinds_of_chips(capability: str | None, prompt: float, generation: float) -> None:
    """What they reach of 6,250 tokens a second on prompts, and of 100."""
    prediction = _predict(_profile(replace(_GPU, compute_capability=capability)), 1)
    assert prediction.prompt.value == pytest.approx(prompt * 6250, rel=1e-3)
    assert prediction.generation.value == pytest.approx(generation, rel=1e-3)


def test_experts_by_hand() -> None:
    """On the CPU 55 % of 50 GB/s, 40 % of 400 G operations; on the GPU 85 % of 400 GB/s, 35 % of 55 T."""
    ram, (gpu,) = profile_speeds(_profile(_GPU))
    for speed, memory, operations in ((ram, 0.55 * 50e9, 0.4 * 400e9), (gpu, 340e9, 0.35 * 55e12)):
        experts = speed.weight("MXFP4", 768, experts=True)
        assert experts.bytes_per_second == pytest.approx(memory)
        assert experts.operations_per_second == pytest.approx(operations)
        assert speed.weight("MXFP4").operations_per_second > experts.operations_per_second


def test_half_the_bandwidth_of_ram_is_half_the_generation() -> None:
    halved = replace(_RAM, bandwidth_bytes_per_second=_figure(25e9))
    before, after = _predict(_profile(), 0), _predict(_profile(ram=halved), 0)
    assert before.generation.value / after.generation.value == pytest.approx(2, rel=1e-3)
    assert after.prompt.value == pytest.approx(before.prompt.value, rel=1e-3)  # bound by the operations


def test_half_the_bandwidth_of_a_gpu_is_half_the_generation() -> None:
    halved = replace(_GPU, bandwidth_bytes_per_second=_figure(200e9))
    before, after = _predict(_profile(_GPU), 1), _predict(_profile(halved), 1)
    assert before.generation.value / after.generation.value == pytest.approx(2, rel=1e-3)
    assert before.prompt.value == after.prompt.value
    # What lies in RAM does not get slower.
    assert _predict(_profile(halved), 0).generation == _predict(_profile(_GPU), 0).generation


def test_half_the_operations_are_half_the_prompt_speed() -> None:
    cpu = replace(_CPU, operations_per_second=_figure(200e9))
    before, after = _predict(_profile(), 0), _predict(_profile(cpu=cpu), 0)
    assert before.prompt.value / after.prompt.value == pytest.approx(2, rel=1e-3)
    assert after.generation == before.generation
    gpu = replace(_GPU, operations_per_second=_figure(25e12))
    assert _predict(_profile(gpu), 1).prompt.value == pytest.approx(3437.5, rel=1e-3)


def test_half_the_link_doubles_what_crosses_it() -> None:
    """4 GB at 16 GB/s are 0.25 s beside 512 * 8 G / 55 T, be they weights or activations."""
    multiplying = 512 * 8e9 / 55e12 + 1.5e-6
    slower = replace(_GPU, link_bytes_per_second=_figure(8e9))
    for gpu, seconds in ((_GPU, 0.25), (slower, 0.5)):
        weights = _predict(_profile(gpu), 1, sent_bytes=4_000_000_000).prompt.value
        assert weights == pytest.approx(512 / (seconds + multiplying))
        activations = _predict(_profile(gpu), 1, link_bytes=4_000_000_000).prompt.value
        assert activations == pytest.approx(512 / (seconds + multiplying))


def test_a_gpu_takes_over_prompts_and_ram_is_entered_for_nothing() -> None:
    ram, (gpu,) = profile_speeds(_profile(_GPU))
    assert (ram.sent_bytes_per_second, gpu.sent_bytes_per_second) == (0.0, gpu.split_bytes_per_second)
    assert ram.split_seconds == 0.0 < gpu.split_seconds
    assert (ram.basis, gpu.basis) == ("profile", "profile")


@pytest.mark.parametrize(
    "field", ["bandwidth_bytes_per_second", "operations_per_second", "link_bytes_per_second"]
)
def test_a_gpu_of_which_a_figure_is_unknown_is_assumed(field: str) -> None:
    profile = _profile(replace(_GPU, **{field: None}))  # type: ignore[arg-type]
    _, (gpu,) = profile_speeds(profile)
    assert gpu == ASSUMED_GPU
    assert _predict(profile, 1).basis == "assumed"
    assert _predict(profile, 0).basis == "profile"  # nothing lies on that GPU


@pytest.mark.parametrize("unknown", ["bandwidth", "operations"])
def test_a_ram_of_which_a_figure_is_unknown_is_assumed(unknown: str) -> None:
    """What is known still counts."""
    profile = _profile(
        ram=replace(_RAM, bandwidth_bytes_per_second=None) if unknown == "bandwidth" else _RAM,
        cpu=replace(_CPU, operations_per_second=None) if unknown == "operations" else _CPU,
    )
    prediction = _predict(profile, 0)
    assert prediction.basis == "assumed"
    generation, prompt = (5.0, 50.0) if unknown == "bandwidth" else (10.0, 18.75)  # 20 GB/s, 150 G a second
    assert prediction.generation.value == pytest.approx(generation, rel=1e-3)
    assert prediction.prompt.value == pytest.approx(prompt, rel=1e-3)


def _rates(speed: DeviceSpeed) -> list[float]:
    rates = [speed.activation_bytes_per_second, speed.split_bytes_per_second]
    for weight in speed.weights.values():
        rates += [weight.bytes_per_second, weight.operations_per_second]
    for attention in speed.attention.values():
        rates += [attention.generation, attention.prompt]
    return rates


@pytest.mark.parametrize("name", profile_names())
def test_every_built_in_profile_has_speeds(name: str) -> None:
    profile = read_profile(name)
    ram, gpus = profile_speeds(profile)
    assert len(gpus) == len(profile.gpus)
    for speed in (ram, *gpus):
        assert all(rate > 0 for rate in _rates(speed))
    for gpu in gpus:
        assert gpu.basis == "profile"
        assert gpu.streaming_bytes_per_second > 4 * ram.streaming_bytes_per_second


def _published() -> list[tuple[str, str, float]]:
    """Profile, GPU and tokens a second of each built-in GPU's generation without flash attention."""
    return [
        (name, gpu.name, one.tokens_per_second)
        for name in profile_names()
        for gpu in read_profile(name).gpus
        for one in gpu.measured
        if one.what.startswith("llama 7B Q4_0 tg128") and "flash attention" not in one.what
    ]


def test_nearly_every_built_in_gpu_has_a_published_result() -> None:
    gpus = [(name, gpu.name) for name in profile_names() for gpu in read_profile(name).gpus]
    without = set(gpus) - {(name, gpu) for name, gpu, _ in _published()}
    assert without == {("l4-24gb", "NVIDIA L4"), ("rtx2060-6gb", "NVIDIA GeForce RTX 2060")}


@pytest.mark.parametrize(("name", "gpu", "published"), _published())
def test_generation_on_a_built_in_gpu_is_near_what_is_published(
    name: str, gpu: str, published: float
) -> None:
    """llama 7B Q4_0 reads 3.83e9 bytes for a token, in 700 nodes. Within 30 %, of a range of 35 that is
    promised."""
    profile = read_profile(name)
    (number,) = [index for index, one in enumerate(profile.gpus) if one.name == gpu]
    speed = profile_speeds(profile)[1][number]
    seconds = 3.83e9 / speed.weight("Q4_0").bytes_per_second + 700 * speed.node_seconds
    assert 1 / seconds == pytest.approx(published, rel=0.3)
