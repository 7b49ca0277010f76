"""Tensors of safetensors files, each read when transformers' loader asks for it: past the page cache, into
memory of our own, so that while loading no more lies in RAM than what has been loaded.

from_pretrained maps the files instead, and where it converts them their pages stay beside the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from memfit.engines.transformers.stored_reading import read_packed, read_unpacked
from memfit.hardware.direct_file import DirectFile, StreamError
from memfit.hardware.disk_speed import own_memory
from memfit.headers.safetensors import Checkpoint, SafetensorsTensor
from memfit.headers.stored_weights import QuantizedTensor
from memfit.memory.packed_weights import form_of, packed_bytes
from memfit.units import KIB

__all__ = ["DTYPES", "TYPES", "LazyTensor", "LazyWeight", "lazy_tensors", "read_tensor"]

_PAGE = 4 * KIB
_SMALL_BYTES = 256 * KIB  # below, a mapping for each would only cost pages

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}
TYPES = {dtype: name for name, dtype in DTYPES.items()}


class LazyTensor:
    """What transformers takes for a slice of a file: `tensor[...]` reads it."""

    def __init__(
        self, file: DirectFile, tensor: SafetensorsTensor, before: Callable[[SafetensorsTensor], None]
    ) -> None:
        self._file, self._tensor, self._before = file, tensor, before

    def __getitem__(self, _: Any) -> torch.Tensor:
        self._before(self._tensor)
        return read_tensor(self._file, self._tensor)

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return self._tensor.type


class LazyWeight:
    """The same of a weight that several tensors of the files stand for."""

    def __init__(
        self, parts: Mapping[str, LazyTensor], tensor: QuantizedTensor, *, packed: bool, dtype: torch.dtype
    ) -> None:
        self._parts, self._tensor, self._packed, self._dtype = parts, tensor, packed, dtype

    def __getitem__(self, _: Any) -> torch.Tensor:
        parts = {name: one[...] for name, one in self._parts.items()}
        if self._packed:
            return read_packed(self._tensor, parts)
        return read_unpacked(self._tensor, parts, self._dtype)

    def get_shape(self) -> list[int]:
        return [packed_bytes(self._tensor.stored)] if self._packed else list(self._tensor.shape)

    def get_dtype(self) -> str:
        return "U8" if self._packed else self._tensor.type


def lazy_tensors(
    checkpoint: Checkpoint,
    before: Callable[[SafetensorsTensor], None],
    *,
    dtype: torch.dtype,
    keeps_packed: bool,
) -> Mapping[str, LazyTensor | LazyWeight]:
    """All tensors of a checkpoint by name; `before` is called before each one is read. Quantized weights
    stay packed if `keeps_packed` and a kernel computes on them, or are unpacked to `dtype`.

    Raises:
        StreamError: a file cannot be opened.
    """
    try:
        files = [DirectFile(path) for path in checkpoint.paths]
    except OSError as error:
        raise StreamError(f"cannot read {error.filename}: {error.strerror}") from None

    def lazy(one: SafetensorsTensor) -> LazyTensor:
        return LazyTensor(files[one.file_index], one, before)

    found: dict[str, LazyTensor | LazyWeight] = {}
    for one in checkpoint.tensors:
        if isinstance(one, QuantizedTensor):
            packed = keeps_packed and form_of([one.stored]) is not None
            parts = {name: lazy(part) for name, part in one.stored.parts.items()}
            found[one.name] = LazyWeight(parts, one, packed=packed, dtype=dtype)
        else:
            found[one.name] = lazy(one)
    return found


def read_tensor(file: DirectFile, tensor: SafetensorsTensor) -> torch.Tensor:
    """Raises StreamError where the file cannot be read, or is no longer what it was."""
    dtype = DTYPES[tensor.type]
    if not tensor.size_bytes:
        return torch.empty(tensor.shape, dtype=dtype)
    start = tensor.offset_bytes // _PAGE * _PAGE
    skipped = tensor.offset_bytes - start
    memory = own_memory(-(-(skipped + tensor.size_bytes) // _PAGE) * _PAGE)
    file.read(memoryview(memory), start)
    found = torch.frombuffer(memory, dtype=dtype, count=tensor.elements, offset=skipped)
    found = found.view(tensor.shape)
    return found.clone() if tensor.size_bytes < _SMALL_BYTES else found
