"""Reads the headers of safetensors files, and the index of a checkpoint in several files.

It refuses what upstream's own reader (safetensors/src/tensor.rs, 0.8) refuses, never reads tensor
data, and does not know what the tensors are for. Layout:

    u64 length of the header, little-endian · the header, JSON · the tensors, without gaps
    header  {"name": {"dtype": "BF16", "shape": […], "data_offsets": [begin, end]}, …, "__metadata__": {…}}
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from memfit.errors import HeaderError, ModelError, ModelNotFoundError, UsageError
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.model_spec import StoredTensor
from memfit.headers.regular_file import require_file
from memfit.strict_json import parse_json, shown
from memfit.units import MIB

__all__ = [
    "Checkpoint",
    "SafetensorsHeader",
    "SafetensorsTensor",
    "find_weights",
    "read_checkpoint",
    "read_safetensors_header",
    "read_weight_map",
    "require_safetensors",
]

_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER_BYTES = 100_000_000  # upstream's limit
_LARGEST_INDEX_BYTES = 64 * MIB  # no limit of the format; real ones stay below 10 MiB
_MOST_TENSORS = 1_000_000
_MOST_SHARDS = 10_000
_MOST_DIMENSIONS = 16
_LARGEST_COUNT = 2**63 - 1

# Upstream's names → bits of one element.
_DTYPE_BITS = {
    name: bits
    for bits, names in (
        (4, "F4"),
        (6, "F6_E2M3 F6_E3M2"),
        (8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
        (16, "I16 U16 F16 BF16"),
        (32, "I32 U32 F32"),
        (64, "C64 F64 I64 U64"),
    )
    for name in names.split()
}


class SafetensorsTensor(StoredTensor):
    """A tensor in torch's order: the contiguous dimension is the last of its shape."""


@dataclass(frozen=True, kw_only=True)
class SafetensorsHeader:
    """What one file's header says; the tensors come in the order in which they lie in the file."""

    path: Path
    file_bytes: int
    data_offset_bytes: int  # where tensor data begins
    metadata: Mapping[str, str] = field(repr=False)
    tensors: tuple[SafetensorsTensor, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole model in one or several files."""

    paths: tuple[Path, ...]  # in the order of their names
    file_bytes: int  # all files together
    tensors: tuple[SafetensorsTensor, ...] = field(repr=False)


def find_weights(config: Path) -> Checkpoint | None:
    """The safetensors beside a config.json; None where there are none.

    Raises:
        ModelError: they are damaged, or a part is missing.
    """
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path := config.with_name(name)).is_file():
            return read_checkpoint(path)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """All tensors of the model at `path`: one .safetensors file, or a model.safetensors.index.json.

    Raises:
        ModelNotFoundError: there is no such file, or a shard that the index names is missing.
        HeaderError: a header or the index is damaged, or they disagree.
        ModelError: a file cannot be opened or read.
    """
    if not path.name.endswith(".json"):
        header = read_safetensors_header(path)
        return Checkpoint(paths=(path,), file_bytes=header.file_bytes, tensors=header.tensors)
    weight_map = read_weight_map(path)
    shards = sorted(set(weight_map.values()))
    headers: list[SafetensorsHeader] = []
    for index, shard in enumerate(shards):
        try:
            header = read_safetensors_header(path.with_name(shard), file_index=index)
        except ModelNotFoundError:
            raise ModelNotFoundError(
                f"shard {index + 1} of {len(shards)} is missing: no such file: {path.with_name(shard)}"
            ) from None
        headers.append(header)
    _check_against_index(path, weight_map, dict(zip(shards, headers, strict=True)))
    return Checkpoint(
        paths=tuple(header.path for header in headers),
        file_bytes=sum(header.file_bytes for header in headers),
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
    )


def read_weight_map(path: Path) -> dict[str, str]:
    """`weight_map` of a model.safetensors.index.json: tensor → the file beside the index that holds it.

    Raises:
        ModelNotFoundError: there is no such file.
        HeaderError: it is damaged, or names a file elsewhere.
        ModelError: it cannot be opened or read.
    """
    index_bytes = require_file(path)
    if index_bytes > _LARGEST_INDEX_BYTES:
        raise HeaderError(path, "index", f"{index_bytes} bytes; at most {_LARGEST_INDEX_BYTES} are read")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    index = _parse(path, "index", content)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise HeaderError(path, "weight_map", "is missing or no object with tensors")
    if len(weight_map) > _MOST_TENSORS:
        raise HeaderError(path, "weight_map", f"{len(weight_map)} tensors; memfit reads {_MOST_TENSORS}")
    for name, shard in weight_map.items():
        if not _is_plain_file_name(shard):
            problem = f"got {shown(shard)}, needed the name of a .safetensors file in the same folder"
            raise HeaderError(path, f"weight_map {shown(name)}", problem)
    if len(set(weight_map.values())) > _MOST_SHARDS:
        raise HeaderError(path, "weight_map", f"names more than {_MOST_SHARDS} files")
    return weight_map


def read_safetensors_header(path: Path, *, file_index: int = 0) -> SafetensorsHeader:
    """Read one file's header; of a header-only file as well, whose data is a hole of the right size.

    Raises:
        ModelNotFoundError: there is no such file.
        HeaderError: it is not safetensors, is damaged or truncated.
        ModelError: it cannot be opened or read.
    """
    file_bytes = require_file(path)
    try:
        content = _read_json_bytes(path, file_bytes)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    entries = _parse(path, "header", content)
    if not isinstance(entries, dict):
        raise HeaderError(path, "header", f"got {shown(entries)}, needed an object")
    metadata = _check_metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > _MOST_TENSORS:
        raise HeaderError(path, "header", f"{len(entries)} tensors; memfit reads at most {_MOST_TENSORS}")
    data_offset = _LENGTH.size + len(content)
    tensors = [_read_entry(path, name, entry, data_offset, file_index) for name, entry in entries.items()]
    # A tensor without elements lies where the next one begins, and comes before it.
    tensors.sort(key=lambda tensor: (tensor.offset_bytes, tensor.size_bytes))
    _check_places(path, tensors, data_offset, file_bytes)
    return SafetensorsHeader(
        path=path,
        file_bytes=file_bytes,
        data_offset_bytes=data_offset,
        metadata=metadata,
        tensors=tuple(tensors),
    )


def _read_json_bytes(path: Path, file_bytes: int) -> bytes:
    if file_bytes == 0:
        raise HeaderError(path, "length", "the file is empty; download it again")
    with path.open("rb") as file:
        require_safetensors(path, file.read(HEAD_BYTES))
        file.seek(0)
        if file_bytes < _LENGTH.size:
            raise HeaderError(path, "length", f"truncated: the file has {file_bytes} bytes, needed 8 or more")
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _LARGEST_HEADER_BYTES:
            size = f"a header of {length} bytes, at most {_LARGEST_HEADER_BYTES} are possible"
            problem = f"{size}; this is not a safetensors file, or it is damaged"
            raise HeaderError(path, "length", problem)
        if (end := _LENGTH.size + length) > file_bytes:
            problem = f"truncated: the header ends at {end}, the file at {file_bytes}; download it again"
            raise HeaderError(path, "length", problem)
        content = file.read(length)
    if len(content) != length:
        raise HeaderError(path, "header", "the file became shorter while it was being read")
    if not content.startswith(b"{"):  # upstream's rule; spaces may only follow
        raise HeaderError(path, "header", "does not begin with {")
    return content


def require_safetensors(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes are another kind of file's; `head` as `impostor` takes it.

    Raises:
        HeaderError: says what it is.
    """
    if head[8:9] != b"{" and (found := impostor(head)):
        raise HeaderError(path, "content", f"this is not a safetensors file but {found}")


def _parse(path: Path, part: str, content: bytes) -> Any:
    try:
        return parse_json(content, "the JSON")
    except UsageError as error:
        found = None if content.lstrip().startswith(b"{") else impostor(content[:HEAD_BYTES])
        if found:
            raise HeaderError(path, part, f"this is no JSON but {found}") from None
        raise HeaderError(path, part, str(error)) from None


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(path, "__metadata__", "is no object of texts")
    return metadata


def _read_entry(path: Path, name: str, entry: Any, data_offset: int, file_index: int) -> SafetensorsTensor:
    field_name = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(path, field_name, "needs exactly dtype, shape and data_offsets")
    bits = _DTYPE_BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise HeaderError(path, field_name, f"unknown dtype {shown(entry['dtype'])}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise HeaderError(path, field_name, f"shape: needed at most {_MOST_DIMENSIONS} whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(path, field_name, "data_offsets: needed a begin and an end not before it")
    elements = prod(shape)
    if elements > _LARGEST_COUNT:
        raise HeaderError(path, field_name, "the shape holds more than 2^63 - 1 elements")
    size, rest = divmod(elements * bits, 8)
    if rest:
        raise HeaderError(path, field_name, f"{elements} elements of {bits} bits do not fill whole bytes")
    if (span := offsets[1] - offsets[0]) != size:
        raise HeaderError(path, field_name, f"its offsets span {span} bytes, its shape needs {size}")
    return SafetensorsTensor(
        name=name,
        shape=tuple(shape),
        type=entry["dtype"],
        size_bytes=size,
        offset_bytes=data_offset + offsets[0],
        file_index=file_index,
    )


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _LARGEST_COUNT for value in values
    )


def _check_places(path: Path, tensors: list[SafetensorsTensor], data_offset: int, file_bytes: int) -> None:
    """Each tensor begins where the one before ends, and the last ends with the file."""
    expected = data_offset
    for tensor in tensors:
        if tensor.offset_bytes != expected:
            begin, needed = tensor.offset_bytes - data_offset, expected - data_offset
            rule = "tensors may neither overlap nor leave gaps"
            problem = f"begins at data offset {begin}, expected {needed}: {rule}"
            raise HeaderError(path, f"tensor {shown(tensor.name)}", problem)
        expected += tensor.size_bytes
    if expected > file_bytes:
        problem = f"truncated: needs bytes to {expected}, the file ends at {file_bytes}; download it again"
        raise HeaderError(path, "tensors", problem)
    if expected < file_bytes:
        raise HeaderError(path, "tensors", f"end at byte {expected}, the file only at {file_bytes}")


def _is_plain_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name.isprintable()
        and not any(part in name for part in ("/", "\\", "..", ":"))
    )


def _check_against_index(
    path: Path, weight_map: dict[str, str], headers: dict[str, SafetensorsHeader]
) -> None:
    held = {shard: {tensor.name for tensor in header.tensors} for shard, header in headers.items()}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            raise HeaderError(path, f"weight_map {shown(name)}", f"{shard} does not hold this tensor")
    for shard, names in held.items():
        for name in names:
            if weight_map.get(name) != shard:
                problem = f"{shard} holds it, but the index does not say so"
                raise HeaderError(path, f"weight_map {shown(name)}", problem)
