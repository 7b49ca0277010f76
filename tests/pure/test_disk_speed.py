"""Reading a disk: what is read and how, and that nothing stays. How fast it is, is the disk's affair."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memfit.hardware import disk_speed
from memfit.hardware.disk_speed import BLOCK_SIZES, measure_reads
from memfit.units import GIB, MIB

_SIZE = 16 * MIB
_REAL_FCNTL, _REAL_PREADV = fcntl.fcntl, os.preadv


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, int]]]:
    """(bytes asked for, offset, the file's flags) of every read that is made."""
    seen: list[tuple[int, int, int]] = []

    def preadv(file: int, buffers: list[Any], offset: int) -> int:
        seen.append((len(buffers[0]), offset, _REAL_FCNTL(file, fcntl.F_GETFL)))
        return _REAL_PREADV(file, buffers, offset)

    monkeypatch.setattr(disk_speed.os, "preadv", preadv)
    yield seen


def test_the_whole_file_is_read_with_every_size_of_block(
    tmp_path: Path, reads: list[tuple[int, int, int]]
) -> None:
    speed = measure_reads(tmp_path, file_bytes=_SIZE)
    assert list(speed.bytes_per_second) == list(BLOCK_SIZES) == [MIB, 4 * MIB, 8 * MIB]
    assert all(rate > 0 for rate in speed.bytes_per_second.values())
    expected = [(block, offset) for block in BLOCK_SIZES for offset in range(0, _SIZE, block)]
    assert [(size, offset) for size, offset, _ in reads][-len(expected) :] == expected
    assert {bool(flags & os.O_DIRECT) for _, _, flags in reads[-len(expected) :]} == {speed.direct}


def test_the_rate_is_bytes_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 1/8 s with every look: one to begin, one after each block."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(disk_speed.time, "perf_counter", lambda: next(ticks) / 8)
    speed = measure_reads(tmp_path, file_bytes=_SIZE)
    assert speed.bytes_per_second == {block: 8 * block for block in BLOCK_SIZES}


def test_a_slow_disk_is_read_only_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int, int]]
) -> None:
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(disk_speed.time, "perf_counter", lambda: next(ticks))
    speed = measure_reads(tmp_path, file_bytes=_SIZE)
    assert [offset for size, offset, _ in reads if size == 4 * MIB] == [0, 4 * MIB]  # 4 s, and 3 is the limit
    assert speed.bytes_per_second[4 * MIB] == 2 * MIB


def test_a_slow_disk_gets_a_smaller_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10_000, 5))
    monkeypatch.setattr(disk_speed, "_STEP_BYTES", 4 * MIB)
    monkeypatch.setattr(disk_speed.time, "monotonic", lambda: next(ticks))
    with (tmp_path / "file").open("w+b") as file:
        assert disk_speed._fill(file, _SIZE) == 8 * MIB  # the limit is 8 s


def _refuses_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return _REAL_FCNTL(file, command, value)

    monkeypatch.setattr(disk_speed.fcntl, "fcntl", refuse)


def _refuses_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, buffers: list[Any], offset: int) -> int:
        if _REAL_FCNTL(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return _REAL_PREADV(file, buffers, offset)

    monkeypatch.setattr(disk_speed.os, "preadv", refuse)


@pytest.mark.parametrize("refuses", [_refuses_the_flag, _refuses_the_read])
def test_a_filesystem_without_direct_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[[pytest.MonkeyPatch], None]
) -> None:
    refuses(monkeypatch)
    speed = measure_reads(tmp_path, file_bytes=_SIZE)
    assert not speed.direct
    assert len(speed.bytes_per_second) == 3


def test_a_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB // 2))
    monkeypatch.setattr(disk_speed.tempfile, "TemporaryFile", lambda **_: pytest.fail("it writes"))
    with pytest.raises(OSError) as raised:
        measure_reads(tmp_path)
    assert raised.value.strerror == "512.00 MiB free, and measuring wants 1.00 GiB"


def test_nothing_stays_even_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_reads(tmp_path, file_bytes=_SIZE)
    assert list(tmp_path.iterdir()) == []

    def interrupt(_: int) -> None:
        assert list(tmp_path.iterdir()) == []  # it has no name: not even a killed process leaves it
        raise KeyboardInterrupt

    monkeypatch.setattr(disk_speed.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_reads(tmp_path, file_bytes=_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_cannot_be_compressed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        assert disk_speed._fill(file, MIB) == MIB
        file.seek(0)
        assert len(zlib.compress(file.read())) > MIB
