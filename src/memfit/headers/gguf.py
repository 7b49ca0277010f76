"""Reads the header of one GGUF file (versions 2 and 3, little-endian).

It refuses what llama.cpp's own reader (ggml/src/gguf.cpp) refuses, so that a model which can be
planned can also be loaded; likewise a file whose tensors reach past its end. It knows neither split
models nor what the metadata means, and never reads tensor data. Layout, all integers little-endian:

    magic "GGUF" · u32 version · u64 tensors · u64 keys
    keys     string key · u32 type · value   (of an array: u32 element type · u64 length · elements)
    tensors  string name · u32 dimensions · u64 each · u32 type · u64 offset from the data's start
    padding to `general.alignment`
    data     of the tensors in the header's order, each padded likewise
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from memfit.errors import ModelError
from memfit.headers.bounded_reader import BoundedReader, Readable
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.model_spec import MetadataValue, SkippedArray, TensorSpec
from memfit.headers.regular_file import require_file
from memfit.headers.tensor_types import TENSOR_TYPES
from memfit.units import MIB

__all__ = ["MOST_TENSORS", "GgufHeader", "read_header", "read_open_header"]

_MAGIC = struct.Struct("4s")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<QQ")
_ARRAY_HEAD = struct.Struct("<IQ")

_STRING, _ARRAY = 8, 9
# number → (name, code in the struct module)
_SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}

# The engine refuses these keys, or aborts, when they have another type.
_REQUIRED_TYPES = {
    "general.alignment": "uint32",
    "general.architecture": "string",
    "general.file_type": "uint32",
    "split.count": "uint16",
    "split.no": "uint16",
    "split.tensors.count": "int32",
}

_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_LONGEST_NAME_BYTES = 63  # GGML_MAX_NAME less its closing NUL
_LONGEST_KEY_BYTES = 65_535  # the format's own limit
_MOST_ELEMENTS = 2**63 - 1

# No limit of the format, only far beyond every real model: they bound time and memory.
MOST_TENSORS = 65_536
_MOST_KEYS = 65_536
_LONGEST_STRING_BYTES = 16 * MIB
_LONGEST_KEPT_ARRAY = 1024  # elements; per-layer values, not vocabularies
_ELEMENT_BYTES = 40  # a tuple's pointer and the number it points to
_MOST_KEPT_BYTES = 64 * MIB


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What one file's header says."""

    path: Path
    file_bytes: int
    data_offset_bytes: int  # where tensor data begins
    metadata: dict[str, MetadataValue] = field(repr=False)
    tensors: tuple[TensorSpec, ...] = field(repr=False)


def read_header(path: Path, *, file_index: int = 0) -> GgufHeader:
    """Read one file's header. `file_index` is its place in a split model, noted in its tensors.

    Raises:
        ModelNotFoundError: there is no such file.
        HeaderError: it is not GGUF, is damaged or truncated, or the engine would refuse it.
        ModelError: it cannot be opened or read.
    """
    file_bytes = require_file(path)
    try:
        with path.open("rb") as file:
            return _read_file(BoundedReader(path, file, file_bytes), file_index)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def read_open_header(file: Readable, path: Path, file_bytes: int, *, window_bytes: int) -> GgufHeader:
    """The same of a file that is open already and may lie on a server; `path` is its name for errors.

    Asks for `window_bytes` at a time. Errors as `read_header`, and those of `file`.
    """
    return _read_file(BoundedReader(path, file, file_bytes, window_bytes=window_bytes), 0)


def _read_file(reader: BoundedReader, file_index: int) -> GgufHeader:
    _check_magic(reader)
    reader.field = "counts"
    tensor_count, key_count = reader.unpack(_COUNTS)
    if tensor_count > MOST_TENSORS:
        raise reader.error(f"{tensor_count} tensors; memfit reads at most {MOST_TENSORS}")
    if key_count > _MOST_KEYS:
        raise reader.error(f"{key_count} metadata keys; memfit reads at most {_MOST_KEYS}")
    metadata = _read_metadata(reader, key_count)
    alignment = _alignment(reader, metadata)
    entries = _read_tensor_entries(reader, tensor_count)
    data_offset = _round_up(reader.position, alignment)
    return GgufHeader(
        path=reader.path,
        file_bytes=reader.file_bytes,
        data_offset_bytes=data_offset,
        metadata=metadata,
        tensors=_place_tensors(reader, entries, data_offset, alignment, file_index),
    )


def _check_magic(reader: BoundedReader) -> None:
    reader.field = "magic"
    if reader.file_bytes == 0:
        raise reader.error("the file is empty; download it again")
    head = reader.peek(HEAD_BYTES)
    if not head.startswith(b"GGUF") and not (len(head) < 4 and b"GGUF".startswith(head)):
        found = impostor(head)
        raise reader.error("this is not a GGUF file" + (f" but {found}" if found else ""))
    reader.unpack(_MAGIC)
    reader.field = "version"
    (version,) = reader.unpack(_U32)
    if version & 0xFFFF == 0 and version:
        raise reader.error("a big-endian GGUF file; memfit reads little-endian ones only")
    if version not in (2, 3):
        raise reader.error(f"GGUF version {version}; memfit reads versions 2 and 3")


def _read_metadata(reader: BoundedReader, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    kept_bytes = 0
    for index in range(count):
        reader.field = f"metadata key {index}"
        key = reader.text(largest_bytes=_LONGEST_KEY_BYTES)
        if not key:
            raise reader.error("the key is empty")
        reader.field = f"metadata {_shown(key)}"
        if key in metadata:
            raise reader.error("the key occurs twice")
        type_name, value = _read_value(reader)
        required = _REQUIRED_TYPES.get(key, type_name)
        if type_name != required:
            raise reader.error(f"is {type_name}, must be {required}")
        metadata[key] = value
        kept_bytes += sys.getsizeof(key) + _held_bytes(value)
        if kept_bytes > _MOST_KEPT_BYTES:
            raise reader.error(f"the metadata is larger than {_MOST_KEPT_BYTES} bytes")
    return metadata


def _read_value(reader: BoundedReader) -> tuple[str, MetadataValue]:
    """The next value, and GGUF's name of its type."""
    (number,) = reader.unpack(_U32)
    if number == _STRING:
        # A stray byte in a description must not keep a model from running: the engine takes it too.
        return "string", reader.text(largest_bytes=_LONGEST_STRING_BYTES, errors="replace")
    if number == _ARRAY:
        return _read_array(reader)
    if number not in _SCALARS:
        raise reader.error(f"unknown value type {number}")
    name, code = _SCALARS[number]
    return name, reader.unpack(struct.Struct(f"<{code}"))[0]


def _read_array(reader: BoundedReader) -> tuple[str, MetadataValue]:
    number, length = reader.unpack(_ARRAY_HEAD)
    if number == _STRING:
        reader.skip_strings(length)
        return "array of string", SkippedArray(element_type="string", length=length)
    if number not in _SCALARS:
        what = "nested arrays" if number == _ARRAY else f"unknown element type {number}"
        raise reader.error(f"{what} in an array")
    name, code = _SCALARS[number]
    if length <= _LONGEST_KEPT_ARRAY:
        return f"array of {name}", reader.unpack(struct.Struct(f"<{length}{code}"))
    reader.skip(length * struct.calcsize(f"<{code}"))
    return f"array of {name}", SkippedArray(element_type=name, length=length)


def _held_bytes(value: MetadataValue) -> int:
    """Roughly what a value takes in memory: text up to four times its bytes in the file."""
    if isinstance(value, tuple):
        return len(value) * _ELEMENT_BYTES
    return sys.getsizeof(value)


def _alignment(reader: BoundedReader, metadata: dict[str, MetadataValue]) -> int:
    reader.field = "metadata 'general.alignment'"
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # by _REQUIRED_TYPES
    if alignment == 0 or alignment & (alignment - 1):
        raise reader.error(f"{alignment} is not a power of two")
    return alignment


# name, shape, type number, offset from the data's start
_Entry = tuple[str, tuple[int, ...], int, int]


def _read_tensor_entries(reader: BoundedReader, count: int) -> list[_Entry]:
    entries: list[_Entry] = []
    names: set[str] = set()
    for index in range(count):
        reader.field = f"tensor {index}"
        name = reader.text(largest_bytes=_LONGEST_NAME_BYTES)
        if not name or "\0" in name:
            raise reader.error(f"the name {_shown(name)} is empty or holds a NUL")
        reader.field = f"tensor {_shown(name)}"
        if name in names:
            raise reader.error("the name occurs twice")
        names.add(name)
        (dimensions,) = reader.unpack(_U32)
        if dimensions > _MOST_DIMENSIONS:
            raise reader.error(f"{dimensions} dimensions; at most {_MOST_DIMENSIONS} are possible")
        shape = reader.unpack(struct.Struct(f"<{dimensions}Q"))
        (type_number,) = reader.unpack(_U32)
        (offset,) = reader.unpack(_U64)
        entries.append((name, shape, type_number, offset))
    return entries


def _place_tensors(
    reader: BoundedReader, entries: list[_Entry], data_offset: int, alignment: int, file_index: int
) -> tuple[TensorSpec, ...]:
    """Check each tensor, and that they follow each other without gaps up to the file's end."""
    tensors = []
    expected_offset = 0
    for name, shape, type_number, offset in entries:
        reader.field = f"tensor {_shown(name)}"
        kind, size = _type_and_size(reader, shape, type_number)
        if offset != expected_offset:
            raise reader.error(f"lies at data offset {offset}, expected {expected_offset}")
        start = data_offset + offset
        if start + size > reader.file_bytes:
            raise reader.error(
                f"truncated: needs bytes to {start + size}, the file ends at {reader.file_bytes}; "
                "download it again"
            )
        expected_offset += _round_up(size, alignment)
        tensors.append(
            TensorSpec(
                name=name, shape=shape, type=kind, size_bytes=size, offset_bytes=start, file_index=file_index
            )
        )
    return tuple(tensors)


def _type_and_size(reader: BoundedReader, shape: tuple[int, ...], type_number: int) -> tuple[str, int]:
    tensor_type = TENSOR_TYPES.get(type_number)
    if tensor_type is None:
        raise reader.error(f"unknown tensor type {type_number}")
    elements = prod(shape)
    if elements == 0:  # the engine's header reader lets it pass, but no architecture has such a tensor
        raise reader.error(f"the shape {shape} holds no elements")
    if elements > _MOST_ELEMENTS:
        raise reader.error(f"the shape {shape} holds more than 2^63 - 1 elements")
    row = shape[0] if shape else 1
    if row % tensor_type.block_elements:
        raise reader.error(
            f"rows of {row} elements are no multiple of {tensor_type.name}'s block "
            f"of {tensor_type.block_elements}"
        )
    return tensor_type.name, elements // tensor_type.block_elements * tensor_type.block_bytes


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _shown(name: str) -> str:
    """A name from the file for an error message: short, and without control characters."""
    return repr(name if len(name) <= 80 else name[:80] + "…")
