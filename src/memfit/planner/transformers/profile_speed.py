"""transformers on a machine that is only described: a profile's bandwidths and arithmetic, times what torch
and bitsandbytes are published to reach of them.

What a profile marks unknown is assumed, and the prediction then says "assumed". So is what CUDA takes in RAM
and on a GPU. Where layers have more norms than a llama's, as Gemma's, they take longer than said here.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfit.hardware.machine import Gpu
from memfit.hardware.profile import Profile, ProfileGpu
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import LOAD_IN, Precision, precision
from memfit.planner.request import ASSUMED_DISK
from memfit.planner.speed import ASSUMED
from memfit.planner.transformers.runtime import EMULATED_TIMES, GpuRuntime, Processes, Runtime, emulates_bf16
from memfit.units import MIB

__all__ = ["described_runtimes"]

# Shares of what hardware does in theory; benchmarks/published_checkpoints.py has the runs.
_RAM, _GPU = 0.6, 0.7  # of the bandwidth, past one token
_PROMPTS = 0.5  # of a GPU's rate for dense FP16
_PROMPTS_OLD = 0.7  # up to compute capability 7.5, of what such cards sustain
_LINK = 0.4  # of the link: accelerate sends from pages that are not pinned
# float32 against FP16 on tensor cores: of data centers' cards (8.0, 9.0, 10.0) and of the others. Old ones
# take it for bfloat16, too.
_FLOAT32_DATA_CENTER, _FLOAT32 = 1 / 15, 1 / 2

# Python's time for one decoder layer of one token: on a desktop, on a share of a server, and where there are
# two cores at most, as in Colab, or ARM ones. Quantized layers call more.
_DESKTOP_SECONDS, _SERVER_SECONDS, _SLOW_SECONDS = 0.32e-3, 0.78e-3, 1.35e-3
_CALLS = {None: 1.0, 4: 1.42, 8: 3.7}
_NESTED_CALLS = 1.75  # of 4 bits with double quantization

_TOKENS = 512  # of a prompt's pass, over which unpacking a weight is spread
_SAMPLE = (4096, 4096)  # a matrix like any

# Assumed: what CUDA, its libraries and torch's kernels take. CUDA 12 loads kernels as they are used.
_CUDA_RAM_BYTES, _CUDA_GPU_BYTES = 600 * MIB, 300 * MIB


def described_runtimes(
    profile: Profile, config: TransformersConfig, processes: Processes, gpus: Sequence[tuple[Gpu, int]]
) -> list[Runtime]:
    """On those `gpus` of the profile that may be used, each with its budget in bytes, and on its CPU;
    `processes` is what memfit's processes take without CUDA."""
    disk = profile.disk and profile.disk.read_bytes_per_second
    speed = (disk.value, disk.value) if disk else ASSUMED_DISK
    found = [_on_cpu(profile, config, processes, speed)]
    if gpus:
        found.insert(0, _on_gpus(profile, config, processes, gpus, speed))
    return found


def _on_cpu(
    profile: Profile, config: TransformersConfig, processes: Processes, disk: tuple[float, float]
) -> Runtime:
    bandwidth, operations = profile.ram.bandwidth_bytes_per_second, profile.cpu.operations_per_second
    known = ASSUMED.weight("")
    streaming = _RAM * bandwidth.value if bandwidth else known.bytes_per_second
    rate = operations.value if operations else known.operations_per_second
    rates = {name: _rates(precision(name), streaming, rate, unpacks=True) for name in LOAD_IN}
    return Runtime(
        **vars(processes),
        packs_4bit=False,
        layer_seconds=_layer_seconds(profile, config.precision),
        elements_per_second={name: one for name, (one, _) in rates.items()},
        operations_per_second={name: many for name, (_, many) in rates.items()},
        disk_bytes_per_second=disk,
        basis="profile" if bandwidth and operations else "assumed",
    )


def _on_gpus(
    profile: Profile,
    config: TransformersConfig,
    processes: Processes,
    gpus: Sequence[tuple[Gpu, int]],
    disk: tuple[float, float],
) -> Runtime:
    """Speeds are the first one's, as `Runtime` has it."""
    first = profile.gpus[gpus[0][0].index]
    bandwidth, link = first.bandwidth_bytes_per_second, first.link_bytes_per_second
    known = ASSUMED.weight("")
    streaming = _GPU * bandwidth.value if bandwidth else known.bytes_per_second
    operations = {plain: _gpu_operations(first, plain) for plain in ("fp32", "bf16", "fp16")}
    rates = {
        name: _rates(precision(name), streaming, operations[precision(name).plain_type], unpacks=False)
        for name in LOAD_IN
    }
    is_known = bandwidth and first.operations_per_second and link
    return Runtime(
        process_bytes=processes.process_bytes + _CUDA_RAM_BYTES,
        loading_process_bytes=processes.loading_process_bytes + _CUDA_RAM_BYTES,
        starting_bytes=processes.starting_bytes + _CUDA_RAM_BYTES,
        packs_4bit=False,
        layer_seconds=_layer_seconds(profile, config.precision),
        elements_per_second={name: one for name, (one, _) in rates.items()},
        operations_per_second={name: many for name, (_, many) in rates.items()},
        link_bytes_per_second=_LINK * link.value if link else ASSUMED.split_bytes_per_second,
        disk_bytes_per_second=disk,
        gpus=tuple(_gpu(gpu, budget) for gpu, budget in gpus),
        basis="profile" if is_known else "assumed",
    )


def _gpu(gpu: Gpu, budget: int) -> GpuRuntime:
    return GpuRuntime(
        number=gpu.index,
        budget_bytes=budget,
        limit_bytes=min(budget, gpu.free_bytes),
        process_bytes=_CUDA_GPU_BYTES,
        emulates_bf16=emulates_bf16(gpu),
    )


def _gpu_operations(gpu: ProfileGpu, plain: str) -> float:
    operations = gpu.operations_per_second
    if operations is None:
        return ASSUMED.weight("").operations_per_second
    major, _, minor = (gpu.compute_capability or "0.0").partition(".")
    if int(major) < 8:
        return _PROMPTS_OLD * operations.value * (1.0 if plain == "fp16" else 1 / EMULATED_TIMES)
    float32 = _FLOAT32_DATA_CENTER if minor == "0" and int(major) <= 10 else _FLOAT32
    return operations.value * (float32 if plain == "fp32" else _PROMPTS)


def _rates(
    held: Precision, bytes_per_second: float, operations_per_second: float, *, unpacks: bool
) -> tuple[float, float]:
    """Elements past one token and operations of a prompt, per second. A quantized weight is read, written in
    the plain type and read again for each pass of a prompt; where a kernel `unpacks`, past one token too."""
    rows, columns = _SAMPLE
    elements = rows * columns
    if not held.is_quantized:
        return bytes_per_second / held.element_bytes, operations_per_second
    packed = (held.packed_bytes(elements) + held.state_bytes(rows, elements)) / elements
    whole = packed + 2 * held.element_bytes
    seconds = 1 / operations_per_second + whole / bytes_per_second / (2 * _TOKENS)
    return bytes_per_second / (whole if unpacks else packed), 1 / seconds


def _layer_seconds(profile: Profile, held: Precision) -> float:
    cpu = profile.cpu
    calls = _NESTED_CALLS if held.nested_block else _CALLS[held.bits]
    if cpu.logical_cores <= 2 or cpu.architecture != "x86_64":
        return calls * _SLOW_SECONDS
    return calls * (_SERVER_SECONDS if "vCPU" in cpu.model else _DESKTOP_SECONDS)
