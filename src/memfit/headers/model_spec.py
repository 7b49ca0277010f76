"""ModelSpec: the facts in a model's header, which every plan starts from. Weights are never read for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MetadataValue", "ModelSpec", "SkippedArray", "TensorSpec"]


@dataclass(frozen=True, kw_only=True)
class SkippedArray:
    """An array in the metadata whose elements were passed over unread."""

    element_type: str  # GGUF's name: "string", "float32", …
    length: int  # elements


# Short arrays of numbers (per-layer head counts, say) are read; long ones and strings are skipped.
MetadataValue = str | int | float | bool | tuple[int | float | bool, ...] | SkippedArray


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]  # elements per dimension, the contiguous one first (GGUF's order)
    type: str  # GGML's name: "F32", "Q4_K", …
    size_bytes: int
    offset_bytes: int  # from the start of its own file
    file_index: int  # which file of a split model, from 0

    @property
    def elements(self) -> int:
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as its header describes it."""

    source: str  # as the user named it
    paths: tuple[Path, ...]  # every file of the model, in shard order
    file_bytes: int  # all files together
    data_offset_bytes: tuple[int, ...]  # per file: where tensor data begins
    architecture: str  # general.architecture, such as "llama"
    name: str
    quantization: str  # llama.cpp's name of general.file_type: "Q4_K_M"; else of most bytes' type
    n_params: int  # elements of all tensors
    context_length: int  # the longest context it was trained for, in tokens
    vocabulary: int  # tokens
    metadata: Mapping[str, MetadataValue] = field(repr=False)
    tensors: tuple[TensorSpec, ...] = field(repr=False)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, without padding between them."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def architecture_value(self, key: str) -> MetadataValue | None:
        """`{architecture}.{key}` of the metadata, such as `block_count`; None where absent."""
        return self.metadata.get(f"{self.architecture}.{key}")
