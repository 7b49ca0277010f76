"""How fast a disk gives large blocks, one after the other: what streaming weights from it can reach.

Measured on a nameless file that the kernel takes back whatever happens to this process. Ignored: more
than one reader at a time, and caches below the kernel (the disk's own, or those of a virtual machine's host),
which can serve again what was written a moment ago.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from memfit.units import GIB, MIB, format_bytes

__all__ = ["BLOCK_SIZES", "DiskSpeed", "go_direct", "measure_file", "measure_reads", "own_memory"]

BLOCK_SIZES = (1 * MIB, 4 * MIB, 8 * MIB)
_FILE_BYTES = 256 * MIB
_LEAST_FREE_BYTES = GIB
_STEP_BYTES = 32 * MIB  # written, and forced to the disk, at a time
_WRITING_SECONDS = 8.0  # a slow card gets a smaller file,
_RUNS, _RUN_BYTES, _FILE_SECONDS = 8, 64 * MIB, 0.6  # of a model's own file
_READING_SECONDS = 3.0  # of which less is read with each size of block


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Sequential reads from one disk."""

    direct: bool  # past the page cache; False where the filesystem refuses that, so through an emptied cache
    bytes_per_second: Mapping[int, float]  # by bytes per block


def measure_reads(folder: Path, *, file_bytes: int = _FILE_BYTES) -> DiskSpeed:
    """Write a file of at most `file_bytes` into a folder, read it with every size of block, leave nothing.

    Raises:
        OSError: the folder cannot be written, or its disk has less than 1 GiB free; `strerror` says which.
    """
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE_BYTES:
        room = f"{format_bytes(free)} free, and measuring wants {format_bytes(_LEAST_FREE_BYTES)}"
        raise OSError(errno.ENOSPC, room, str(folder))
    with tempfile.TemporaryFile(dir=folder) as file:
        size = _fill(file, file_bytes)
        direct = go_direct(file.fileno())
        speeds = {block: _read_speed(file.fileno(), size, block) for block in BLOCK_SIZES}
    return DiskSpeed(direct=direct, bytes_per_second=speeds)


def measure_file(path: Path) -> tuple[float, float]:
    """Bytes per second of a large file itself, as it is read now: the slower and the faster of reading parts
    of it for the first time and again, as streaming does pass after pass. A virtual disk may serve them from
    its host's memory then, and of a shared one both change by the hour.

    Raises:
        OSError: it cannot be read.
    """
    block = max(BLOCK_SIZES)
    with path.open("rb", buffering=0) as file:
        direct, size = go_direct(file.fileno()), path.stat().st_size
        memory = own_memory(block)
        # In runs as streaming reads, spread over the file.
        starts = range(0, size - block, max(block, size // _RUNS // block * block))
        offsets = [
            offset
            for start in starts
            for offset in range(start, min(start + _RUN_BYTES, size - block), block)
        ]
        rates = []
        for _ in range(2):
            done, started = 0, time.monotonic()
            for number, offset in enumerate(offsets, start=1):
                done += os.preadv(file.fileno(), [memory], offset)
                if not direct:
                    os.posix_fadvise(file.fileno(), offset, block, os.POSIX_FADV_DONTNEED)
                if time.monotonic() - started > _FILE_SECONDS:
                    del offsets[number:]  # the second time no more than the first
            rates.append(done / (time.monotonic() - started) if done else math.nan)
        return min(rates), max(rates)


def own_memory(size_bytes: int) -> mmap.mmap:
    """Private memory, aligned to pages. It takes none until it is touched.

    It uses huge pages where the kernel has them: a direct read into small pages is cut into a piece for each
    page, and took up to twice as long.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _fill(file: IO[bytes], most_bytes: int) -> int:
    """Write noise, which no filesystem compresses; returns how much is on the disk."""
    size, ends = 0, time.monotonic() + _WRITING_SECONDS
    while size < most_bytes and (size == 0 or time.monotonic() < ends):
        size += file.write(os.urandom(min(_STEP_BYTES, most_bytes - size)))
        file.flush()
        os.fsync(file.fileno())
    return size


def go_direct(file: int) -> bool:
    """Let reads of a file descriptor go past the page cache; False where the filesystem refuses."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        os.preadv(file, [mmap.mmap(-1, MIB)], 0)  # some refuse only here
    except OSError:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
        return False
    return True


def _read_speed(file: int, size: int, block_bytes: int) -> float:
    buffer = own_memory(block_bytes)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    done, started = 0, time.perf_counter()
    seconds = 0.0
    while done < size and seconds < _READING_SECONDS:
        done += os.preadv(file, [buffer], done)
        seconds = time.perf_counter() - started
    return done / seconds
