"""Header-only files of remote models: the header is real, and a hole stands where the weights would be.

Planning and the engine's simulation need no more than a sparse file of the right length. Its folder's name
comes from the content's identity, so a header is fetched once. Its weights are zeros, so nothing may load it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from memfit.errors import ModelError
from memfit.hardware.folders import cache_folder, fresh_folder
from memfit.headers.gguf import read_open_header
from memfit.headers.impostors import HEAD_BYTES
from memfit.headers.safetensors import require_safetensors
from memfit.hub.http import RangeReader
from memfit.hub.remote_files import RemoteFile, RemoteModel
from memfit.hub.repository import how_to_access, token_headers
from memfit.units import KIB, MIB

__all__ = ["fetch_headers", "is_header_only"]

_PIECE_BYTES, _LARGEST_PIECE_BYTES = 128 * KIB, MIB  # only a first shard has a vocabulary
_LARGEST_JSON_BYTES = 100 * MIB  # of a safetensors header, as upstream has it, or an index
_SHARDS_AT_ONCE = 4


def fetch_headers(model: RemoteModel, say: Callable[[str], None] | None = None) -> tuple[Path, ...]:
    """The header-only files of a model, in its order; fetched where they are not in the cache yet.

    Raises:
        HeaderError: a file is no GGUF, or damaged.
        ModelError: the server fails, or the disk is full.
    """
    root = cache_folder() / "headers"
    files = model.files  # a checkpoint's tokenizer too: what it takes in memory is measured
    folder = root / _identity(files)
    paths = tuple(folder / Path(file.name).name for file in files)
    if all(file.etag for file in files) and all(map(_is_whole, paths, files)):
        return paths
    if say:
        say(f"reading the header of {model.source}")
    try:
        with fresh_folder(folder) as fresh:
            with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
                # list() raises the first error.
                list(pool.map(lambda file: _fetch(file, fresh / Path(file.name).name, model.repo), files))
            shutil.rmtree(folder, ignore_errors=True)  # what is not whole
    except OSError as error:
        raise ModelError(f"cannot keep the header of {model.source} in {root}: {error.strerror}") from None
    return paths


def is_header_only(path: Path) -> bool:
    """Whether a path is a header-only file, which holds no weights."""
    return path.parent.parent == cache_folder() / "headers"


def _identity(files: Sequence[RemoteFile]) -> str:
    told = "\0".join(
        f"{file.url if not file.sha256 else ''}\0{file.etag}\0{file.size_bytes}" for file in files
    )
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _fetch(file: RemoteFile, path: Path, repo: str | None) -> None:
    headers, key = (token_headers(), how_to_access(repo)) if repo else ({}, "")
    with RangeReader(file.url, headers, key=key) as reader, path.open("w+b") as local:
        growing = _GrowingFile(reader, local, file)
        if file.name.lower().endswith(".gguf"):
            header = read_open_header(growing, Path(file.name), file.size_bytes, window_bytes=_PIECE_BYTES)
            growing.need(header.data_offset_bytes)
        elif file.name.endswith(".safetensors"):
            require_safetensors(Path(file.name), growing.read(HEAD_BYTES))
            growing.seek(0)
            # Eight bytes say how long the header is; what it may be, safetensors.py checks.
            length = int.from_bytes(growing.read(8), "little")
            growing.need(min(8 + length, _LARGEST_JSON_BYTES, file.size_bytes))
        elif file.size_bytes <= _LARGEST_JSON_BYTES:
            growing.need(file.size_bytes)
        else:
            raise ModelError(f"{file.url} has {file.size_bytes} bytes; that is no {Path(file.name).name}")
        local.truncate(file.size_bytes)


class _GrowingFile:
    """A remote file that is read from its start; what was read lies in a local one."""

    def __init__(self, reader: RangeReader, local: BinaryIO, file: RemoteFile) -> None:
        self._reader = reader
        self._local = local.fileno()
        self._file = file
        self._held = 0  # bytes from the start
        self._position = 0
        self._piece_bytes = _PIECE_BYTES

    def seek(self, position: int, /) -> None:
        self._position = position

    def read(self, count: int, /) -> bytes:
        self.need(min(self._position + count, self._file.size_bytes))
        data = os.pread(self._local, count, self._position)
        self._position += len(data)
        return data

    def need(self, end: int) -> None:
        while self._held < end:
            piece = self._reader.read(self._held, max(self._piece_bytes, end - self._held))
            if piece.file_bytes != self._file.size_bytes:
                raise ModelError(
                    f"{self._file.url}: {self._file.size_bytes} bytes were announced, "
                    f"and the server has {piece.file_bytes}"
                )
            os.pwrite(self._local, piece.data, self._held)
            self._held += len(piece.data)
            self._piece_bytes = min(2 * self._piece_bytes, _LARGEST_PIECE_BYTES)
