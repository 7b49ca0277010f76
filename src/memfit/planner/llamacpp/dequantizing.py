"""Which quantized matrices are held as BF16 where many tokens are multiplied at once; or as BF16 as well, for
prompts alone.

A matrix that one token passes is read at the memory's speed, so the smaller it is the better. With many
tokens computing decides: a quantized block is unpacked for each token anew, and a CPU's BF16 kernels may be
several times as fast. Then it is worth its place in memory, the more so the more it gains per byte.

Counted: measured operations per second of each type. Ignored: what reading the larger matrices takes; the
planner compares whole predictions, which have that in them. BF16 rounds a weight to 8 bits, and activations
too, which is finer than the quantized kernels' own 8 bits with one scale for 32 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.streaming import DEQUANTIZED, dequantized_bytes, is_read_by_row
from memfit.planner.llamacpp.streaming import held_bytes, is_dense_matrix
from memfit.planner.request import Workload
from memfit.planner.speed import MANY_TOKENS, DeviceSpeed, WeightSpeed, weight_key

__all__ = ["dequantize", "may_dequantize"]

_QUANTIZED = ("Q", "IQ", "TQ", "MXFP", "NVFP")  # what names of types begin with


def dequantize(
    spec: ModelSpec,
    config: LlamaConfig,
    speed: DeviceSpeed,
    workload: Workload,
    room_bytes: int,
    *,
    for_prompts: bool = False,
) -> LlamaConfig | None:
    """`config`, all in RAM and with load mode "own", with those matrices dequantized that gain most per
    byte, as many as `room_bytes` for all weights allow; None where none gains or none fits. `for_prompts`:
    with the others beside, for passes of few tokens."""
    field = "prompt_dequantized" if for_prompts else "dequantized"
    ranked = []
    for tensor in spec.tensors:
        larger = speed.weights.get(weight_key(DEQUANTIZED, tensor.shape[0]))
        if larger is None or not may_dequantize(tensor, spec):
            continue
        now = speed.weight(tensor.type, tensor.shape[0])
        seconds = [_seconds(one, workload, for_prompts=for_prompts) for one in (now, larger)]
        gained = tensor.elements * (seconds[0] - seconds[1])
        added = dequantized_bytes(tensor) - (0 if for_prompts else tensor.size_bytes)
        if gained > 0:
            ranked.append((gained / max(added, 1), tensor, added))
    left = room_bytes - held_bytes(spec, config)
    names = []
    for _, tensor, added in sorted(ranked, key=lambda one: -one[0]):
        if added <= left:
            names.append(tensor.name)
            left -= added
    # A tensor that leaves its neighbours leaves the pages that it shared with them.
    while names and held_bytes(spec, _with(config, field, names)) > room_bytes:
        names.pop()
    return _with(config, field, names) if names else None


def _with(config: LlamaConfig, field: str, names: Sequence[str]) -> LlamaConfig:
    return replace(config, **{field: tuple(names)})  # type: ignore[arg-type]


def may_dequantize(tensor: TensorSpec, spec: ModelSpec) -> bool:
    """Quantized matrices that every token is multiplied with: experts have kernels of their own, which are
    not faster with BF16."""
    if not tensor.type.startswith(_QUANTIZED):
        return False
    if tensor.name == "token_embd.weight":
        return not is_read_by_row(tensor, spec.tensors)
    return is_dense_matrix(tensor)


def _seconds(speed: WeightSpeed, workload: Workload, *, for_prompts: bool) -> float:
    """Of one weight, for one request or its prompt."""
    prompt = workload.prompt_tokens / speed.operations(many=True)
    if for_prompts:
        return 2 * prompt
    together = speed.operations(many=workload.parallel >= MANY_TOKENS)
    return 2 * (prompt + workload.generated_tokens / together)
