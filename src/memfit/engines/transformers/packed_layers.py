"""Linear layers and experts whose weights stay packed while they compute.

A layer's one parameter holds all sections of its weight (memory/packed_weights.py) as bytes. Few tokens go
through a kernel that reads packed weights; for many, and where there is no such kernel, a block of rows at a
time is unpacked into memory that is used again, and multiplied as bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from memfit.engines.transformers.stored_reading import views
from memfit.headers.stored_weights import StoredWeight
from memfit.memory.packed_weights import form_of, int4_group, packed_bytes

__all__ = ["PackedExperts", "PackedLinear", "packed_product"]

_BLOCK_ELEMENTS = 1024 * 1024  # that are unpacked at once: 2 MiB of bfloat16
_TILE = 64  # rows that torch's 4-bit kernel has together
_FEW_INT4, _FEW_INT8 = 32, 4  # tokens up to which a kernel is faster than unpacking, measured
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
    if states.shape[0] <= _FEW_INT4:
        found: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(states, weight, group, scales)
        return found
    found = states.new_empty(states.shape[0], stored.shape[0])
    for start, stop in _blocks(stored):
        found[:, start:stop] = states @ _unpack_int4(weight[start:stop], scales[:, start:stop], group)
    return found


def _unpack_int4(packed: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """bfloat16 [columns, rows]. Of 64 rows the kernel's layout has [columns][32 bytes], the low 4 bits
    of the first 32 rows and the high ones of the others; of a last tile with fewer rows likewise."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    found = torch.empty(columns, rows, dtype=torch.bfloat16)
    for start, tile in _tiles(rows):
        size = tile // 2
        count = (rows - start) // tile if tile == _TILE else 1
        part = packed[start : start + count * tile].reshape(count, columns, size)
        place = found[:, start : start + count * tile].view(columns, count, 2, size)
        place[:, :, 0] = (part & 15).transpose(0, 1)
        place[:, :, 1] = (part >> 4).transpose(0, 1)
    grouped = found.view(columns // group, group, rows)
    grouped.sub_(8).mul_(scales[:, None, :, 0]).add_(scales[:, None, :, 1])
    return found


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
    if states.shape[0] > _FEW_INT8:
        return _by_blocks(stored, sections, states, _unpack_int8)
    if stored.groups == 1 and zeros is None:
        found: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
            states, sections["weight"].view(stored.shape), scales[0]
        )
        return found
    total = torch.zeros(states.shape[0], stored.shape[0], dtype=torch.float32)
    for index, (part, weight) in enumerate(_group_by_group(stored, sections["weight"], states)):
        total += torch.ops.aten._weight_int8pack_mm(part, weight, scales[index])
        if zeros is not None:
            total -= part.float().sum(1, keepdim=True) * (zeros[index] * scales[index])
    return total.to(states.dtype)


def _unpack_int8(codes: torch.Tensor, index: int, rows: slice, sections: Sections) -> torch.Tensor:
    found = codes.to(torch.bfloat16)
    if (zeros := sections.get("zeros")) is not None:
        found -= zeros[index, rows, None]
    return found.mul_(sections["scales"][index, rows, None])


def _float8(stored: StoredWeight, sections: Sections, states: torch.Tensor) -> torch.Tensor:
    return _by_blocks(stored, sections, states, _unpack_float8)


def _unpack_float8(codes: torch.Tensor, index: int, rows: slice, sections: Sections) -> torch.Tensor:
    moved = codes.view(torch.int8).to(torch.int16)
    moved.bitwise_left_shift_(4).bitwise_and_(_FLOAT8_BITS)
    scales = sections["scales"][index, rows, None] * 2.0**_FLOAT8_EXPONENT
    return moved.view(torch.bfloat16).mul_(scales.to(torch.bfloat16))


def _by_blocks(
    stored: StoredWeight,
    sections: Sections,
    states: torch.Tensor,
    unpack: Callable[[torch.Tensor, int, slice, Sections], torch.Tensor],
) -> torch.Tensor:
    rows, columns = stored.shape
    found = states.new_empty(states.shape[0], rows)
    for start, stop in _blocks(stored):
        weight = torch.empty(stop - start, columns, dtype=torch.bfloat16)
        first = 0
        for index, (part, codes) in enumerate(_group_by_group(stored, sections["weight"], states)):
            width = part.shape[1]
            weight[:, first : first + width] = unpack(codes[start:stop], index, slice(start, stop), sections)
            first += width
        found[:, start:stop] = linear(states, weight)
    return found


def _group_by_group(
    stored: StoredWeight, weight: torch.Tensor, states: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A group's columns of the states, and its codes [rows, columns of the group]."""
    rows, columns = stored.shape
    for first in range(0, columns, stored.group):
        stop = min(first + stored.group, columns)
        yield states[:, first:stop], weight[rows * first : rows * stop].view(rows, stop - first)


def _blocks(stored: StoredWeight) -> list[tuple[int, int]]:
    rows = max(_TILE, _BLOCK_ELEMENTS // stored.columns // _TILE * _TILE)
    return [(start, min(start + rows, stored.shape[0])) for start in range(0, stored.shape[0], rows)]


_PRODUCTS = {"int4": _int4, "int8": _int8, "float8": _float8}
