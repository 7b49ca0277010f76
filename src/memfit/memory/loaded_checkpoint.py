"""What loading and running a checkpoint in transformers takes beyond precision_table.py's bytes of the model.

That is what a pass needs, and what loading needs. Held against reality by tests/engine/test_transformers.py
and benchmarks/transformers_engine.py. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from memfit.headers.hf_shapes import HfModel, HfParameter
from memfit.headers.model_spec import TensorSpec
from memfit.memory.packed_weights import UNPACKED_PASS_BYTES
from memfit.memory.precision import LOAD_IN, Precision, precision, stored_precision
from memfit.memory.precision_table import loaded_bytes, reading_bytes
from memfit.memory.streaming import PAGE_BYTES
from memfit.strict_json import Between, Length, Matching, tupled
from memfit.units import MIB

__all__ = [
    "TransformersConfig",
    "converting_peak_bytes",
    "layer_bytes",
    "loading_peak_bytes",
    "packed_state_bytes",
    "pass_bytes",
    "refused_layer",
    "ring_bytes",
]

_PACKED_ROWS, _PACKED_COLUMNS = 32, 64  # what bitsandbytes packs together on a CPU with AVX512-BF16
# INT8, for each number that a matrix gives: an int32 and three float32; and what glibc's memalign
# leaves between them from matrix to matrix, measured.
_INT8_BYTES, _INT8_LEFT_BYTES = 16, 3
# INT8, for each weight of a matrix whose columns are all outliers: an int8, two float32 and a bfloat16. What
# glibc leaves between such, by all weights and at most, measured.
_OUTLIER_BYTES, _OUTLIER_LEFT_BYTES, _OUTLIERS_LEFT_MOST_BYTES = 11, 6, 48 * MIB
_BUILDING_BYTES = 48 * MIB  # a model's modules and code beyond a header's, measured: 40 MiB
_SAMPLER_BYTES = 24  # per token of the vocabulary: scores in float32 and sorted, their order
_SLOTS = 2  # of the ring: in each a layer
_LAYER = re.compile(r"(.*\blayers)\.(\d+)\.")


_Module = Annotated[str, Length(1000)]
_Place = Annotated[str, Matching(r"cpu|disk|gpu\d{1,3}", "cpu, disk or gpu0")]


@dataclass(frozen=True, kw_only=True)
class TransformersConfig:
    """Everything that decides what transformers holds; a plan carries one of these."""

    folder: Path  # config.json, tokenizer and weights
    paths: tuple[Path, ...]  # of the weights
    load_in: Annotated[str, Matching("|".join(LOAD_IN), f"one of {', '.join(LOAD_IN)}")]
    double_quant: bool  # scales quantized once more, with "nf4" and "fp4"
    context: Annotated[int, Between(1, 2**31 - 1)]  # tokens, over all sequences
    ubatch: Annotated[int, Between(1, 65_536)]  # tokens of a prompt per pass
    threads: Annotated[int, Between(1, 512)]
    # Module → "gpu0", "cpu" or "disk", as accelerate's device map has it but for the names of GPUs.
    device_map: tuple[tuple[_Module, _Place], ...] = (("", "cpu"),)
    trust_remote_code: bool = False
    gpus: tuple[int, ...] = ()  # by NVML's numbers; the first also computes what lies in RAM or on the disk
    gpu_limits: tuple[int, ...] = ()  # bytes that torch may take on each of them
    outputs: Annotated[int, Between(0, 65_536)] = 0  # tokens scored per pass at most; 0: none are
    parallel: Annotated[int, Between(1, 256)] = 1  # sequences, each with an equal part of the context
    ring_bytes: Annotated[int, Between(0, 2**63 - 1)] = 0  # that layers on the disk pass through
    gguf: Path | None = None  # the file that becomes the checkpoint; None where that is one already

    @property
    def precision(self) -> Precision:
        return precision(self.load_in, double_quant=self.double_quant)

    @property
    def sequence_tokens(self) -> int:
        """That one sequence may have."""
        return self.context // self.parallel

    @property
    def streamed_layers(self) -> list[str]:
        """Those that stay on the disk, in the order of computation."""
        return [module for module, place in self.device_map if place == "disk"]

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "folder": str(self.folder.absolute()),
            "paths": [str(path.absolute()) for path in self.paths],
            "gguf": str(self.gguf.absolute()) if self.gguf else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TransformersConfig:
        """What `to_json` gave, after having been JSON."""
        found = {name: tupled(value) for name, value in values.items()}
        gguf = Path(found["gguf"]) if found["gguf"] else None
        paths = tuple(map(Path, found["paths"]))
        return cls(**{**found, "folder": Path(found["folder"]), "paths": paths, "gguf": gguf})


# -- what stays ------------------------------------------------------------------------------------


def packed_state_bytes(model: HfModel, *, double_quant: bool) -> int:
    """4-bit quantization state after the first pass on a CPU with AVX512-BF16: a bfloat16 for each block
    of 64 weights, whether it was nested before or not, and the code book; of a nested one its offset too.
    """
    linear = [one for one in model.parameters if one.kind == "linear"]
    return sum(one.elements // _PACKED_COLUMNS * 2 + 64 + 4 * double_quant for one in linear)


def refused_layer(model: HfModel) -> HfParameter | None:
    """The first layer that bitsandbytes cannot pack on such a CPU: it fails at the first pass."""
    for one in model.parameters:
        if one.kind == "linear" and (one.shape[0] % _PACKED_ROWS or one.shape[1] % _PACKED_COLUMNS):
            return one
    return None


def layer_bytes(model: HfModel, precision: Precision) -> dict[str, int]:
    """Bytes of each decoder layer in a precision, by its module's name, in order."""
    found: dict[str, int] = {}
    for one in model.parameters:
        if (match := _LAYER.match(one.name)) and "vision" not in match[1]:
            name = f"{match[1]}.{match[2]}"
            found[name] = found.get(name, 0) + loaded_bytes(one, precision)
    return found


def ring_bytes(model: HfModel, precision: Precision, streamed: Collection[str]) -> int:
    """Memory that the `streamed` layers pass through: one is computed with while the next one is read.

    Reads begin and end at pages of the file, and a layer's parameters may lie anywhere in it.
    """
    sizes = dict.fromkeys(streamed, 0)
    for one in model.parameters:
        if (match := _LAYER.match(one.name)) and (name := f"{match[1]}.{match[2]}") in sizes:
            pages = -(-loaded_bytes(one, precision) // PAGE_BYTES) + 1
            sizes[name] += pages * PAGE_BYTES
    return min(_SLOTS * max(sizes.values(), default=0), sum(sizes.values()))


# -- what passes -----------------------------------------------------------------------------------


def loading_peak_bytes(model: HfModel, precision: Precision, streamed: Collection[str] = ()) -> int:
    """The most that lies in RAM while engines/transformers/reading.py reads one tensor after the other, in
    the order of their names as transformers sorts them; `streamed` modules go to the disk at once.

    Beside what has been loaded: of a plain tensor its bytes in the file, where another type is wanted; of a
    quantized one what bitsandbytes puts beside it; of merged experts the parts they are put together from; of
    what is quantized in the files, those bytes and the rows that are being unpacked.
    """
    stored, held = stored_precision(model.hf_config.dtype), precision.element_bytes
    as_stored = stored.dtype == precision.dtype
    loaded = peak = 0
    for one in sorted(model.parameters, key=lambda one: _natural(one.name)):
        size = loaded_bytes(one, precision)
        cast = 0 if as_stored or one.stored else stored.element_bytes
        extra = cast * one.elements
        if one.stacks:
            extra = size + cast * one.elements // max(1, one.shape[0])
        elif one.kind == "linear" and precision.bits == 8:
            extra = (held + max(cast, 9)) * one.elements
        elif one.kind == "linear" and precision.bits == 4:
            extra = held * one.elements + max(cast * one.elements, 27 * one.elements // 2)
        peak = max(peak, loaded + size + extra + reading_bytes(one))
        if not any(one.name.startswith(f"{module}.") for module in streamed):
            loaded += size
    return peak


def converting_peak_bytes(tensors: Sequence[TensorSpec], element_bytes: int) -> int:
    """What transformers takes at most to dequantize a whole GGUF file, tensor by tensor in the file's order,
    beyond what reading its header takes: what is done, the file so far, which is mapped, and the tensor at
    work twice in float32."""
    done = peak = 0
    for one in tensors:
        elements = one.elements
        done += one.size_bytes + elements * element_bytes
        peak = max(peak, done + 8 * elements)
    return max(peak, done + _BUILDING_BYTES)


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Layer 2 before layer 10, as `dot_natural_key` in transformers' core_model_loading.py."""
    parts = name.split(".")
    return tuple((not one.isdigit(), int(one) if one.isdigit() else 0, one) for one in parts)


def pass_bytes(model: HfModel, config: TransformersConfig, *, packs: bool) -> int:
    """What a pass needs beside weights and KV cache, at its worst moment.

    Counted: the residual stream and what one attention and one feed-forward block hold at once; keys and
    values repeated for their heads; the mask; the largest weight once more where a kernel unpacks it;
    the sampler, or the logits of texts that are scored.
    Ignored: what kernels keep for themselves, which the calibration run has in its figure.
    """
    sizes, element, ubatch = model.hf_config, config.precision.element_bytes, config.ubatch
    heads, key_values = (
        number * sizes.head_dim for number in (sizes.num_attention_heads, sizes.num_key_value_heads)
    )
    stream = ubatch * sizes.hidden_size * (2 * element + 8)  # and a norm in float32
    wide = max(sizes.intermediate_size, sizes.moe_intermediate_size * sizes.num_experts // 8)
    feed_forward = 4 * ubatch * wide * element
    cells = config.sequence_tokens  # sequences attend one after the other
    attention = element * (ubatch * (3 * heads + 4 * key_values) + 2 * cells * heads + ubatch * cells)
    linear = [one for one in model.parameters if one.kind == "linear"]
    extra = 0
    if config.precision.is_stored and any(one.stored for one in model.parameters):
        extra = UNPACKED_PASS_BYTES
    elif config.precision.bits == 4 and not packs:
        extra = max((one.elements for one in linear), default=0) * element
    elif config.precision.bits == 8:
        extra = ubatch * (_INT8_BYTES * wide + _INT8_LEFT_BYTES * sum(one.shape[0] for one in linear))
        extra += _OUTLIER_BYTES * max((one.elements for one in linear), default=0)
        extra += min(_OUTLIER_LEFT_BYTES * sum(one.elements for one in linear), _OUTLIERS_LEFT_MOST_BYTES)
    outputs = max(config.outputs, config.parallel if config.parallel > 1 else 0)
    sampled = 4 * config.parallel if config.parallel > 1 else 0  # a copy of each sequence's
    logits = _SAMPLER_BYTES + sampled + outputs * (element + 4)  # as they are computed, and in float32
    return stream + max(feed_forward, attention) + extra + logits * sizes.vocab_size
