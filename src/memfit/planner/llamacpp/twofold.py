"""Which matrices are held in two forms: as the file has them, for prompts, and rewritten, for single tokens.

On some CPUs the plain kernels of a type multiply many tokens at once faster, the rewritten ones read weights
faster past one token: on one with AVX-512 and without AMX, Qwen2.5-1.5B in Q4_K_M computed prompts 1.6 times
as fast plain, and generated 1.25 times as fast rewritten. Where memory has room for both, each pass takes its
own. All matrices of a type and length of rows are held so, or none: then a prediction is that of the two
measured speeds.
"""

from __future__ import annotations

from dataclasses import replace

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.streaming import is_dense_matrix
from memfit.planner.request import Workload
from memfit.planner.speed import MANY_TOKENS, DeviceSpeed, WeightSpeed, weight_key

__all__ = ["hold_twofold", "kernel_seconds", "twofold_speed"]


def hold_twofold(
    spec: ModelSpec,
    config: LlamaConfig,
    plain: DeviceSpeed,
    rewritten: DeviceSpeed,
    workload: Workload,
    room_bytes: int,
) -> LlamaConfig | None:
    """`config`, all in RAM, plain and with load mode "own", with those matrices held twice that gain by it,
    the most per byte first, as many as `room_bytes` more allow; None where none gains or none fits."""
    kinds: dict[str, list[TensorSpec]] = {}
    for tensor in spec.tensors:
        if is_dense_matrix(tensor):
            kinds.setdefault(weight_key(tensor.type, tensor.shape[0]), []).append(tensor)
    gains = {key: _gain(key, tensors, plain, rewritten, workload) for key, tensors in kinds.items()}
    names: list[str] = []
    for key in sorted(gains, key=lambda one: -gains[one]):
        size = sum(tensor.size_bytes for tensor in kinds[key])
        if gains[key] > 0 and size <= room_bytes:
            names += (tensor.name for tensor in kinds[key])
            room_bytes -= size
    return replace(config, twofold=tuple(names)) if names else None


def twofold_speed(
    spec: ModelSpec, config: LlamaConfig, plain: DeviceSpeed, rewritten: DeviceSpeed
) -> DeviceSpeed:
    """The CPU's with these matrices held so: `plain` but for single tokens of theirs."""
    names = set(config.twofold)
    weights = dict(plain.weights)
    for tensor in spec.tensors:
        if tensor.name in names:
            key = weight_key(tensor.type, tensor.shape[0])
            weights[key] = _both(plain.weight(*_kind(tensor)), rewritten.weight(*_kind(tensor)))
    return replace(rewritten, weights=weights)  # whose basis is that of both


def _kind(tensor: TensorSpec) -> tuple[str, int]:
    return tensor.type, tensor.shape[0]


def _both(plain: WeightSpeed, rewritten: WeightSpeed) -> WeightSpeed:
    return replace(rewritten, operations_per_second=plain.operations_per_second)


def _gain(
    key: str, tensors: list[TensorSpec], plain: DeviceSpeed, rewritten: DeviceSpeed, workload: Workload
) -> float:
    """Seconds of a request per byte more."""
    one, other = (speed.weight(*_kind(tensors[0])) for speed in (plain, rewritten))
    if key not in plain.weights or key not in rewritten.weights or one == other:
        return 0.0  # not measured, or this CPU has no other form of it
    both = _both(one, other)
    elements = sum(tensor.elements for tensor in tensors)
    size = sum(tensor.size_bytes for tensor in tensors)
    seconds = [kernel_seconds(speed, elements, size, workload) for speed in (one, both)]
    return (seconds[0] - seconds[1]) / size


def kernel_seconds(speed: WeightSpeed, elements: int, size_bytes: int, workload: Workload) -> float:
    """Of one request, in products with matrices of so many elements."""
    sequences = workload.parallel
    passes = workload.generated_tokens / sequences
    together = speed.operations(many=sequences >= MANY_TOKENS)
    reading, computing = size_bytes / speed.bytes_per_second, 2 * elements * sequences / together
    prompt = 2 * elements * workload.prompt_tokens / speed.operations(many=True)
    return prompt + passes * (max(reading, computing) if sequences > 1 else reading)
