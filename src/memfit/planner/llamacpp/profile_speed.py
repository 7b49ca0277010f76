"""Speeds of a machine that is only described: bandwidths times what llama.cpp is published to reach of them.

What a profile marks unknown is taken from ASSUMED, and the prediction then says "assumed".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memfit.hardware.profile import Profile, ProfileGpu
from memfit.planner.speed import ASSUMED, ASSUMED_GPU, EXPERTS, AttentionSpeed, DeviceSpeed, WeightSpeed

__all__ = ["profile_speeds"]

# Shares of what hardware does in theory, by kinds of kernels; benchmarks/published.py has the runs. Of RAM's
# bandwidth while generating: dense matrices, and routed experts, which are small and scattered. A CPU
# multiplies prompts with experts at a share of its rate for dense matrices.
_RAM_DENSE, _RAM_EXPERTS, _CPU_PROMPT_EXPERTS = 0.8, 0.55, 0.4
_ATTENTION_EFFICIENCY = 0.3  # of matrix operations, on prompts
# What each node of a graph takes on a GPU beside that: 7B models have 700, a mixture of experts up to 2,400.
_GPU_NODE_SECONDS = 1.5e-6
_LAUNCH_SECONDS = 30e-6  # handing over to a GPU and back
_UNKNOWN_SHARE = 0.25  # of the FP16 rate on prompts, where the kind of chip is not known
_GPU_PROMPT_EXPERTS = 0.35  # of the rate for dense matrices


@dataclass(frozen=True, kw_only=True)
class _Chip:
    """NVIDIA's kinds of chips, by compute capability."""

    memory: float  # share of the bandwidth while generating
    prompts: float  # share of the FP16 rate; INT8 kernels may pass it


_OLD = _Chip(memory=0.7, prompts=0.7)  # up to 7.5
_DATA_CENTER = _Chip(memory=0.46, prompts=0.16)  # 8.0, 9.0, 10.0: HBM, and more of everything than is used
_NEW = _Chip(memory=0.85, prompts=1.1)
_NO_LIMIT = 1e18


def profile_speeds(profile: Profile) -> tuple[DeviceSpeed, list[DeviceSpeed]]:
    """RAM's with its CPU, and each GPU's."""
    return _ram(profile), [_gpu(gpu) for gpu in profile.gpus]


def _ram(profile: Profile) -> DeviceSpeed:
    bandwidth, operations = profile.ram.bandwidth_bytes_per_second, profile.cpu.operations_per_second
    known = ASSUMED.weight("")
    streaming = _RAM_DENSE * bandwidth.value if bandwidth else known.bytes_per_second
    rate = operations.value if operations else known.operations_per_second
    dense = WeightSpeed(bytes_per_second=streaming, operations_per_second=rate)
    return replace(
        ASSUMED,
        weights=_with_experts(dense, _RAM_EXPERTS / _RAM_DENSE, _CPU_PROMPT_EXPERTS),
        attention={"": AttentionSpeed(generation=_NO_LIMIT, prompt=_ATTENTION_EFFICIENCY * rate)},
        activation_bytes_per_second=streaming,
        basis="profile" if bandwidth and operations else "assumed",
    )


def _gpu(gpu: ProfileGpu) -> DeviceSpeed:
    bandwidth, operations = gpu.bandwidth_bytes_per_second, gpu.operations_per_second
    if bandwidth is None or operations is None or gpu.link_bytes_per_second is None:
        return ASSUMED_GPU
    chip = _chip(gpu.compute_capability)
    streaming = chip.memory * bandwidth.value
    dense = WeightSpeed(bytes_per_second=streaming, operations_per_second=chip.prompts * operations.value)
    return DeviceSpeed(
        weights=_with_experts(dense, 1.0, _GPU_PROMPT_EXPERTS),
        attention={"": AttentionSpeed(generation=_NO_LIMIT, prompt=_ATTENTION_EFFICIENCY * operations.value)},
        activation_bytes_per_second=streaming,
        node_seconds=_GPU_NODE_SECONDS,
        split_seconds=_LAUNCH_SECONDS,
        split_bytes_per_second=gpu.link_bytes_per_second.value,
        basis="profile",
        sent_bytes_per_second=gpu.link_bytes_per_second.value,
    )


def _with_experts(dense: WeightSpeed, memory: float, prompts: float) -> dict[str, WeightSpeed]:
    """Of any type; experts reach these shares of it."""
    experts = WeightSpeed(
        bytes_per_second=memory * dense.bytes_per_second,
        operations_per_second=prompts * dense.operations_per_second,
    )
    return {"": dense, EXPERTS: experts}


def _chip(capability: str | None) -> _Chip:
    major, _, minor = (capability or "").partition(".")
    if not (major.isascii() and major.isdigit()):
        return replace(_OLD, prompts=_UNKNOWN_SHARE)
    if int(major) < 8:
        return _OLD
    return _DATA_CENTER if minor == "0" and int(major) <= 10 else _NEW
