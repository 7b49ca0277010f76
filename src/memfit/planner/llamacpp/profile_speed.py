"""Speeds of a machine that is only described: bandwidths times what llama.cpp is published to reach of them.

What a profile marks unknown is taken from ASSUMED, and the prediction then says "assumed".
"""

from __future__ import annotations

from dataclasses import replace

from memfit.hardware.profile import Profile, ProfileGpu
from memfit.planner.speed import ASSUMED, ASSUMED_GPU, AttentionSpeed, DeviceSpeed, WeightSpeed

__all__ = ["profile_speeds"]

# Of a memory's theoretical bandwidth while generating. The profiles' own published results (llama 7B Q4_0,
# 3.83e9 bytes per token) reach 0.56 to 0.80 on GPUs; a CPU with two channels reaches about 0.8.
_RAM_EFFICIENCY = 0.8
_GPU_EFFICIENCY = 0.7
# Of the FP16 rate on prompts: the same results (2 * 6.74e9 operations per token) reach 0.74 to 1.13, the
# matrices being multiplied as INT8; a T4 reaches 0.25.
_OLD_TENSOR_CORES = 0.25
_ATTENTION_EFFICIENCY = 0.3  # of matrix operations, on prompts
_LAUNCH_SECONDS = 30e-6  # handing over to a GPU and back: assumed, no source was found
_NO_LIMIT = 1e18


def profile_speeds(profile: Profile) -> tuple[DeviceSpeed, list[DeviceSpeed]]:
    """RAM's with its CPU, and each GPU's."""
    return _ram(profile), [_gpu(gpu) for gpu in profile.gpus]


def _ram(profile: Profile) -> DeviceSpeed:
    bandwidth, operations = profile.ram.bandwidth_bytes_per_second, profile.cpu.operations_per_second
    known = ASSUMED.weight("")
    streaming = _RAM_EFFICIENCY * bandwidth.value if bandwidth else known.bytes_per_second
    rate = operations.value if operations else known.operations_per_second
    return replace(
        ASSUMED,
        weights={"": WeightSpeed(bytes_per_second=streaming, operations_per_second=rate)},
        attention={"": AttentionSpeed(generation=_NO_LIMIT, prompt=_ATTENTION_EFFICIENCY * rate)},
        activation_bytes_per_second=streaming,
        basis="profile" if bandwidth and operations else "assumed",
    )


def _gpu(gpu: ProfileGpu) -> DeviceSpeed:
    bandwidth, operations = gpu.bandwidth_bytes_per_second, gpu.operations_per_second
    if bandwidth is None or operations is None or gpu.link_bytes_per_second is None:
        return ASSUMED_GPU
    major = (gpu.compute_capability or "0").split(".")[0]
    new = major.isascii() and major.isdigit() and int(major) >= 8
    multiplying = (1.0 if new else _OLD_TENSOR_CORES) * operations.value
    streaming = _GPU_EFFICIENCY * bandwidth.value
    return DeviceSpeed(
        weights={"": WeightSpeed(bytes_per_second=streaming, operations_per_second=multiplying)},
        attention={"": AttentionSpeed(generation=_NO_LIMIT, prompt=_ATTENTION_EFFICIENCY * operations.value)},
        activation_bytes_per_second=streaming,
        node_seconds=0.0,  # within the published results
        split_seconds=_LAUNCH_SECONDS,
        split_bytes_per_second=gpu.link_bytes_per_second.value,
        basis="profile",
        sent_bytes_per_second=gpu.link_bytes_per_second.value,
    )
