"""What a quantized checkpoint's weights take while they stay packed: bytes in memory, from headers alone.

A form is what a kernel computes on. All tensors of one weight lie in one block of bytes, section by section:
so they load, stack and move like any other parameter. What goes into no form is unpacked. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from memfit.headers.stored_weights import StoredWeight
from memfit.units import MIB

__all__ = [
    "FORMS",
    "UNPACKED_PASS_BYTES",
    "UNPACKING_BYTES",
    "Section",
    "form_of",
    "int4_group",
    "packed_bytes",
    "sections_of",
    "why_unpacked",
]

FORMS = ("int4", "int8", "float8", "nf4")
# While one weight is read, at most, beside what the files hold of it and the result: a block of rows.
UNPACKING_BYTES = 16 * MIB
# In a pass that unpacks: a block of rows, and what it takes to make it.
UNPACKED_PASS_BYTES = 8 * MIB
_ALIGNED = 64  # bytes, for each section
_INT4_GROUPS = (256, 128, 64, 32)  # what torch's kernel takes
_INT4_ROWS = 16
_BYTES = {"uint8": 1, "int8": 1, "bfloat16": 2, "float32": 4, "int32": 4}


@dataclass(frozen=True, kw_only=True)
class Section:
    name: str
    dtype: str  # torch's name
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]


def form_of(stored: Sequence[StoredWeight]) -> str | None:
    """A key of FORMS; None where the weight, or experts that are quantized alike, must be unpacked."""
    if not stored or why_unpacked(stored[0]):
        return None
    one = stored[0]
    own = {"float8": "float8", "bnb-4bit": "nf4"}.get(one.layout)
    return own or ("int4" if one.bits == 4 else "int8")


def why_unpacked(stored: StoredWeight) -> str | None:
    """Why no kernel computes on it; None where one does."""
    if stored.layout == "float8":
        return None
    if stored.bits == 8 and stored.layout in ("gptq", "packed", "int8", "bnb-int8"):
        return None
    if stored.layout == "bnb-4bit":
        whole = stored.columns % stored.group == 0
        return None if whole else f"rows of {stored.columns} are no whole blocks of {stored.group}"
    if stored.bits == 4 and stored.layout in ("gptq", "awq", "packed"):
        if int4_group(stored) is None:
            return f"torch multiplies 4-bit weights in groups of 32 to 256, not of {stored.group}"
        if stored.shape[0] % _INT4_ROWS:
            return f"torch multiplies 4-bit weights by {_INT4_ROWS} rows, not {stored.shape[0]}"
        return None
    return f"torch has no kernel for {stored.layout} of {stored.bits} bits on a CPU"


def int4_group(stored: StoredWeight) -> int | None:
    """Columns that share a scale in torch's kernel: as stored, or a part of that."""
    if stored.columns % stored.group:
        return None
    return next((size for size in _INT4_GROUPS if stored.group % size == 0), None)


def sections_of(stored: StoredWeight) -> tuple[Section, ...]:
    """Of a weight that stays packed, in the order in which they lie."""
    found, offset = [], 0
    for name, (dtype, shape) in _sections(stored).items():
        section = Section(name=name, dtype=dtype, shape=shape, offset_bytes=offset)
        offset += -(-section.size_bytes // _ALIGNED) * _ALIGNED
        found.append(section)
    return tuple(found)


def packed_bytes(stored: StoredWeight) -> int:
    """Of all sections, with what aligns them."""
    return sum(-(-one.size_bytes // _ALIGNED) * _ALIGNED for one in sections_of(stored))


def _sections(stored: StoredWeight) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Name → type and shape. Integers of 8 bits lie group by group, [groups][rows][columns of a group]."""
    return dict(_all_sections(stored))


def _all_sections(stored: StoredWeight) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    rows, columns = stored.shape
    form = form_of([stored])
    if form == "int4":
        group = int4_group(stored)
        assert group
        yield "weight", ("uint8", (rows, columns // 2))
        yield "scales", ("bfloat16", (columns // group, rows, 2))  # and what is added: the zero point, scaled
    elif form == "int8":
        yield "weight", ("int8", (rows * columns,))
        yield "scales", ("bfloat16", (stored.groups, rows))
        if stored.has_zeros:
            yield "zeros", ("bfloat16", (stored.groups, rows))
    elif form == "nf4":
        yield "weight", ("uint8", (rows, columns // 2))
        yield "scales", ("float32", (rows, stored.groups))  # no longer quantized themselves
    else:
        assert form == "float8"
        yield "weight", ("uint8", (rows, columns))
        yield "scales", ("float32", (stored.groups, rows))
        yield "exact", ("uint8", ())  # whether numbers near 0 count
    if stored.is_ordered:
        yield "order", ("int32", (columns,))
