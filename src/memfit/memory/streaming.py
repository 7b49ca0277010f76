"""Bytes of a model of which a part stays on the disk: pinned tensors, and the ring that others pass through.

Reads go past the page cache, so they begin and end at pages of the file: a tensor takes the pages that it
lies on, and neighbours share them. Pure arithmetic on the header's offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from memfit.headers.model_spec import StoredTensor, TensorSpec

__all__ = [
    "DEQUANTIZED",
    "PAGE_BYTES",
    "SENT_BYTES",
    "TOKEN_TABLE",
    "WIDENED",
    "WIDENS",
    "Stretch",
    "dequantized_bytes",
    "is_read_by_row",
    "ring_bytes",
    "streamed_bytes",
    "stretches",
    "widened_bytes",
]

PAGE_BYTES = 4096  # of O_DIRECT's blocks too, on every disk that is met
SENT_BYTES = 1 << 20  # to a device at once, where it lies twice meanwhile; larger pieces are no faster
DEQUANTIZED = "BF16"  # what quantized matrices may be held as: GGML's name of the type
WIDENED, WIDENS = "Q8_0", ("Q5_0", "IQ4_NL")  # holds every value of these, as whole numbers of one scale
TOKEN_TABLE = "token_embd.weight"
_LEAST_SLOTS = 3  # one is computed with, one is whole, one is being read


_Stored = TypeVar("_Stored", bound=StoredTensor)


@dataclass(frozen=True, kw_only=True)
class Stretch(Generic[_Stored]):
    """Neighbouring tensors of one file, with the pages they lie on."""

    file_index: int
    start_bytes: int  # in the file; a page's start
    end_bytes: int  # a page's end: maybe beyond the file's
    tensors: tuple[_Stored, ...]

    @property
    def size_bytes(self) -> int:
        return self.end_bytes - self.start_bytes


def stretches(tensors: Iterable[_Stored]) -> list[Stretch[_Stored]]:
    """Tensors that lie on neighbouring pages together, by file and offset."""
    together: list[list[_Stored]] = []
    ends: list[int] = []
    for tensor in sorted(tensors, key=lambda one: (one.file_index, one.offset_bytes)):
        start = tensor.offset_bytes // PAGE_BYTES * PAGE_BYTES
        end = -(-(tensor.offset_bytes + tensor.size_bytes) // PAGE_BYTES) * PAGE_BYTES
        if together and together[-1][0].file_index == tensor.file_index and start <= ends[-1]:
            together[-1].append(tensor)
            ends[-1] = max(end, ends[-1])
        else:
            together.append([tensor])
            ends.append(end)
    return [
        Stretch(
            file_index=part[0].file_index,
            start_bytes=part[0].offset_bytes // PAGE_BYTES * PAGE_BYTES,
            end_bytes=end,
            tensors=tuple(part),
        )
        for part, end in zip(together, ends, strict=True)
    ]


def is_read_by_row(tensor: TensorSpec, tensors: Iterable[TensorSpec]) -> bool:
    """Whether only some rows are read for a pass: the token table, unless it is the output matrix too."""
    return tensor.name == TOKEN_TABLE and any(one.name == "output.weight" for one in tensors)


def widened_bytes(tensor: TensorSpec) -> int:
    """Of its weights as Q8_0, before they are rewritten."""
    return tensor.elements // 32 * 34


def dequantized_bytes(tensor: TensorSpec) -> int:
    """What a tensor takes as BF16, in pages of its own."""
    return -(-2 * tensor.elements // PAGE_BYTES) * PAGE_BYTES


def streamed_bytes(tensors: Iterable[TensorSpec], names: Iterable[str]) -> int:
    """What a pass reads of the tensors with these names."""
    wanted = set(names)
    return sum(part.size_bytes for one in tensors if one.name in wanted for part in stretches([one]))


def ring_bytes(streamed: Sequence[TensorSpec]) -> int:
    """The smallest ring in which reading need not wait for computing: three of the largest tensors."""
    sizes = [part.size_bytes for one in streamed for part in stretches([one])]
    return min(_LEAST_SLOTS * max(sizes, default=0), sum(sizes))
