"""Which tensors stay on the disk where a model is larger than RAM.

Whole matrices of layers, and the output matrix. They are chosen evenly along the computation, so that reading
one hides behind computing with those between. planner/streaming.py says what that costs.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.memory.streaming import TOKEN_TABLE, dequantized_bytes, is_read_by_row, ring_bytes, stretches
from memfit.planner.llamacpp.tensor_devices import devices_of
from memfit.units import KIB

__all__ = ["held_bytes", "is_dense_matrix", "is_matrix", "resident", "row_bytes", "stream_out"]

_LEAST_BYTES = 256 * KIB  # of a tensor: waiting for a smaller one costs more than it frees
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_MATRIX = re.compile(r"(attn_(q|k|v|qkv|output)|ffn_(gate|up|gate_up|down)(_(ch)?exps|_shexp)?)\.weight")
_ORDER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # of computation
_STEPS = 1 << 24  # in which the bytes to stream are looked for


def resident(config: LlamaConfig) -> LlamaConfig:
    """The same with everything in memory: what the oracle is asked about. The way of loading stays, since
    contexts depend on it."""
    return replace(config, streamed=(), ring_bytes=0, twofold=(), prompt_dequantized=())


def stream_out(spec: ModelSpec, config: LlamaConfig, room_bytes: int | None) -> LlamaConfig | None:
    """With as little streamed as lets the weights in RAM fit into `room_bytes`; None if nothing does.

    With a room of None all is streamed that can be.
    """
    here = _in_ram(spec, config)
    choices = sorted((one for one in here if _may_stream(one)), key=_computed)
    whole = sum(one.size_bytes for one in choices)

    def attempt(target: int) -> LlamaConfig:
        chosen = _spread(choices, target)
        return replace(
            config, load_mode="own", streamed=tuple(one.name for one in chosen), ring_bytes=ring_bytes(chosen)
        )

    if room_bytes is None:
        return attempt(whole)
    if held_bytes(spec, attempt(0)) <= room_bytes:
        return attempt(0)
    if not choices or held_bytes(spec, attempt(whole)) > room_bytes:
        return None
    targets = range(0, whole + 1, max(1, whole // _STEPS))
    enough = bisect_left(targets, True, key=lambda target: held_bytes(spec, attempt(target)) <= room_bytes)
    return attempt(targets[enough] if enough < len(targets) else whole)


def held_bytes(spec: ModelSpec, config: LlamaConfig) -> int:
    """Of the weights that are RAM's: pinned ones, as they are, dequantized or in two forms, and the ring."""
    streamed, dequantized = set(config.streamed), set(config.dequantized)
    pinned, larger = [], 0
    for one in _in_ram(spec, config):
        if one.name in dequantized:
            larger += dequantized_bytes(one)
        elif one.name not in streamed and not is_read_by_row(one, spec.tensors):
            pinned.append(one)
    twofold, prompts = set(config.twofold), set(config.prompt_dequantized)
    larger += sum(one.size_bytes for one in pinned if one.name in twofold)
    larger += sum(dequantized_bytes(one) for one in pinned if one.name in prompts)
    return sum(part.size_bytes for part in stretches(pinned)) + larger + config.ring_bytes


def is_matrix(tensor: TensorSpec) -> bool:
    """Whether it is one of a layer's matrices, experts' too, or the output's; a tied table is not."""
    name = _LAYER.fullmatch(tensor.name)
    return tensor.name == "output.weight" or bool(name and _MATRIX.fullmatch(name[2]))


def is_dense_matrix(tensor: TensorSpec) -> bool:
    """The same without routed experts, whose kernels are others."""
    return len(tensor.shape) == 2 and is_matrix(tensor)


def row_bytes(spec: ModelSpec, config: LlamaConfig) -> int:
    """Of a token table that is read by row: the pages of one ubatch's rows."""
    tables = [one for one in _in_ram(spec, config) if is_read_by_row(one, spec.tensors)]
    if config.load_mode != "own" or not tables:
        return 0
    (table,) = tables
    pages = 1 + -(-table.size_bytes // table.shape[-1] // 4096)
    return min(table.size_bytes, config.ubatch * pages * 4096)


def _in_ram(spec: ModelSpec, config: LlamaConfig) -> list[TensorSpec]:
    """A token table that is the output, too, lies here wherever that is, unless a pattern moves both."""
    devices = devices_of(spec, config)
    table = next((device for pattern, device in config.overrides if re.search(pattern, TOKEN_TABLE)), RAM)
    devices |= {TOKEN_TABLE: table}
    return [one for one in spec.tensors if devices[one.name] == RAM]


def _may_stream(tensor: TensorSpec) -> bool:
    """Matrices that a pass multiplies with once; a tied token table is read by row too, so it is pinned."""
    return len(tensor.shape) >= 2 and tensor.size_bytes >= _LEAST_BYTES and is_matrix(tensor)


def _computed(tensor: TensorSpec) -> tuple[int, int, str]:
    """Where in a pass it is multiplied with."""
    match = _LAYER.fullmatch(tensor.name)
    if not match:
        return (1 << 30, 0, tensor.name)
    kind = next((index for index, one in enumerate(_ORDER) if match[2].startswith(one)), len(_ORDER))
    return (int(match[1]), kind, tensor.name)


def _spread(choices: Sequence[TensorSpec], target: int) -> list[TensorSpec]:
    """Tensors of `target` bytes together, evenly along `choices`."""
    whole = sum(one.size_bytes for one in choices)
    chosen, taken, passed = [], 0, 0
    for one in choices:
        passed += one.size_bytes
        if taken + one.size_bytes / 2 <= target * passed / whole:
            chosen.append(one)
            taken += one.size_bytes
    return chosen
