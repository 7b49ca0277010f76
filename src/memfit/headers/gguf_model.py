"""Reads a whole GGUF model into a ModelSpec: finds all shards, and checks them against each other.

Understands the few metadata keys that every plan needs; hands on the others as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from memfit.errors import HeaderError, ModelNotFoundError
from memfit.headers.gguf import MOST_TENSORS, GgufHeader, read_header
from memfit.headers.model_spec import MetadataValue, ModelSpec, SkippedArray, TensorSpec, main_type
from memfit.headers.purpose import companion
from memfit.headers.tensor_types import FILE_TYPES

__all__ = ["read_model"]

# llama.cpp's pattern; the numbers count from 1, `split.no` from 0.
_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)

_LARGEST_COUNT = 2**32 - 1  # the engine holds counts of tokens in 32 bits


def read_model(path: str | Path, source: str | None = None) -> ModelSpec:
    """The facts about the GGUF model at `path`; of a split model, any shard will do.

    Reads headers only: a few milliseconds to some tens, whatever the model's size. `source` is what
    the user called it, by default the path.

    Raises:
        ModelNotFoundError: the file, or another shard of the model, is missing.
        HeaderError: a file is not GGUF, is damaged, or is no model by itself.
        ModelError: a file cannot be opened or read.
    """
    path = Path(path)
    headers = _read_shards(read_header(path))
    first = headers[0]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    architecture = _architecture(first)
    if not tensors:
        raise HeaderError(first.path, "tensors", "the file holds none; it is a vocabulary at most")
    return ModelSpec(
        source=str(path) if source is None else source,
        paths=tuple(header.path for header in headers),
        file_bytes=sum(header.file_bytes for header in headers),
        data_offset_bytes=tuple(header.data_offset_bytes for header in headers),
        architecture=architecture,
        name=_name(first),
        quantization=_quantization(first.metadata, tensors),
        n_params=sum(tensor.elements for tensor in tensors),
        context_length=_context_length(first, architecture),
        vocabulary=_vocabulary(first.metadata, architecture),
        metadata=first.metadata,
        tensors=tensors,
        n_experts=_count(first.metadata, f"{architecture}.expert_count"),
        n_experts_used=_count(first.metadata, f"{architecture}.expert_used_count"),
    )


def _read_shards(given: GgufHeader) -> tuple[GgufHeader, ...]:
    """Every file of the model in order, checked against each other."""
    if given.metadata.get("split.count", 0) in (0, 1):
        return (given,)
    paths = _shard_paths(given)
    headers: list[GgufHeader] = []
    names: set[str] = set()
    for index, path in enumerate(paths):
        try:
            header = read_header(path, file_index=index)
        except ModelNotFoundError:
            raise ModelNotFoundError(
                f"shard {index + 1} of {len(paths)} is missing: no such file: {path}"
            ) from None
        _check_value(header, "split.no", index)
        _check_value(header, "split.count", len(paths))
        for tensor in header.tensors:
            if tensor.name in names:
                raise HeaderError(path, f"tensor {tensor.name!r}", "is in another shard as well")
            names.add(tensor.name)
        if len(names) > MOST_TENSORS:
            raise HeaderError(path, "tensors", f"the shards hold more than {MOST_TENSORS}")
        headers.append(header)
    _check_value(headers[0], "split.tensors.count", len(names))
    return tuple(headers)


def _shard_paths(given: GgufHeader) -> list[Path]:
    """Every shard's path, by the name and the metadata of one, which must agree."""
    count = given.metadata["split.count"]
    match = _SHARD_NAME.fullmatch(given.path.name)
    paths = match and [
        given.path.with_name(f"{match[1]}-{number:05d}-of-{match[2]}.gguf")
        for number in range(1, int(match[2]) + 1)
    ]
    if not paths or len(paths) != count or given.path not in paths:
        problem = f"one of {count} shards must be named like model-00001-of-{count:05d}.gguf"
        raise HeaderError(given.path, "split.count", problem)
    return paths


def _check_value(header: GgufHeader, key: str, expected: int) -> None:
    value = header.metadata.get(key)
    if value != expected:
        found = "is missing" if value is None else f"is {value}"
        raise HeaderError(header.path, key, f"{found}, must be {expected}")


def _architecture(header: GgufHeader) -> str:
    if what := companion(header.metadata):
        problem = f"{what}: a companion file that goes with a model, not a model itself"
        raise HeaderError(header.path, "general.type", problem)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise HeaderError(header.path, "general.architecture", "is missing")
    return architecture


def _name(header: GgufHeader) -> str:
    name = header.metadata.get("general.name")
    return name if isinstance(name, str) and name else header.path.stem


def _quantization(metadata: dict[str, MetadataValue], tensors: tuple[TensorSpec, ...]) -> str:
    """By `general.file_type`; where that is absent or unknown, the type that most bytes have."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    return main_type(tensors)


def _context_length(header: GgufHeader, architecture: str) -> int:
    key = f"{architecture}.context_length"
    value = header.metadata.get(key)
    if value is None:
        raise HeaderError(header.path, key, "is missing")
    if type(value) is not int or not 0 < value <= _LARGEST_COUNT:
        raise HeaderError(header.path, key, "is not a positive number of tokens")
    return value


def _vocabulary(metadata: dict[str, MetadataValue], architecture: str) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, SkippedArray):
        return tokens.length
    return _count(metadata, f"{architecture}.vocab_size")


def _count(metadata: dict[str, MetadataValue], key: str) -> int:
    """0 where it is absent or absurd."""
    value = metadata.get(key, 0)
    return value if type(value) is int and 0 <= value <= _LARGEST_COUNT else 0
