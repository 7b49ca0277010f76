"""Weights that a checkpoint holds quantized, read: unpacked into numbers, or put into the form that a kernel
computes on (memory/packed_weights.py), a block of rows at a time.

A reader for each layout gives the same thing, Codes. Layouts are upstream's: GPTQ's and AWQ's as gptqmodel
and AutoAWQ write them, others as compressed-tensors does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch

from memfit.errors import ModelError, UsageError
from memfit.headers.stored_weights import QuantizedTensor, StoredWeight
from memfit.memory.packed_weights import form_of, int4_group, packed_bytes, sections_of
from memfit.strict_json import parse_json, shown

__all__ = ["read_packed", "read_unpacked", "views"]

_BLOCK_ELEMENTS = 512 * 1024  # weights that are unpacked at once
_TILE = 64  # rows that torch's 4-bit kernel takes together
_LARGEST_SCALE = 128  # beyond, packed_layers.py would leave bfloat16's range
_FLOAT8_NORMAL = 2.0**-6  # the least number with a whole mantissa
_TINY_SHARE = 1e-6  # of a row's squares, in numbers below that: more must not be taken for 0
_NESTED = 256  # scales of bitsandbytes that share a scale
_FP4_VALUES = tuple(sign * size for sign in (1, -1) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column the i-th 4 bits of a word are

Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """weight[row, column] = (code - zero of its group) * scale of its group; `values` stand for codes where
    these are no numbers themselves."""

    rows: Callable[[int, int], torch.Tensor]  # codes of the rows from, to: [rows, columns]
    scales: torch.Tensor  # float32 [rows, groups]
    zeros: torch.Tensor | int = 0  # float32 [rows, groups]; or all alike
    groups: torch.Tensor | None = None  # the group of each column, where columns are not in order
    values: torch.Tensor | None = None


def read_unpacked(tensor: QuantizedTensor, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """The weight in a plain type.

    Raises:
        ModelError: what its tensors hold is impossible, or not as config.json says.
    """
    stored = tensor.stored
    if stored.layout == "mxfp4":
        return _read_mxfp4(stored, parts, dtype)
    codes = _codes(tensor, parts)
    found = torch.empty(stored.shape, dtype=dtype)
    groups = codes.groups
    if groups is None:
        groups = torch.arange(stored.columns) // stored.group
    for start, stop in _blocks(stored):
        numbers = codes.rows(start, stop)
        block = numbers.float() if codes.values is None else codes.values[numbers]
        zeros = codes.zeros
        if isinstance(zeros, torch.Tensor):
            block -= zeros[start:stop].index_select(1, groups)
        elif zeros:
            block -= zeros
        block *= codes.scales[start:stop].index_select(1, groups)
        found[start:stop] = block
    return found


def read_packed(tensor: QuantizedTensor, parts: Parts) -> torch.Tensor:
    """Its sections in one row of bytes. Raises ModelError as `read_unpacked` does."""
    stored, codes = tensor.stored, _codes(tensor, parts)
    found = torch.zeros(packed_bytes(stored), dtype=torch.uint8)
    sections = views(stored, found)
    order = None
    if stored.is_ordered:
        order = _order(tensor, codes)
        sections["order"].copy_(order)
    _PACKERS[str(form_of([stored]))](stored, codes, order, sections)
    return found


def views(stored: StoredWeight, block: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sections of a weight's bytes, by name."""
    return {
        one.name: block[one.offset_bytes : one.offset_bytes + one.size_bytes]
        .view(getattr(torch, one.dtype))
        .view(one.shape)
        for one in sections_of(stored)
    }


def _float8_values() -> torch.Tensor:
    """What the 256 codes of float8 (e4m3) stand for, float32."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def _blocks(stored: StoredWeight) -> list[tuple[int, int]]:
    """From which row to which."""
    rows = max(_TILE, _BLOCK_ELEMENTS // max(1, stored.columns) // _TILE * _TILE)
    return [(start, min(start + rows, stored.shape[0])) for start in range(0, stored.shape[0], rows)]


# -- what files hold -------------------------------------------------------------------------------


def _codes(tensor: QuantizedTensor, parts: Parts) -> Codes:
    codes = _READERS[tensor.stored.layout](tensor.stored, parts)
    if not torch.isfinite(codes.scales).all():
        raise ModelError(f"the scales of {tensor.name} are not all numbers")
    if codes.groups is not None:
        low, high = int(codes.groups.min()), int(codes.groups.max())
        if low < 0 or high >= tensor.stored.groups:
            wrong = low if low < 0 else high
            raise ModelError(
                f"{tensor.name}: g_idx names group {wrong}, and there are {tensor.stored.groups} groups"
            )
    return codes


def _gptq(stored: StoredWeight, parts: Parts) -> Codes:
    """qweight int32 [columns * bits / 32, rows]: a column's codes one after the other from the lowest bit,
    over words as well. qzeros likewise, [groups, rows * bits / 32]."""
    words, bits = parts["qweight"], stored.bits
    most = 2**bits - 1
    zeros = _unpack(parts["qzeros"], bits)[:, : stored.shape[0]]
    zeros = ((zeros + stored.zero_offset) & most).T.float()
    all_alike: torch.Tensor | int = zeros
    if not stored.has_zeros:
        if not (zeros == 2 ** (bits - 1)).all():
            raise ModelError("config.json says sym, and zero points differ; is its checkpoint_format right?")
        all_alike = 2 ** (bits - 1)
    groups = parts.get("g_idx")
    if groups is not None and not stored.is_ordered:
        if not torch.equal(groups, (torch.arange(stored.columns) // stored.group).to(groups.dtype)):
            raise ModelError("g_idx orders the columns, and config.json says desc_act false")
        groups = None
    return Codes(
        rows=lambda start, stop: _unpack(words[:, start:stop].T.contiguous(), bits),
        scales=parts["scales"].T.float(),
        zeros=all_alike,
        groups=groups if groups is None else groups.long(),
    )


def _awq(stored: StoredWeight, parts: Parts) -> Codes:
    """qweight int32 [columns, rows / 8], qzeros [groups, rows / 8]: 8 rows in a word, in AWQ's order."""
    words = parts["qweight"]
    return Codes(
        rows=lambda start, stop: _unpack_awq(words[:, start // 8 : -(-stop // 8)]).T[: stop - start],
        scales=parts["scales"].T.float(),
        zeros=_unpack_awq(parts["qzeros"]).T.float(),
    )


def _packed(stored: StoredWeight, parts: Parts) -> Codes:
    """weight_packed int32 [rows, columns * bits / 32]: signed numbers, with what makes them positive added.
    Zero points likewise, [rows * bits / 32, groups]."""
    words, bits, shift = parts["weight_packed"], stored.bits, 2 ** (stored.bits - 1)
    shape = parts.get("weight_shape")
    if shape is not None and tuple(shape.tolist()) != stored.shape:
        raise ModelError(f"weight_shape is {shape.tolist()}, and the weight is {list(stored.shape)}")
    zeros: torch.Tensor | int = shift
    if stored.has_zeros:
        zeros = _unpack(parts["weight_zero_point"].T.contiguous(), bits)[:, : stored.shape[0]].T.float()
    groups = parts["weight_g_idx"].long() if stored.is_ordered else None
    return Codes(
        rows=lambda start, stop: _unpack(words[start:stop], bits),
        scales=_all_rows(stored, parts["weight_scale"]),
        zeros=zeros,
        groups=groups,
    )


def _int8(stored: StoredWeight, parts: Parts) -> Codes:
    """weight int8 [rows, columns]; as numbers from 0, as the others."""
    weight = parts["weight"]
    zeros: torch.Tensor | int = 128
    if stored.has_zeros:
        zeros = _all_rows(stored, parts["weight_zero_point"]) + 128
    return Codes(
        rows=lambda start, stop: weight[start:stop].int() + 128,
        scales=_all_rows(stored, parts["weight_scale"]),
        zeros=zeros,
    )


def _float8(stored: StoredWeight, parts: Parts) -> Codes:
    weight = parts["weight"].view(torch.uint8)
    scales = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    return Codes(
        rows=lambda start, stop: weight[start:stop].int(),
        scales=_all_rows(stored, scales),
        values=_float8_values(),
    )


def _bnb_int8(stored: StoredWeight, parts: Parts) -> Codes:
    weight = parts["weight"]
    return Codes(
        rows=lambda start, stop: weight[start:stop].int() + 128,
        scales=parts["SCB"][:, None] / 127,
        zeros=128,
    )


def _bnb_4bit(stored: StoredWeight, parts: Parts) -> Codes:
    """weight uint8: two codes in a byte, the first one in the high bits; all rows behind each other, and so
    are the blocks that share a scale. With double quantization scales are codes of a code book, too."""
    state, quant_map, absmax = _quant_state(parts), parts["weight.quant_map"], parts["weight.absmax"]
    kind = "fp4" if stored.is_fp4 else "nf4"
    for name, wanted in (("quant_type", kind), ("blocksize", stored.group), ("shape", [*stored.shape])):
        if state.get(name) != wanted:
            raise ModelError(f"its quant_state says {name} {shown(state.get(name))}, needed {wanted}")
    if absmax.dtype == torch.uint8:
        offset = state.get("nested_offset")
        if not isinstance(offset, (int, float)) or state.get("nested_blocksize") != _NESTED:
            raise ModelError("its quant_state has no nested_offset, or another nested_blocksize than 256")
        nested = parts["weight.nested_absmax"].repeat_interleave(_NESTED)[: len(absmax)]
        absmax = parts["weight.nested_quant_map"][absmax.int()] * nested + offset
    codes = parts["weight"].reshape(-1)
    columns = stored.columns

    def rows(start: int, stop: int) -> torch.Tensor:
        first, last = start * columns // 2, -(-stop * columns // 2)
        both = torch.stack((codes[first:last] >> 4, codes[first:last] & 15), 1).view(-1)
        skipped = start * columns - 2 * first
        return both[skipped : skipped + (stop - start) * columns].view(-1, columns).int()

    if columns % stored.group == 0:
        return Codes(rows=rows, scales=absmax.view(-1, stored.groups), values=quant_map)

    def numbers(start: int, stop: int) -> torch.Tensor:
        """Where blocks do not end with rows."""
        blocks = torch.arange(start * columns, stop * columns).view(-1, columns) // stored.group
        return quant_map[rows(start, stop)] * absmax[blocks]

    return Codes(rows=numbers, scales=torch.ones(stored.shape[0], stored.groups))


def _quant_state(parts: Parts) -> dict[str, Any]:
    (text,) = (bytes(one.tolist()) for name, one in parts.items() if "quant_state" in name)
    try:
        state = parse_json(text, "its quant_state")
    except UsageError as error:
        raise ModelError(str(error)) from None
    if not isinstance(state, dict):
        raise ModelError(f"its quant_state is {shown(state)}, needed an object")
    return state


def _read_mxfp4(stored: StoredWeight, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Expert by expert: two codes in a byte, the first one in the low bits; a scale is an exponent of 2."""
    found = torch.empty(stored.shape, dtype=dtype)
    for place, blocks, scales in zip(found, parts["blocks"], parts["scales"], strict=True):
        if (scales == 255).any():
            raise ModelError("a scale in MXFP4 is no number")
        codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(2).int()
        numbers = torch.tensor(_FP4_VALUES)[codes]
        numbers = torch.ldexp(numbers, scales[:, :, None].int() - 127)
        place.copy_(numbers.flatten(1).T)
    return found


_READERS = {
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed,
    "int8": _int8,
    "float8": _float8,
    "bnb-int8": _bnb_int8,
    "bnb-4bit": _bnb_4bit,
}


def _all_rows(stored: StoredWeight, scales: torch.Tensor) -> torch.Tensor:
    """float32 [rows, groups], of scales that rows may share."""
    found = scales.float().reshape(-1, stored.groups)
    return found.repeat_interleave(stored.block_rows, 0)[: stored.shape[0]]


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words] → int32 [rows, codes], the lowest bits first."""
    mask = 2**bits - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return ((words[:, :, None] >> shifts) & mask).flatten(1)
    # Codes that begin in one word and end in the next: all words of a code as one number.
    places = torch.arange(words.shape[1] * 32 // bits) * bits
    index, shift = places // 32, places % 32
    wide = words.long() & 0xFFFFFFFF
    following = torch.nn.functional.pad(wide, (0, 1))
    both = wide[:, index] | (following[:, index + 1] << 32)
    return ((both >> shift) & mask).int()


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    shifts = torch.tensor([_AWQ_ORDER.index(place) * 4 for place in range(8)], dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).flatten(1)


# -- what kernels take -----------------------------------------------------------------------------


def _order(tensor: QuantizedTensor, codes: Codes) -> torch.Tensor:
    """The columns, sorted by group: each must be whole."""
    stored, groups = tensor.stored, codes.groups
    assert groups is not None
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order], torch.arange(stored.columns) // stored.group):
        raise ModelError(f"{tensor.name}: the groups of g_idx do not have {stored.group} columns each")
    return order


_Sections = Mapping[str, torch.Tensor]


def _pack_int4(stored: StoredWeight, codes: Codes, order: torch.Tensor | None, into: _Sections) -> None:
    """torch's kernel computes (code - 8) * scale + zero."""
    for start, stop in _blocks(stored):
        numbers = codes.rows(start, stop)
        if order is not None:
            numbers = numbers.index_select(1, order)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int().contiguous(), 1)
        into["weight"][start:stop] = packed.view(stop - start, -1)
    group = int4_group(stored)
    assert group
    scales, zeros = codes.scales, (8 - codes.zeros) * codes.scales
    for index, found in enumerate((scales, zeros)):
        into["scales"][:, :, index] = found.T.repeat_interleave(stored.group // group, 0)


def _pack_int8(stored: StoredWeight, codes: Codes, order: torch.Tensor | None, into: _Sections) -> None:
    """Group by group, less 128."""
    rows = stored.shape[0]
    for start, stop in _blocks(stored):
        numbers = codes.rows(start, stop)
        if order is not None:
            numbers = numbers.index_select(1, order)
        numbers = (numbers - 128).to(torch.int8)
        for first in range(0, stored.columns, stored.group):
            width = min(stored.group, stored.columns - first)
            place = into["weight"][rows * first : rows * (first + width)].view(rows, width)
            place[start:stop] = numbers[:, first : first + width]
    into["scales"].copy_(codes.scales.T)
    if "zeros" in into:
        assert isinstance(codes.zeros, torch.Tensor)
        into["zeros"].copy_(codes.zeros.T - 128)


def _pack_nf4(stored: StoredWeight, codes: Codes, order: torch.Tensor | None, into: _Sections) -> None:
    """As stored, but scales are numbers again."""
    assert order is None and codes.values is not None
    known = bitsandbytes.functional.get_4bit_type("fp4" if stored.is_fp4 else "nf4", device="cpu")
    if not torch.allclose(codes.values, known, atol=1e-6):
        raise ModelError("its code book is neither bitsandbytes' NF4 nor its FP4")
    for start, stop in _blocks(stored):
        numbers = codes.rows(start, stop).to(torch.uint8).view(stop - start, -1, 2)
        into["weight"][start:stop] = (numbers[:, :, 0] << 4) | numbers[:, :, 1]
    into["scales"].copy_(codes.scales)


def _pack_float8(stored: StoredWeight, codes: Codes, order: torch.Tensor | None, into: _Sections) -> None:
    assert codes.values is not None and order is None
    if (largest := float(codes.scales.max())) > _LARGEST_SCALE:
        raise ModelError(f"a scale is {largest:g}, and FP8 is read with scales up to {_LARGEST_SCALE}")
    tiny = 0.0
    for start, stop in _blocks(stored):
        numbers = codes.rows(start, stop)
        values = codes.values[numbers]
        if not torch.isfinite(values).all():
            raise ModelError("a weight in FP8 is no number")
        small = values.masked_fill(values.abs() >= _FLOAT8_NORMAL, 0).square().sum(1)
        tiny = max(tiny, float((small / values.square().sum(1).clamp(min=1e-30)).max()))
        into["weight"][start:stop] = numbers.to(torch.uint8)
    into["exact"].fill_(int(tiny > _TINY_SHARE))
    into["scales"].copy_(codes.scales.T)


_PACKERS = {"int4": _pack_int4, "int8": _pack_int8, "float8": _pack_float8, "nf4": _pack_nf4}
