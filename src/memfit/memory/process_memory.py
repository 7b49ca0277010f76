"""What processes hold in RAM, from /proc. Knows nothing of plans.

A group's use is its anonymous and shared memory plus every file-backed page that it maps, counted once
for the group. Against the sum of Pss this differs only where programs outside the group map the same
library pages: Pss would give them a share, so that a second memfit would change the first one's figure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memfit.units import KIB

__all__ = [
    "Baseline",
    "ProcessMemory",
    "ProcessStatus",
    "disk_read_bytes",
    "group_bytes",
    "process_memory",
    "process_status",
]


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """One process's resident memory. `files` maps each mapped file to its resident bytes."""

    anonymous_bytes: int
    files: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        return self.anonymous_bytes + sum(self.files.values())

    def plus(self, more: ProcessMemory) -> ProcessMemory:
        return self._with(more, 1)

    def minus(self, less: ProcessMemory) -> ProcessMemory:
        return self._with(less, -1)

    def _with(self, other: ProcessMemory, sign: int) -> ProcessMemory:
        names = {**self.files, **other.files}
        return ProcessMemory(
            anonymous_bytes=self.anonymous_bytes + sign * other.anonymous_bytes,
            files={name: self.files.get(name, 0) + sign * other.files.get(name, 0) for name in names},
        )


def process_memory(pid: int | str = "self") -> ProcessMemory:
    """Exact, from smaps: the kernel walks the page tables, about 5 ms per GiB, so not for a 20 Hz loop.

    Raises:
        ProcessLookupError: the process is gone.
    """
    anonymous = 0
    files: dict[str, int] = {}
    name, resident, in_file = "", 0, False
    text = _read(pid, "smaps")
    if not text:
        raise ProcessLookupError(f"process {pid} has ended")  # a zombie maps nothing
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if "-" in key:  # "7f..-7f.. r-xp 00000000 fe:00 123   /usr/lib/libc.so.6": a new mapping
            fields = line.split(maxsplit=5)
            name = fields[5] if len(fields) == 6 else ""
            # A deleted name may stand for many areas: shared anonymous memory is "/dev/zero (deleted)".
            in_file = name.startswith("/") and not name.endswith("(deleted)")
        elif key == "Rss":
            resident = int(rest.split()[0]) * KIB
        elif key == "Anonymous":
            # A private mapping of a file holds its written pages as anonymous memory of its own.
            private = int(rest.split()[0]) * KIB if in_file else resident
            anonymous += private
            if resident > private:
                files[name] = files.get(name, 0) + resident - private
    return ProcessMemory(anonymous_bytes=anonymous, files=files)


def group_bytes(processes: Iterable[ProcessMemory]) -> int:
    """Bytes that a group of processes holds together, a file that several of them map counted once."""
    anonymous = 0
    files: dict[str, int] = {}
    for process in processes:
        anonymous += process.anonymous_bytes
        for name, resident in process.files.items():
            files[name] = max(resident, files.get(name, 0))
    return anonymous + sum(files.values())


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What memfit's processes hold beyond what the oracle counts: measured on this machine once, cached.

    Two parts: the parent (Python, the command line, terminal output), and what a worker holds after its first
    real decode that a simulating one does not (thread stacks, kernels' code pages, the scheduler's tables).
    """

    parent: ProcessMemory | None  # None: the caller's own process, which memfit does not count
    decode_bytes: int  # a worker's growth from simulated to decoding, buffers aside

    def with_worker(self, worker: ProcessMemory) -> int:
        """Bytes of parent and worker together; `worker` is a simulating one."""
        processes = [worker] if self.parent is None else [self.parent, worker]
        return group_bytes(processes) + self.decode_bytes


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """The kernel's running counts of one process: cheap, for sampling."""

    resident_bytes: int  # VmRSS
    peak_resident_bytes: int  # VmHWM, the high-water mark
    swapped_bytes: int  # VmSwap
    locked_bytes: int  # VmLck
    kept_bytes: int  # RssAnon and RssShmem: what the kernel cannot drop, unlike pages of files


def process_status(pid: int | str = "self") -> ProcessStatus:
    """Raises ProcessLookupError where the process has ended."""
    values = dict(line.split(":", 1) for line in _read(pid, "status").splitlines())
    if "VmRSS" not in values:
        raise ProcessLookupError(f"process {pid} has ended")  # a zombie has no memory lines
    resident, peak, swapped, locked, anonymous, shared = (
        int(values[name].split()[0]) * KIB
        for name in ("VmRSS", "VmHWM", "VmSwap", "VmLck", "RssAnon", "RssShmem")
    )
    return ProcessStatus(
        resident_bytes=resident,
        peak_resident_bytes=peak,
        swapped_bytes=swapped,
        locked_bytes=locked,
        kept_bytes=anonymous + shared,
    )


def disk_read_bytes(pid: int) -> int:
    """Bytes that a process has caused to be read from disk; 0 where the kernel does not say."""
    with contextlib.suppress(PermissionError):
        for line in _read(pid, "io").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0


def _read(pid: int | str, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error
