"""How much of a file lies in the page cache: written, dropped and read files, against mincore."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from memfit.memory.page_cache import cached_bytes, drop_cached
from memfit.units import MIB

_SIZE = 32 * MIB


def _resident_bytes(path: Path) -> int:
    """The kernel's own answer for a file of ours: mincore over a mapping that touches nothing."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        assert failed == 0
        del start
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """A file on disk of which nothing is cached."""
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(MIB) * (_SIZE // MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if cached_bytes([path]) is None:
        pytest.skip("this kernel has no cachestat (Linux 6.5)")
    drop_cached([path])
    if _resident_bytes(path) > _SIZE // 100:
        pytest.skip("this filesystem keeps its pages whatever is advised (tmpfs)")
    return path


def test_a_dropped_file_is_not_cached(dropped: Path) -> None:
    assert cached_bytes([dropped]) <= _SIZE // 100


def test_a_read_file_is_cached(dropped: Path) -> None:
    dropped.read_bytes()
    assert cached_bytes([dropped]) >= 0.99 * _SIZE
    assert cached_bytes([dropped, dropped]) >= 2 * 0.99 * _SIZE


def test_a_half_cached_file(dropped: Path) -> None:
    dropped.read_bytes()
    with dropped.open("rb") as file:
        os.posix_fadvise(file.fileno(), _SIZE // 2, 0, os.POSIX_FADV_DONTNEED)
    assert _resident_bytes(dropped) == pytest.approx(_SIZE // 2, abs=_SIZE // 50)
    assert cached_bytes([dropped]) == pytest.approx(_SIZE // 2, abs=_SIZE // 50)


def test_reading_again_after_a_drop(dropped: Path) -> None:
    dropped.read_bytes()
    drop_cached([dropped])
    assert cached_bytes([dropped]) <= _SIZE // 100


def test_looking_changes_nothing(dropped: Path) -> None:
    assert cached_bytes([dropped]) <= _SIZE // 100
    assert _resident_bytes(dropped) <= _SIZE // 100
    assert cached_bytes([dropped]) <= _SIZE // 100


def test_what_is_no_file_is_not_known(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    missing = tmp_path / "missing"
    assert cached_bytes([missing]) is None
    assert cached_bytes([]) == 0
    drop_cached([empty, missing, tmp_path])
