"""Safetensors headers and indexes: what is read, and every way to be refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import HeaderError, MemfitError, ModelError, ModelNotFoundError
from memfit.headers.safetensors import read_checkpoint, read_safetensors_header, read_weight_map

_TWO = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
}


def _write(path: Path, header: Any, data_bytes: int) -> Path:
    """A header-only file: a real header, and a hole of the data's size behind it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + data_bytes)
    return path


def _refused(path: Path, field: str, words: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_safetensors_header(path)
    assert caught.value.path == path
    assert field in caught.value.field
    assert words in str(caught.value)


def test_tensors_come_with_shape_type_bytes_and_place(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.safetensors", {"__metadata__": {"format": "pt"}, **_TWO}, 16)
    header = read_safetensors_header(path)
    start = header.data_offset_bytes
    assert header.metadata == {"format": "pt"}
    assert header.file_bytes == path.stat().st_size == start + 16
    first, second = header.tensors
    assert (first.name, first.shape, first.type, first.elements) == ("a", (2, 3), "BF16", 6)
    assert (first.size_bytes, first.offset_bytes) == (12, start)
    assert (second.shape, second.elements, second.size_bytes) == ((), 1, 4)
    assert second.offset_bytes == start + 12


def test_tensors_come_in_the_order_in_which_they_lie(tmp_path: Path) -> None:
    entries = {
        "late": {"dtype": "I64", "shape": [1], "data_offsets": [4, 12]},
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [4, 4]},
        "early": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]},
    }
    header = read_safetensors_header(_write(tmp_path / "m.safetensors", entries, 12))
    assert [tensor.name for tensor in header.tensors] == ["early", "empty", "late"]


def test_a_sparse_stand_in_of_a_large_model_is_read(tmp_path: Path) -> None:
    size = 2 * 10**12
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = read_safetensors_header(_write(tmp_path / "m.safetensors", {"a": entry}, size))
    assert header.tensors[0].size_bytes == size


def test_spaces_may_follow_the_header(tmp_path: Path) -> None:
    content = json.dumps(_TWO).encode() + b"     "
    assert len(read_safetensors_header(_write(tmp_path / "m.safetensors", content, 16)).tensors) == 2


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        (b"", "length", "empty"),
        (b"\x01\x02", "length", "truncated"),
        (b"PK\x03\x04" + b"\xff" * 60, "content", "not a safetensors file"),
        (struct.pack("<Q", 100_000_001) + b"{}", "length", "at most 100000000"),
        (struct.pack("<Q", 50) + b"{}", "length", "truncated: the header ends at 58"),
        (struct.pack("<Q", 0), "header", "does not begin with {"),
        (struct.pack("<Q", 4) + b" {} ", "header", "does not begin with {"),
        (struct.pack("<Q", 2) + b"{]", "header", "cannot read the JSON"),
        (struct.pack("<Q", 3) + b'{"\xff', "header", "not UTF-8"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, field: str, words: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    _refused(path, field, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "F12"}, "unknown dtype"),
        ({"dtype": 4}, "unknown dtype"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"shape": [2, -3]}, "shape"),
        ({"shape": [2.0, 3]}, "shape"),
        ({"shape": [True, 6]}, "shape"),
        ({"shape": "23"}, "shape"),
        ({"shape": [1] * 17}, "shape"),
        ({"shape": [2**62, 2**62]}, "more than 2^63"),
        ({"shape": [2, 4]}, "its offsets span 12 bytes, its shape needs 16"),
        ({"dtype": "F4", "shape": [3]}, "whole bytes"),
        ({"data_offsets": [12, 0]}, "data_offsets"),
        ({"data_offsets": [-12, 0]}, "data_offsets"),
        ({"data_offsets": [0]}, "data_offsets"),
        ({"data_offsets": [0, 10**30]}, "data_offsets"),
        ({"data_offsets": None}, "data_offsets"),
        ({"extra": 1}, "exactly"),
    ],
)
def test_entries_that_make_no_sense(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    header = {**_TWO, "a": {**_TWO["a"], **change}}
    _refused(_write(tmp_path / "m.safetensors", header, 16), 'tensor "a"', words)


def test_an_entry_that_lacks_a_field(tmp_path: Path) -> None:
    for entry in ({"dtype": "F32", "shape": [1]}, [], 7, None):
        _refused(_write(tmp_path / "m.safetensors", {"a": entry}, 4), 'tensor "a"', "needs exactly")


@pytest.mark.parametrize(
    ("offsets", "data_bytes", "words"),
    [
        ([13, 17], 17, "begins at data offset 13, expected 12"),  # a gap
        ([11, 15], 16, "begins at data offset 11, expected 12"),  # an overlap
        ([12, 16], 15, "truncated"),
        ([12, 16], 17, "end at byte"),
    ],
)
def test_tensors_fill_the_file_without_gaps(
    tmp_path: Path, offsets: list[int], data_bytes: int, words: str
) -> None:
    header = {**_TWO, "b": {**_TWO["b"], "data_offsets": offsets}}
    _refused(_write(tmp_path / "m.safetensors", header, data_bytes), "tensor", words)


def test_names_occur_once(tmp_path: Path) -> None:
    entry = json.dumps(_TWO["b"] | {"data_offsets": [0, 4]})
    content = f'{{"a": {entry}, "a": {entry}}}'.encode()
    _refused(_write(tmp_path / "m.safetensors", content, 4), "header", "twice")


def test_metadata_holds_texts_only(tmp_path: Path) -> None:
    for metadata in ({"format": 1}, ["pt"], None):
        _refused(
            _write(tmp_path / "m.safetensors", {"__metadata__": metadata}, 0), "__metadata__", "no object"
        )


def test_deep_nesting_and_long_numbers_are_refused(tmp_path: Path) -> None:
    for content in (b'{"a":' + b"[" * 200_000, b'{"a":' + b"9" * 5000 + b"}"):
        _refused(_write(tmp_path / "m.safetensors", content, 0), "header", "cannot read the JSON")


@given(index=st.integers(0, 200), byte=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(tmp_path_factory: Any, index: int, byte: int) -> None:
    path = _write(tmp_path_factory.mktemp("mutant") / "m.safetensors", _TWO, 16)
    content = bytearray(path.read_bytes())
    content[index % len(content)] = byte
    path.write_bytes(content)
    try:
        read_safetensors_header(path)
    except MemfitError as error:
        assert str(path) in str(error)


def test_places_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="directory"):
        read_checkpoint(tmp_path)


def _sharded(folder: Path, weight_map: Any) -> Path:
    one = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    two = {"b": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}}
    _write(folder / "model-00001-of-00002.safetensors", one, 4)
    _write(folder / "model-00002-of-00002.safetensors", two, 6)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 10}, "weight_map": weight_map}))
    return path


_MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_an_index_leads_to_all_shards(tmp_path: Path) -> None:
    path = _sharded(tmp_path, _MAP)
    checkpoint = read_checkpoint(path)
    assert [shard.name for shard in checkpoint.paths] == sorted(_MAP.values())
    assert [(tensor.name, tensor.file_index) for tensor in checkpoint.tensors] == [("a", 0), ("b", 1)]
    assert checkpoint.file_bytes == sum(shard.stat().st_size for shard in checkpoint.paths)
    assert read_weight_map(path) == _MAP


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = _sharded(tmp_path, _MAP)
    (tmp_path / _MAP["b"]).unlink()
    with pytest.raises(ModelNotFoundError, match=r"shard 2 of 2 is missing.*00002-of-00002"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({**_MAP, "c": _MAP["a"]}, "does not hold this tensor"),
        ({"a": _MAP["b"], "b": _MAP["a"]}, "does not hold this tensor"),
        ({"a": _MAP["a"], "x": _MAP["b"]}, "does not hold this tensor"),
        ({}, "is missing or no object"),
        (None, "is missing or no object"),
        (["a"], "is missing or no object"),
        ({"a": "../model.safetensors"}, "same folder"),
        ({"a": "/etc/passwd"}, "same folder"),
        ({"a": "sub/model.safetensors"}, "same folder"),
        ({"a": "sub\\model.safetensors"}, "same folder"),
        ({"a": "C:model.safetensors"}, "same folder"),
        ({"a": "..safetensors"}, "same folder"),
        ({"a": "model\0.safetensors"}, "same folder"),
        ({"a": "pytorch_model.bin"}, "same folder"),
        ({"a": 5}, "same folder"),
    ],
)
def test_an_index_that_makes_no_sense(tmp_path: Path, weight_map: Any, words: str) -> None:
    path = _sharded(tmp_path, weight_map)
    with pytest.raises(HeaderError, match="weight_map") as caught:
        read_checkpoint(path)
    assert caught.value.path == path
    assert words in str(caught.value)


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    path = _sharded(tmp_path, _MAP)
    two = {
        "b": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
        "c": {"dtype": "U8", "shape": [1], "data_offsets": [6, 7]},
    }
    _write(tmp_path / _MAP["b"], two, 7)
    with pytest.raises(HeaderError, match="the index does not say so"):
        read_checkpoint(path)


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    for content in (b"", b"[1]", b"{", b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'):
        path.write_bytes(content)
        with pytest.raises(HeaderError):
            read_checkpoint(path)
