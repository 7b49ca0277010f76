"""Linear layers and experts whose weights stay packed while they compute.

A layer's one parameter holds all sections of its weight (memory/packed_weights.py) as bytes. Few tokens go
through a kernel that reads packed weights; for many, and where there is no such kernel, a block of rows at a
time is unpacked into memory that is used again, and multiplied as bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes  # noqa: F401 - its operators
import torch
from torch.nn.functional import linear

from memfit.engines.transformers.stored_reading import views
from memfit.headers.stored_weights import StoredWeight
from memfit.memory.packed_weights import form_of, int4_group, packed_bytes

__all__ = ["PackedExperts", "PackedLinear", "packed_product"]

_BLOCK_ELEMENTS = 1024 * 1024  # that are unpacked at once: 2 MiB of bfloat16
_TILE = 64  # rows that torch's 4-bit kernel has together
_FEW_4BIT, _FEW_8BIT = 32, 4  # tokens up to which a kernel is faster than unpacking, measured
_SCALED_ROWS = 128  # rows that share a scale in block-wise FP8; of these, whole blocks are unpacked
_FLOAT8_BITS = -30736  # 0x87F0: sign, exponent and mantissa, once moved to where bfloat16 has them
_FLOAT8_EXPONENT = 120  # by which that exponent is too low, since bfloat16 counts from another one


Sections = dict[str, torch.Tensor]  # of one weight


class PackedLinear(torch.nn.Module):
    """In place of a torch.nn.Linear."""

    def __init__(self, stored: StoredWeight, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.stored = stored
        self.in_features, self.out_features = stored.columns, stored.shape[0]
        self.weight = _empty(packed_bytes(stored))
        self.bias = bias

        self._held: torch.Tensor | None = None  # which `_sections` are of: hooks may bring another
        self._sections: Sections = {}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self._held is not self.weight:
            self._held, self._sections = self.weight, views(self.stored, self.weight)
        found = packed_product(self.stored, self._sections, states)
        return found if self.bias is None else found + self.bias


class PackedExperts(torch.nn.Module):
    """In place of merged experts: each one's bytes are a row, gate's and up's behind each other."""

    def __init__(
        self, up: StoredWeight, down: StoredWeight, experts: int, act_fn: Callable[..., Any]
    ) -> None:
        super().__init__()
        self._up, self._down, self._act_fn = up, down, act_fn
        self.num_experts = experts
        self.gate_up_proj = _empty(experts, 2 * packed_bytes(up))
        self.down_proj = _empty(experts, packed_bytes(down))
        self._held: torch.Tensor | None = None
        self._sections: dict[int, tuple[Sections, Sections, Sections]] = {}

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As transformers' own experts compute, one that is chosen after the other."""
        found = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:  # a token that is no expert's
                continue
            token, place = torch.where(top_k_index == expert)
            states = hidden_states[token]
            gate, up, down = self._sections_of(expert)
            gated = self._act_fn(packed_product(self._up, gate, states))
            states = packed_product(self._down, down, gated * packed_product(self._up, up, states))
            found.index_add_(0, token, (states * top_k_weights[token, place, None]).to(found.dtype))
        return found

    def _sections_of(self, expert: int) -> tuple[Sections, Sections, Sections]:
        if self._held is not self.down_proj:
            self._held, self._sections = self.down_proj, {}
        if expert not in self._sections:
            gate, up = (views(self._up, one) for one in self.gate_up_proj[expert].chunk(2))
            self._sections[expert] = gate, up, views(self._down, self.down_proj[expert])
        return self._sections[expert]


def _empty(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=torch.uint8, device="meta"), requires_grad=False)


def packed_product(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    """states [..., columns] times the weight, [..., rows], bfloat16."""
    flat = states.reshape(-1, stored.columns)
    if "order" in sections:
        flat = flat.index_select(1, sections["order"])
    found = _PRODUCTS[str(form_of([stored]))](stored, sections, flat)
    return found.view(*states.shape[:-1], stored.shape[0])


def _int4(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    weight, scales = sections["weight"], sections["scales"]
    group = int4_group(stored)
    assert group
    if states.shape[0] <= _FEW_4BIT:
        found: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(states, weight, group, scales)
        return found
    found = states.new_empty(states.shape[0], stored.shape[0])
    for rows in _blocks(stored):
        found[:, rows] = states @ _unpack_int4(weight[rows], scales[:, rows], group)
    return found


def _unpack_int4(packed: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """bfloat16 [columns, rows]. Of 64 rows the kernel's layout has [columns][32 bytes], the low 4 bits
    of the first 32 rows and the high ones of the others; of a last tile with fewer rows likewise."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    for start, tile in _tiles(rows):
        count = (rows - start) // tile
        part = packed[start:].reshape(-1)[: count * tile * columns // 2].view(count, columns, tile // 2)
        place = codes[:, start : start + count * tile].view(columns, count, 2, tile // 2)
        place[:, :, 0] = (part & 15).transpose(0, 1)
        place[:, :, 1] = (part >> 4).transpose(0, 1)
    found = codes.view(torch.int8).sub_(8).to(torch.bfloat16).view(columns // group, group, rows)
    # Contiguous: a broadcast with strides takes ten times as long.
    scale, zero = (one.contiguous()[:, None] for one in scales.unbind(-1))
    return torch.addcmul(zero, found, scale).view(columns, rows)


def _tiles(rows: int) -> Iterator[tuple[int, int]]:
    """Whole tiles from the first row, then what is left."""
    whole = rows // _TILE * _TILE
    if whole:
        yield 0, _TILE
    if rows > whole:
        yield whole, rows - whole


def _int8(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    """sum over groups of scale * (code * states - zero * their sum)."""
    scales, zeros = sections["scales"], sections.get("zeros")
    if states.shape[0] > _FEW_8BIT:
        return _by_blocks(stored, sections, states, _unpack_int8)
    if stored.groups == 1 and zeros is None:
        found: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
            states, sections["weight"].view(stored.shape), scales[0]
        )
        return found
    total = torch.zeros(states.shape[0], stored.shape[0], dtype=torch.float32)
    for index, columns in enumerate(_groups(stored)):
        part, weight = states[:, columns], _group(stored, sections, columns)
        total += torch.ops.aten._weight_int8pack_mm(part, weight, scales[index])
        if zeros is not None:
            total -= part.float().sum(1, keepdim=True) * (zeros[index] * scales[index])
    return total.to(states.dtype)


def _unpack_int8(stored: StoredWeight, sections: Sections, rows: slice, into: torch.Tensor) -> None:
    scales, zeros = sections["scales"], sections.get("zeros")
    for index, columns in enumerate(_groups(stored)):
        place = into[:, columns]
        place.copy_(_group(stored, sections, columns)[rows])
        if zeros is not None:
            place -= zeros[index, rows, None]
        place *= scales[index, rows, None]


def _float8(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    """Few tokens: weights as they are once moved, too small by a power of two that states and result make
    good. Kernels take numbers below bfloat16's exponents for 0 there, which `exact` forbids."""
    if states.shape[0] > _FEW_8BIT or sections["exact"]:
        return _by_blocks(stored, sections, states, _unpack_float8)
    half = 2.0 ** (_FLOAT8_EXPONENT // 2)
    states, scales = states * half, sections["scales"] * half
    if stored.groups > 1 and stored.block_rows == _SCALED_ROWS:
        return _float8_by_rows(stored, sections, states) * half
    found = torch.zeros(states.shape[0], stored.shape[0], dtype=torch.float32)
    for rows in _blocks(stored):
        weight = _move_float8(sections["weight"][rows])
        for index, columns in enumerate(_groups(stored)):
            found[:, rows] += linear(states[:, columns], weight[:, columns]) * scales[index, rows]
    return found.to(states.dtype)


def _float8_by_rows(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    """Where blocks of rows share their scales, states are scaled for each such block: fewer calls."""
    found = states.new_empty(states.shape[0], stored.shape[0])
    for rows in _blocks(stored):
        weight = _move_float8(sections["weight"][rows])
        scales = sections["scales"][:, rows][:, ::_SCALED_ROWS].T.repeat_interleave(stored.group, 1)
        # [blocks, columns, tokens]
        scaled = (states.T * scales[:, : stored.columns, None]).to(states.dtype)
        whole = len(weight) // _SCALED_ROWS
        place = found[:, rows]
        if whole:
            blocks = weight[: whole * _SCALED_ROWS].view(whole, _SCALED_ROWS, -1)
            place[:, : whole * _SCALED_ROWS] = torch.bmm(blocks, scaled[:whole]).flatten(0, 1).T
        if whole < len(scaled):
            place[:, whole * _SCALED_ROWS :] = linear(scaled[-1].T, weight[whole * _SCALED_ROWS :])
    return found


def _move_float8(codes: torch.Tensor) -> torch.Tensor:
    """Sign, exponent and mantissa to where bfloat16 has them."""
    moved = codes.view(torch.int8).to(torch.int16)
    moved.bitwise_left_shift_(4).bitwise_and_(_FLOAT8_BITS)
    return moved.view(torch.bfloat16)


def _unpack_float8(stored: StoredWeight, sections: Sections, rows: slice, into: torch.Tensor) -> None:
    into.copy_(_move_float8(sections["weight"][rows]))
    for index, columns in enumerate(_groups(stored)):
        into[:, columns] *= (sections["scales"][index, rows, None] * 2.0**_FLOAT8_EXPONENT).to(into.dtype)


def _nf4(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    return _by_blocks(stored, sections, states, _unpack_nf4)


def _unpack_nf4(stored: StoredWeight, sections: Sections, rows: slice, into: torch.Tensor) -> None:
    kind = "fp4" if stored.is_fp4 else "nf4"
    codes, scales = sections["weight"][rows].reshape(-1), sections["scales"][rows].reshape(-1)
    into.copy_(
        torch.ops.bitsandbytes.dequantize_4bit(codes, scales, stored.group, kind, into.shape, into.dtype)
    )


def _by_blocks(
    stored: StoredWeight,
    sections: Sections,
    states: torch.Tensor,
    unpack: Callable[[StoredWeight, Sections, slice, torch.Tensor], None],
) -> torch.Tensor:
    found = states.new_empty(states.shape[0], stored.shape[0])
    for rows in _blocks(stored):
        weight = torch.empty(rows.stop - rows.start, stored.columns, dtype=torch.bfloat16)
        unpack(stored, sections, rows, weight)
        found[:, rows] = linear(states, weight)
    return found


def _groups(stored: StoredWeight) -> Iterator[slice]:
    """Their columns."""
    for first in range(0, stored.columns, stored.group):
        yield slice(first, min(first + stored.group, stored.columns))


def _group(stored: StoredWeight, sections: Sections, columns: slice) -> torch.Tensor:
    """A group's codes of all rows, which lie together."""
    rows = stored.shape[0]
    return sections["weight"][rows * columns.start : rows * columns.stop].view(rows, -1)


def _blocks(stored: StoredWeight) -> list[slice]:
    """Rows that are unpacked at once."""
    rows = max(_SCALED_ROWS, _BLOCK_ELEMENTS // stored.columns // _SCALED_ROWS * _SCALED_ROWS)
    return [slice(start, min(start + rows, stored.shape[0])) for start in range(0, stored.shape[0], rows)]


_PRODUCTS = {"int4": _int4, "int8": _int8, "float8": _float8, "nf4": _nf4}
