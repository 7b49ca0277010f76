"""ModelSpec: the facts in a model's header, which every plan starts from, and the share of its experts that
a token uses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

__all__ = ["MetadataValue", "ModelSpec", "SkippedArray", "StoredTensor", "TensorSpec", "main_type"]


@dataclass(frozen=True, kw_only=True)
class SkippedArray:
    """An array in the metadata whose elements were passed over unread."""

    element_type: str  # GGUF's name: "string", "float32", …
    length: int  # elements


# Short arrays of numbers (per-layer head counts, say) are read; long ones and strings are skipped.
MetadataValue = str | int | float | bool | tuple[int | float | bool, ...] | SkippedArray

# Names of experts: "blk.3.ffn_up_exps.weight", "model.layers.3.mlp.experts.gate_up_proj"; no shared ones.
_ROUTED = re.compile(r"_(?:ch)?exps\.|\.experts\.")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, as the file's header describes it."""

    name: str
    shape: tuple[int, ...]  # elements per dimension, in the order of the file's format
    type: str  # upstream's name: "F32", "BF16", "Q4_K", …
    size_bytes: int
    offset_bytes: int  # from the start of its own file
    file_index: int  # which file of the model, from 0

    @property
    def elements(self) -> int:
        return prod(self.shape)


class TensorSpec(StoredTensor):
    """A tensor in GGUF's order: the contiguous dimension is the first of its shape."""


def main_type(tensors: Iterable[StoredTensor]) -> str:
    """The type that most bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as its header describes it."""

    source: str  # as the user named it
    paths: tuple[Path, ...]  # every file of the model, in shard order
    file_bytes: int  # all files together
    data_offset_bytes: tuple[int, ...]  # per file: where tensor data begins
    architecture: str  # general.architecture: "llama", for example
    name: str
    quantization: str  # llama.cpp's name of general.file_type: "Q4_K_M"; else of most bytes' type
    n_params: int  # elements of all tensors
    context_length: int  # the longest context it was trained for, in tokens
    vocabulary: int  # tokens
    metadata: Mapping[str, MetadataValue] = field(repr=False)
    tensors: tuple[TensorSpec, ...] = field(repr=False)
    n_experts: int = 0  # of a layer, those that tokens are routed to; 0: there are none
    n_experts_used: int = 0  # of them, by one token; 0: the header does not say

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, without padding between them."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def expert_share(self) -> float:
        """Of the routed experts, the share that one token is multiplied with; all where that is not known."""
        known = 0 < self.n_experts_used < self.n_experts
        return self.n_experts_used / self.n_experts if known else 1.0

    def active_share(self, tensor: str) -> float:
        """Of a tensor, the share that one token is multiplied with, by its name: GGUF's or transformers'."""
        return self.expert_share if _ROUTED.search(tensor) else 1.0

    def architecture_value(self, key: str) -> MetadataValue | None:
        """`{architecture}.{key}` of the metadata (of `block_count`, say); None where absent."""
        return self.metadata.get(f"{self.architecture}.{key}")
