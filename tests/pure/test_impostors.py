"""Files that are called models and are none: what is said of them, here and on a server."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from gguf_files import tiny_model

from hub_server import HubServer
from memfit.errors import HeaderError, ModelError
from memfit.headers import read_model
from memfit.headers.hf_config import read_config
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.safetensors import read_checkpoint, read_safetensors_header
from memfit.hub.remote_model import find_paths

_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 4215398912\n"
)
_PAGE = b"<!DOCTYPE html>\n<html class=''>\n<head><title>org/repo at main</title></head>" + b"<p>x" * 200
_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
_SAFETENSORS = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(4)


def _zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"content")
    return out.getvalue()


def _tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return out.getvalue()


_KINDS = {
    "pointer": (_POINTER, "a Git LFS pointer to 3.93 GiB that are not here: run git lfs pull in its folder"),
    "page": (_PAGE, "a web page (HTML) in its place: download the file itself, whose address has /resolve/"),
    "small-page": (b"\n <!-- x -->\n<html>not here</html>", "a web page (HTML)"),
    "error": (
        b'{"error":"Repository not found"}',
        'JSON, perhaps what a server said instead of the file ({"err',
    ),
    "denied": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "XML, perhaps what a server",
    ),
    "words": (b"Entry not found", "text, perhaps what a server said instead of the file (Entry not found)"),
    "cut-letter": (b"x" * (HEAD_BYTES - 1) + "é".encode(), "text, perhaps"),
    "gzip": (gzip.compress(tiny_model().encode()), "a gzip archive: unpack it with gunzip"),
    "xz": (lzma.compress(b"x"), "an xz archive"),
    "zip": (_zipped("model.gguf"), "a zip archive: unpack it with unzip"),
    "tar": (_tarred(), "a tar archive"),
    "torch": (_zipped("archive/data.pkl"), "a PyTorch pickle"),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
    "old": (struct.pack("<I", 0x67676A74) + bytes(99), "a GGML file from before GGUF"),
    "zeros": (bytes(4096), "only zeros at its start: a download that did not finish"),
}
_kinds = pytest.mark.parametrize(("content", "words"), _KINDS.values(), ids=_KINDS)


@_kinds
def test_what_is_called_a_gguf_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        read_model(path)
    assert f"cannot read {path}: magic: this is not a GGUF file but {words}" in str(caught.value)


@_kinds
def test_what_is_called_safetensors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError) as caught:
        read_safetensors_header(path)
    assert f"this is not a safetensors file but {words}" in str(caught.value)


@pytest.mark.parametrize("kind", ["pointer", "page", "error", "gzip"])
def test_what_a_server_calls_a_model(hub: HubServer, kind: str) -> None:
    content, words = _KINDS[kind]
    address = hub.add_file("org/model.gguf", content)
    with pytest.raises(ModelError) as caught:
        find_paths(address)
    assert f"not a GGUF file but {words}" in str(caught.value)
    hub.add_repo("org/gguf", {"model-Q4_0.gguf": content})
    with pytest.raises(ModelError) as caught:
        find_paths("hf:org/gguf")
    assert f"cannot read model-Q4_0.gguf: magic: this is not a GGUF file but {words}" in str(caught.value)
    hub.add_repo("org/torch", {"config.json": b"{}", "model.safetensors": content})
    with pytest.raises(ModelError) as caught:
        find_paths("hf:org/torch")
    assert f"this is not a safetensors file but {words}" in str(caught.value)


def test_each_under_the_others_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(_SAFETENSORS)
    with pytest.raises(HeaderError, match="not a GGUF file but a safetensors file: name its folder"):
        read_model(tmp_path / "a.gguf")
    tiny_model().write(tmp_path / "a.safetensors")
    with pytest.raises(
        HeaderError, match=r"not a safetensors file but a GGUF file: give it a name .* \.gguf"
    ):
        read_safetensors_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_the_json_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_POINTER)
    with pytest.raises(HeaderError, match=r"this is no JSON but a Git LFS pointer to 3\.93 GiB"):
        (read_config if name == "config.json" else read_checkpoint)(path)


def test_a_download_that_was_cut_off(tmp_path: Path) -> None:
    whole = tiny_model().encode()
    path = tmp_path / "model.gguf"
    for length in (2, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(HeaderError, match=r"truncated: .*; download it again"):
            read_model(path)
    for length in (9, len(_SAFETENSORS) - 1):
        (tmp_path / "m.safetensors").write_bytes(_SAFETENSORS[:length])
        with pytest.raises(HeaderError, match=r"truncated: .*; download it again"):
            read_safetensors_header(tmp_path / "m.safetensors")


def test_what_is_unknown_is_not_guessed() -> None:
    assert impostor(b"") is None
    assert impostor(b"\x7fELF" + bytes(99)) is None
    assert impostor(bytes(8)) is None
    assert impostor(b"version https://example.org\n" + b"\xff" * 99) is None
