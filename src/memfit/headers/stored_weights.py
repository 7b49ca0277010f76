"""Weights that a checkpoint holds quantized: which tensors of its files belong together, and what they are.

From headers alone. Several tensors (packed weights, scales, zero points, an order of columns) become one
QuantizedTensor with the name and shape of the weight that they stand for; everything else that reads a
checkpoint sees only that. Layouts are upstream's; a row of LAYOUTS each. Knows no bytes in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from memfit.errors import HeaderError, ModelError
from memfit.headers.hf_config import HfConfig
from memfit.headers.hf_quantization import Quantization
from memfit.headers.safetensors import Checkpoint, SafetensorsTensor
from memfit.strict_json import shown

__all__ = ["QuantizedTensor", "StoredWeight", "logical_checkpoint", "place_of"]

_BLOCK = 128  # rows and columns that share a scale in block-wise FP8
# What calibrated activations and caches were scaled by; memfit computes with them unquantized.
_UNUSED = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".activation_scale"),
    *(".q_scale", ".k_scale", ".v_scale", ".weight_format"),
)


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """One quantized matrix, as it lies in the files."""

    layout: str  # a key of LAYOUTS
    shape: tuple[int, ...]  # torch's: (outputs, inputs)
    bits: int
    group: int  # columns that share a scale
    block_rows: int = 1  # rows that share it
    has_zeros: bool = False
    is_ordered: bool = False
    zero_offset: int = 0
    parts: Mapping[str, SafetensorsTensor] = field(repr=False)  # by the ends of their names

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def is_fp4(self) -> bool:
        """Of bitsandbytes' two code books the one that is not NF4."""
        return "weight.quant_state.bitsandbytes__fp4" in self.parts

    @property
    def size_bytes(self) -> int:
        """In the files."""
        return sum(one.size_bytes for one in self.parts.values())


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(SafetensorsTensor):
    """The weight that several tensors stand for. Its type is what it unpacks to."""

    stored: StoredWeight

    @property
    def parts(self) -> tuple[SafetensorsTensor, ...]:
        return tuple(self.stored.parts.values())


def logical_checkpoint(
    config: HfConfig, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> Checkpoint:
    """The checkpoint with its weights in place of the tensors that hold them quantized. `shapes` are those
    that config.json tells, by `place_of`: bitsandbytes' 4-bit tensors have lost theirs.

    Raises:
        ModelError: it is quantized in a way that is not read, or tensors are missing, of another shape or
            type, or not as config.json says.
    """
    quantization = config.quantization
    if quantization is None:
        return checkpoint
    if quantization.problem or quantization.layout is None:
        raise ModelError(f"{config.path}: a quantized checkpoint: {quantization.problem}")
    found = _Finder(config, quantization, checkpoint, shapes)
    return replace(checkpoint, tensors=tuple(found.tensors()))


_IN_LAYER = re.compile(r"\blayers\.(\d+)\.(.*)")
_EXPERT = re.compile(r".*\bexperts\.(?:\d+\.)?(\w+?)(?:\.weight)?$")
_DOWN = ("down_proj", "w2")


def place_of(name: str) -> str:
    """What files and models call alike: behind the name of a layer, whatever stands before it. Of an expert
    its layer, and whether it leads down again."""
    found = _IN_LAYER.search(name)
    if found is None:
        return name.removeprefix("model.")
    layer = f"{'vision ' * ('vision' in name)}{found[1]}"
    if expert := _EXPERT.match(found[2]):
        return f"{layer} experts {'down' if expert[1] in _DOWN else 'up'}"
    return f"{layer} {found[2]}"


class _Finder:
    def __init__(
        self,
        config: HfConfig,
        quantization: Quantization,
        checkpoint: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        assert quantization.layout
        self._config, self._quantization, self._shapes = config, quantization, shapes
        self._layout = _LAYOUTS[quantization.layout]
        self._tensors = {one.name: one for one in checkpoint.tensors if not one.name.endswith(_UNUSED)}

    def tensors(self) -> Iterator[SafetensorsTensor]:
        main, claimed, found = self._layout.main, set[str](), list[QuantizedTensor]()
        for name, one in self._tensors.items():
            if name.endswith(main) and one.type in self._layout.types:
                parts = dict(self._parts(name.removesuffix(main)))
                claimed.update(part.name for part in parts.values())
                found.append(self._weight(name.removesuffix(main), one, parts))
        if not found:
            raise ModelError(
                f"{self._config.path} says {self._quantization.name}, and the files hold no such tensor "
                f"(…{main})"
            )
        for name, one in self._tensors.items():
            if name not in claimed:
                if name.endswith(self._layout.parts) and name != main:
                    raise HeaderError(
                        self._config.path,
                        f"tensor {shown(name)}",
                        f"belongs to a quantized weight, and its …{main} is missing or of another type",
                    )
                yield one
        yield from found

    def _parts(self, base: str) -> Iterator[tuple[str, SafetensorsTensor]]:
        for end in (self._layout.main, *self._layout.parts):
            if (one := self._tensors.get(base + end)) is not None:
                yield end.lstrip("._"), one

    def _weight(
        self, base: str, main: SafetensorsTensor, parts: Mapping[str, SafetensorsTensor]
    ) -> QuantizedTensor:
        try:
            shape = self._shapes.get(place_of(base + self._layout.weight))
            stored = self._layout.read(self._quantization, parts, shape)
        except _WrongPartsError as error:
            raise HeaderError(self._config.path, f"tensor {shown(main.name)}", str(error)) from None
        return QuantizedTensor(
            name=base + self._layout.weight,
            shape=stored.shape,
            type="BF16",
            size_bytes=stored.size_bytes,
            offset_bytes=main.offset_bytes,
            file_index=main.file_index,
            stored=stored,
        )


class _WrongPartsError(Exception):
    """What is wrong with the tensors of one weight."""


_Parts = Mapping[str, SafetensorsTensor]


def _need(parts: _Parts, name: str, types: tuple[str, ...], *shapes: tuple[int, ...]) -> SafetensorsTensor:
    one = parts.get(name)
    if one is None:
        raise _WrongPartsError(f"its {name} is missing")
    if one.type not in types:
        raise _WrongPartsError(f"its {name} is {one.type}, needed {' or '.join(types)}")
    if shapes and one.shape not in shapes:
        needed = " or ".join(str(list(shape)) for shape in shapes)
        raise _WrongPartsError(f"its {name} has the shape {list(one.shape)}, needed {needed}")
    return one


def _matrix(parts: _Parts, name: str, types: tuple[str, ...]) -> tuple[int, int]:
    one = _need(parts, name, types)
    if len(one.shape) != 2 or not one.elements:
        raise _WrongPartsError(f"its {name} has the shape {list(one.shape)}, needed rows and columns")
    return one.shape[0], one.shape[1]


_WHOLE, _REAL = ("I32",), ("F16", "BF16", "F32")


def _group_of(columns: int, groups: int, quantization: Quantization) -> int:
    """Columns of a group, as config.json has it; else where it allows that, as the scales have it."""
    group = quantization.group_size or columns
    if -(-columns // group) == groups:
        return min(group, columns)
    if not quantization.is_uniform and groups and columns % groups == 0:
        return columns // groups
    raise _WrongPartsError(f"{columns} columns in groups of {group} have no {groups} scales each")


def _read_gptq(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    words, outputs = _matrix(parts, "qweight", _WHOLE)
    bits = quantization.bits
    if not quantization.is_uniform and "g_idx" in parts:  # then it tells the columns
        bits = words * 32 // max(1, parts["g_idx"].elements)
        if bits not in (2, 3, 4, 8):
            raise _WrongPartsError(f"{bits} bits: GPTQ is read with 2, 3, 4 and 8")
    columns = words * 32 // bits
    if words * 32 % bits:
        raise _WrongPartsError(
            f"its qweight has {words} rows, which do not hold whole weights of {bits} bits"
        )
    groups = _matrix(parts, "scales", _REAL)[0]
    group = _group_of(columns, groups, quantization)
    _need(parts, "scales", _REAL, (groups, outputs))
    _need(parts, "qzeros", _WHOLE, (groups, -(-outputs * bits // 32)))
    if "g_idx" in parts:
        _need(parts, "g_idx", _WHOLE, (columns,))
    elif quantization.is_ordered:
        raise _WrongPartsError("its g_idx is missing, and config.json says desc_act")
    return StoredWeight(
        layout="gptq",
        shape=(outputs, columns),
        bits=bits,
        group=group,
        has_zeros=quantization.has_zeros,
        is_ordered=quantization.is_ordered,
        zero_offset=quantization.zero_offset,
        parts=parts,
    )


def _read_awq(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    columns, words = _matrix(parts, "qweight", _WHOLE)
    groups = _matrix(parts, "scales", _REAL)[0]
    group = _group_of(columns, groups, quantization)
    outputs = words * 8
    _need(parts, "scales", _REAL, (groups, outputs))
    _need(parts, "qzeros", _WHOLE, (groups, words))
    return StoredWeight(
        layout="awq", shape=(outputs, columns), bits=4, group=group, has_zeros=True, parts=parts
    )


def _read_packed(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    outputs, words = _matrix(parts, "weight_packed", _WHOLE)
    bits = quantization.bits
    columns = words * 32 // bits
    scale = _need(parts, "weight_scale", _REAL)
    group, groups, block_rows = _scaled_alike(quantization, scale, outputs, columns)
    if quantization.has_zeros:
        _need(parts, "weight_zero_point", _WHOLE, (-(-outputs * bits // 32), groups))
    if quantization.is_ordered:
        _need(parts, "weight_g_idx", _WHOLE, (columns,))
    return StoredWeight(
        layout="packed",
        shape=(outputs, columns),
        bits=bits,
        group=group,
        block_rows=block_rows,
        has_zeros=quantization.has_zeros,
        is_ordered=quantization.is_ordered,
        parts=parts,
    )


def _read_int8(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    outputs, columns = _matrix(parts, "weight", ("I8",))
    scale = _need(parts, "weight_scale", _REAL)
    group, groups, block_rows = _scaled_alike(quantization, scale, outputs, columns)
    if quantization.has_zeros:
        _need(parts, "weight_zero_point", ("I8",), (outputs, groups))
    return StoredWeight(
        layout="int8",
        shape=(outputs, columns),
        bits=8,
        group=group,
        block_rows=block_rows,
        has_zeros=quantization.has_zeros,
        parts=parts,
    )


def _read_float8(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    outputs, columns = _matrix(parts, "weight", ("F8_E4M3",))
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    scale = _need(parts, name, _REAL)
    group, _groups, block_rows = _scaled_alike(quantization, scale, outputs, columns)
    return StoredWeight(
        layout="float8", shape=(outputs, columns), bits=8, group=group, block_rows=block_rows, parts=parts
    )


def _scaled_alike(
    quantization: Quantization, scale: SafetensorsTensor, outputs: int, columns: int
) -> tuple[int, int, int]:
    """Columns that share a scale, how many groups of them a row has, and rows that share it."""
    groups = -(-columns // (quantization.group_size or columns))
    blocks = (-(-outputs // _BLOCK), -(-columns // _BLOCK))
    if scale.elements == 1 and groups == 1:
        return columns, 1, outputs
    if scale.shape in ((outputs, groups), (outputs,)[: groups == 1]):
        return min(quantization.group_size or columns, columns), groups, 1
    if scale.shape == blocks and quantization.layout == "float8":
        return min(_BLOCK, columns), blocks[1], _BLOCK
    raise _WrongPartsError(
        f"its scales have the shape {list(scale.shape)}, which goes with no {outputs} x {columns} weight"
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a weight is stored."""

    main: str  # how its tensor's name ends, behind the module's
    parts: tuple[str, ...]  # the same of what belongs to it
    types: tuple[str, ...]
    read: Callable[[Quantization, _Parts, tuple[int, ...] | None], StoredWeight]
    weight: str = ".weight"  # how the name of the weight ends that they stand for


def _read_bnb_int8(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    outputs, columns = _matrix(parts, "weight", ("I8",))
    _need(parts, "SCB", ("F32",), (outputs,))
    return StoredWeight(layout="bnb-int8", shape=(outputs, columns), bits=8, group=columns, parts=parts)


_BNB_BLOCK = 64  # weights that share a scale


def _read_bnb_4bit(quantization: Quantization, parts: _Parts, shape: tuple[int, ...] | None) -> StoredWeight:
    """Of a matrix its codes lie in one row, its scales too; with double quantization these are codes."""
    if shape is None:
        raise _WrongPartsError("its shape is not in the header, and memfit knows none of this model type")
    if len(shape) == 3:  # of one expert: gate and up are one parameter in transformers, and two in files
        shape = (
            shape[1:]
            if len(parts) and shape[1] * shape[2] == 2 * parts["weight"].elements
            else (shape[1] // 2, shape[2])
        )
    elements = shape[0] * shape[1]
    if parts["weight"].elements != -(-elements // 2):
        raise _WrongPartsError(
            f"it has {parts['weight'].elements} bytes, and {list(shape)} by config.json takes {elements // 2}"
        )
    blocks = -(-elements // _BNB_BLOCK)
    _need(parts, "weight.absmax", ("F32", "U8"), (blocks,))
    _need(parts, "weight.quant_map", ("F32",), (16,))
    if parts["weight.absmax"].type == "U8":
        _need(parts, "weight.nested_absmax", ("F32",), (-(-blocks // 256),))
        _need(parts, "weight.nested_quant_map", ("F32",), (256,))
    if not any(name.startswith("weight.quant_state") for name in parts):
        raise _WrongPartsError("its quant_state is missing")
    return StoredWeight(layout="bnb-4bit", shape=shape, bits=4, group=_BNB_BLOCK, parts=parts)


def _read_mxfp4(quantization: Quantization, parts: _Parts, _: tuple[int, ...] | None) -> StoredWeight:
    """blocks [experts, outputs, groups, 16 bytes], scales [experts, outputs, groups]; as parameters of the
    model [experts, inputs, outputs]."""
    blocks = _need(parts, "blocks", ("U8",))
    if len(blocks.shape) != 4 or blocks.shape[3] != 16 or not blocks.elements:
        raise _WrongPartsError(f"its blocks have the shape {list(blocks.shape)}")
    experts, outputs, groups, _bytes = blocks.shape
    _need(parts, "scales", ("U8",), (experts, outputs, groups))
    return StoredWeight(layout="mxfp4", shape=(experts, groups * 32, outputs), bits=4, group=32, parts=parts)


_LAYOUTS = {
    "gptq": _Layout(main=".qweight", parts=(".qzeros", ".scales", ".g_idx"), types=_WHOLE, read=_read_gptq),
    "awq": _Layout(main=".qweight", parts=(".qzeros", ".scales"), types=_WHOLE, read=_read_awq),
    "packed": _Layout(
        main=".weight_packed",
        parts=(".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape"),
        types=_WHOLE,
        read=_read_packed,
    ),
    "int8": _Layout(
        main=".weight", parts=(".weight_scale", ".weight_zero_point"), types=("I8",), read=_read_int8
    ),
    "bnb-int8": _Layout(main=".weight", parts=(".SCB",), types=("I8",), read=_read_bnb_int8),
    "bnb-4bit": _Layout(
        main=".weight",
        parts=(
            *(".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"),
            *(".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"),
        ),
        types=("U8",),
        read=_read_bnb_4bit,
    ),
    "mxfp4": _Layout(main="_blocks", parts=("_scales",), types=("U8",), read=_read_mxfp4, weight=""),
    "float8": _Layout(
        main=".weight",
        parts=(".weight_scale", ".weight_scale_inv"),
        types=("F8_E4M3",),
        read=_read_float8,
    ),
}
