"""What other programs hold of this machine's memory, beside a tree of processes that is memfit's. Looked at
when somebody asks, not at the meter's rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil

from memfit.hardware.cgroup import read_cgroup
from memfit.hardware.ram import read_ram
from memfit.memory.process_memory import process_status

__all__ = ["Shared", "process_tree", "ram_shared"]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A tier that other programs use, too."""

    capacity_bytes: int  # of the whole
    others_bytes: int  # what others hold; of RAM what could not be had without swapping


def ram_shared(pids: Iterable[int]) -> Shared:
    """RAM, where these processes are memfit's. What the kernel needs is others', page cache is nobody's."""
    ours = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            ours += process_status(pid).kept_bytes
    ram = read_ram(read_cgroup())
    return Shared(
        capacity_bytes=ram.total_bytes, others_bytes=max(0, ram.total_bytes - ram.available_bytes - ours)
    )


def process_tree(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield pid
        for child in process.children(recursive=True):
            yield child.pid
