"""What a model takes in transformers at each precision: bytes = parameters x precision, done exactly.

Counts the tensors of one process: parameters, buffers, bitsandbytes' quantization state, the KV cache,
and the tensors that live only while loading. Does not count what lies around tensors (the allocator's
rounding, torch, CUDA contexts) nor activations; nor what a CPU with AVX512-BF16 does at the first
call, where bitsandbytes 0.50.2 packs 4-bit weights anew and keeps their scales in bfloat16 (with double
quantization that is more than before: 2 bytes for each 64 weights and not 1).

Sources: transformers 5.23.0 (integrations/bitsandbytes.py, quantizers/base.py, core_model_loading.py,
cache_utils.py) and bitsandbytes 0.50.2 (functional.py, nn/modules.py, backends/default/ops.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit.errors import UsageError
from memfit.headers.hf_config import HfConfig
from memfit.headers.hf_shapes import KINDS, HfBuffer, HfModel, HfParameter
from memfit.memory.packed_weights import UNPACKING_BYTES, form_of, packed_bytes, sections_of
from memfit.memory.precision import PRECISIONS, STORED, Precision, precision

__all__ = [
    "Kept",
    "PrecisionRow",
    "kv_cache_bytes",
    "layer_kv_bytes",
    "loaded_bytes",
    "precision_row",
    "precision_table",
    "reading_bytes",
]

_BUFFER_BYTES = {"float32": 4, "int64": 8}
_LARGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Parameters of one kind that keep the model's own precision."""

    kind: str
    why: str
    parameters: int  # how many tensors
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One precision of one model."""

    precision: str
    quantized_layers: int
    quantized_bytes: int  # packed weights of linear layers
    unquantized_bytes: int
    unquantized: tuple[Kept, ...]  # the same, by kind
    state_bytes: int  # scales and code books, which get_memory_footprint leaves out
    buffers_bytes: int | None  # in transformers 5.23.0; None: not known for this model type
    reported_bytes: Mapping[str, int]  # release of transformers → what get_memory_footprint says
    context: int  # tokens
    kv_cache_bytes: int  # one sequence of `context` tokens
    loading_extra_bytes: Mapping[str, int]  # "cpu" or "cuda" → beyond `resident_bytes`, at most
    checkpoint_bytes: int | None  # files that are mapped while loading; their clean pages are the cache's

    @property
    def resident_bytes(self) -> int:
        """What the process holds once the model is loaded."""
        return self.quantized_bytes + self.unquantized_bytes + self.state_bytes + (self.buffers_bytes or 0)

    @property
    def loading_peak_bytes(self) -> dict[str, int]:
        """By device: no more than this lives in tensors while loading (`_loading_extra`)."""
        return {device: self.resident_bytes + extra for device, extra in self.loading_extra_bytes.items()}

    def to_json(self) -> dict[str, Any]:
        names = (
            *("precision", "quantized_layers", "quantized_bytes", "unquantized_bytes", "unquantized"),
            *("state_bytes", "buffers_bytes", "reported_bytes", "resident_bytes", "context"),
            *("kv_cache_bytes", "loading_peak_bytes", "checkpoint_bytes"),
        )
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "unquantized": [vars(kept) for kept in self.unquantized]}


def precision_table(model: HfModel, context: int) -> tuple[PrecisionRow, ...]:
    """One row per precision, in the order of PRECISIONS, with the KV cache of `context` tokens. Of a
    quantized checkpoint what it takes as it is stored comes first.

    Quantized rows are loaded with dtype=bfloat16 and a BitsAndBytesConfig without other settings.

    Raises:
        UsageError: `context` is no number of tokens.
    """
    if not 0 < context <= _LARGEST_CONTEXT:
        raise UsageError(f"a context of {context} tokens; needed 1 to {_LARGEST_CONTEXT}")
    names = ((STORED,) if any(one.stored for one in model.parameters) else ()) + PRECISIONS
    return tuple(precision_row(model, precision(name), context) for name in names)


def kv_cache_bytes(config: HfConfig, context: int, *, element_bytes: int) -> int:
    """Keys and values of one sequence, as transformers' DynamicCache holds them after a token.

    A sliding layer keeps the last `sliding_window` tokens: window - 1 of them count on, the newest
    lies in the same storage. Not counted: after a prompt, until the next token, the sliding layers'
    storage still has the whole prompt; and each append copies a layer's cache.
    """
    return sum(layer_kv_bytes(config, context, 1, element_bytes))


def layer_kv_bytes(config: HfConfig, context: int, ubatch: int, element_bytes: int) -> list[int]:
    """Keys and values of each layer in engines/transformers/kv_cache.py: all of them from the start.

    A sliding layer has room for its window and the ubatch that comes behind it.
    """
    of_a_token = 2 * config.num_key_value_heads * config.head_dim * element_bytes
    return [
        of_a_token * (context if window is None else min(context, window - 1 + ubatch))
        for window in config.layer_windows
    ]


def precision_row(model: HfModel, precision: Precision, context: int) -> PrecisionRow:
    """One of them; FP4 and FP16 take what NF4 and BF16 take."""
    quantized = [each for each in model.parameters if _held_packed(each, precision)]
    plain = [each for each in model.parameters if not _held_packed(each, precision)]
    quantized_bytes = sum(_weight_bytes(each, precision) for each in quantized)
    state_bytes = sum(_state_bytes(each, precision) for each in quantized)
    unquantized_bytes = sum(each.elements for each in plain) * precision.element_bytes
    return PrecisionRow(
        precision=precision.name,
        quantized_layers=len(quantized),
        quantized_bytes=quantized_bytes,
        unquantized_bytes=unquantized_bytes,
        unquantized=_kept(plain, precision),
        state_bytes=state_bytes,
        buffers_bytes=None if model.buffers is None else _buffers_bytes(model.buffers, precision),
        reported_bytes=_reported(
            model, precision, quantized_bytes + unquantized_bytes + state_bytes * precision.is_stored
        ),
        context=context,
        kv_cache_bytes=kv_cache_bytes(model.hf_config, context, element_bytes=precision.element_bytes),
        loading_extra_bytes=_loading_extra(model, precision),
        checkpoint_bytes=model.checkpoint_bytes,
    )


def loaded_bytes(parameter: HfParameter, precision: Precision) -> int:
    """One parameter, with its quantization state."""
    if not _held_packed(parameter, precision):
        return parameter.elements * precision.element_bytes
    return _weight_bytes(parameter, precision) + _state_bytes(parameter, precision)


def _held_packed(parameter: HfParameter, precision: Precision) -> bool:
    if precision.is_stored:
        return form_of(parameter.stored) is not None
    return _is_quantized(parameter, precision)


def _is_quantized(parameter: HfParameter, precision: Precision) -> bool:
    return precision.is_quantized and parameter.kind == "linear"


def _weight_bytes(parameter: HfParameter, precision: Precision) -> int:
    if precision.is_stored:
        return sum(sections_of(one)[0].size_bytes for one in parameter.stored)
    return precision.packed_bytes(parameter.elements)


def _state_bytes(parameter: HfParameter, precision: Precision) -> int:
    if precision.is_stored:
        return sum(packed_bytes(one) for one in parameter.stored) - _weight_bytes(parameter, precision)
    return precision.state_bytes(parameter.shape[0], parameter.elements)


def _kept(plain: list[HfParameter], precision: Precision) -> tuple[Kept, ...]:
    rows = []
    for kind, why in KINDS.items():
        found = [each.elements for each in plain if each.kind == kind]
        if found:
            size = sum(found) * precision.element_bytes
            rows.append(Kept(kind=kind, why=why, parameters=len(found), size_bytes=size))
    return tuple(rows)


def _buffers_bytes(buffers: tuple[HfBuffer, ...], precision: Precision) -> int:
    return sum(
        each.elements * (precision.element_bytes if each.dtype is None else _BUFFER_BYTES[each.dtype])
        for each in buffers
    )


def _reported(model: HfModel, precision: Precision, parameters_bytes: int) -> dict[str, int]:
    """Parameters and buffers (modeling_utils.py, get_memory_footprint): no quantization state, but where
    our own layers hold that in their parameters.

    Release 5 registers each rotary `original_inv_freq` as a buffer of its own; in 4.57 it is another
    name of `inv_freq`. That release is left out where it builds other modules: experts are linear
    layers there.
    """
    if model.buffers is None:
        return {}
    buffers = {"5.23.0": model.buffers}
    if not precision.is_stored and not any(each.kind == "experts" for each in model.parameters):
        buffers = {"4.57.1": tuple(each for each in model.buffers if each.in_release_4), **buffers}
    return {release: parameters_bytes + _buffers_bytes(each, precision) for release, each in buffers.items()}


def _loading_extra(model: HfModel, precision: Precision) -> dict[str, int]:
    """Bytes of tensors beyond the loaded model, at the worst moment of from_pretrained, by device.

    Files are mapped, and what is loaded as it stands on the CPU stays a view of the mapping. Tensors are
    loaded one after the other when they are quantized, so only the largest counts. Counted, per element:

    - a merged parameter: its stacked parts beside it
    - 4 bits on CUDA: the bfloat16 weight; with double quantization also the float32 scales, twice
    - 4 bits on the CPU: 13.5 bytes of scratch (float32, float32, int32, a byte and a half)
    - INT8 on CUDA: the bfloat16 weight and bitsandbytes' float16 copy; on the CPU that copy and
      8 bytes of float32 scratch, less the byte of the result, which is not there yet
    - on the CPU: a bfloat16 copy where the checkpoint has another type
    - of a weight that is quantized in the files: what they hold of it, and a block of rows being unpacked

    Not counted: scratch within CUDA kernels, and on CUDA the RAM that a copy passes through. It is an
    upper bound: it takes all other tensors as loaded while the largest is at work.
    """
    extra = {"cpu": 0, "cuda": 0}
    for parameter in model.parameters:
        if parameter.stacks:
            both = loaded_bytes(parameter, precision) + reading_bytes(parameter)
            found = {"cpu": both, "cuda": both}
        elif _is_quantized(parameter, precision):
            found = _quantizing_extra(parameter, precision, model.hf_config.dtype == "bfloat16")
            found = {device: size + reading_bytes(parameter) for device, size in found.items()}
        elif parameter.stored:
            found = dict.fromkeys(extra, reading_bytes(parameter))
        else:
            continue
        extra = {device: max(most, found[device]) for device, most in extra.items()}
    return extra


def reading_bytes(parameter: HfParameter) -> int:
    """Of a weight that is quantized in the files: what they hold of one, and what unpacking takes."""
    if not parameter.stored:
        return 0
    return max(one.size_bytes for one in parameter.stored) + UNPACKING_BYTES


def _quantizing_extra(parameter: HfParameter, precision: Precision, as_stored: bool) -> dict[str, int]:
    elements = parameter.elements
    cast = 0 if as_stored else 2 * elements
    if precision.bits == 8:
        return {"cpu": cast + 9 * elements, "cuda": 4 * elements}
    scales = 8 * precision.blocks(elements) if precision.nested_block else 0
    return {"cpu": cast + 27 * elements // 2, "cuda": 2 * elements + scales}
