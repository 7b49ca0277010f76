"""Builds small GGUF files for tests, byte by byte, so that they can also be wrong on purpose.

Written from the format's description, not with memfit's reader or anybody's writer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL = range(8)
STRING, ARRAY, UINT64, INT64, FLOAT64 = range(8, 13)
_CODES = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))

F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12
# type → elements and bytes of a block
_BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), Q4_K: (256, 144)}


@dataclass(frozen=True)
class Value:
    """One metadata value: `type` is a number of the format; an array has an `element` type too."""

    type: int
    value: object
    element: int | None = None

    def encode(self) -> bytes:
        if self.type != ARRAY:
            return struct.pack("<I", self.type) + _encode_scalar(self.type, self.value)
        assert isinstance(self.value, Sequence) and self.element is not None
        elements = b"".join(_encode_scalar(self.element, each) for each in self.value)
        return struct.pack("<IIQ", ARRAY, self.element, len(self.value)) + elements


@dataclass(frozen=True)
class Tensor:
    """One tensor; `offset` and `size_bytes` come out right unless given."""

    name: str | bytes
    shape: tuple[int, ...]
    type: int = F32
    offset: int | None = None

    @property
    def size_bytes(self) -> int:
        elements = 1
        for dimension in self.shape:
            elements *= dimension
        block, block_bytes = _BLOCKS.get(self.type, (1, 4))
        return elements // block * block_bytes


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's content. Counts are those of the lists unless given."""

    metadata: Mapping[str | bytes, Value | bytes] | Sequence[tuple[str | bytes, Value | bytes]]
    tensors: Sequence[Tensor] = ()
    version: int = 3
    alignment: int = 32
    magic: bytes = b"GGUF"
    tensor_count: int | None = None
    key_count: int | None = None
    data: bytes | None = field(default=None, repr=False)  # zeros where absent

    def encode(self) -> bytes:
        items = self.metadata.items() if isinstance(self.metadata, Mapping) else self.metadata
        keys = [
            encode_string(key) + (value.encode() if isinstance(value, Value) else value)
            for key, value in items
        ]
        entries, data_bytes = [], 0
        for tensor in self.tensors:
            offset = data_bytes if tensor.offset is None else tensor.offset
            entries.append(
                encode_string(tensor.name)
                + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
                + struct.pack("<IQ", tensor.type, offset)
            )
            data_bytes += _round_up(tensor.size_bytes, self.alignment)
        head = self.magic + struct.pack(
            "<IQQ",
            self.version,
            len(entries) if self.tensor_count is None else self.tensor_count,
            len(keys) if self.key_count is None else self.key_count,
        )
        head += b"".join(keys) + b"".join(entries)
        padding = bytes(_round_up(len(head), self.alignment) - len(head))
        return head + padding + (bytes(data_bytes) if self.data is None else self.data)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def encode_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def text(value: str | bytes) -> Value:
    return Value(STRING, value)


def number(value: int) -> Value:
    return Value(UINT32, value)


def tiny_metadata(**more: Value) -> dict[str | bytes, Value | bytes]:
    """The keys of a small llama; `more` adds or replaces keys, dots written as two underscores."""
    metadata: dict[str | bytes, Value | bytes] = {
        "general.architecture": text("llama"),
        "general.name": text("Tiny"),
        "general.file_type": number(7),
        "llama.block_count": number(2),
        "llama.context_length": number(512),
        "llama.embedding_length": number(64),
        "tokenizer.ggml.tokens": Value(ARRAY, ["a", "b", "c"], STRING),
    }
    metadata.update({key.replace("__", "."): value for key, value in more.items()})
    return metadata


def tiny_tensors() -> tuple[Tensor, ...]:
    """Three tensors of 64 x 3 Q8_0, 64 F32 and 64 x 64 F16: 204, 256 and 8192 bytes."""
    return (
        Tensor("token_embd.weight", (64, 3), Q8_0),
        Tensor("output_norm.weight", (64,), F32),
        Tensor("blk.0.attn_q.weight", (64, 64), F16),
    )


def tiny_model(**more: Value) -> GgufFile:
    """A small file that is right in every way; not one that the engine could run."""
    return GgufFile(tiny_metadata(**more), tiny_tensors())


def _encode_scalar(type_number: int, value: object) -> bytes:
    if type_number == STRING:
        assert isinstance(value, (str, bytes))
        return encode_string(value)
    return struct.pack(f"<{_CODES[type_number]}", value)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple if multiple else value
