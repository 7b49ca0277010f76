"""RAM and swap: the machine's and the cgroup's view together, and the modules' type and speed.

Type and speed come from the firmware's SMBIOS table, which only root may read. How many channels
are populated is not in it, so bandwidth cannot be derived from these two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from memfit.hardware.cgroup import Cgroup
from memfit.hardware.machine import Ram

__all__ = ["parse_memory_modules", "read_ram"]

_MEMORY_DEVICE = 17
# "Memory Device - Type" of the SMBIOS specification; virtual machines say "RAM" (7), which is none
_MEMORY_TYPES = {
    number: name
    for first, names in (
        (0x12, "DDR DDR2"),
        (0x18, "DDR3"),
        (0x1A, "DDR4 LPDDR LPDDR2 LPDDR3 LPDDR4"),
        (0x20, "HBM HBM2 DDR5 LPDDR5 HBM3"),
    )
    for number, name in enumerate(names.split(), start=first)
}


def read_ram(cgroup: Cgroup, root: Path = Path("/")) -> Ram:
    """What this process may take: the machine's RAM, or the cgroup's share of it."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, available = memory.total, memory.available
    if cgroup.memory_limit_bytes is not None:
        total = min(total, cgroup.memory_limit_bytes)
    if cgroup.memory_headroom_bytes is not None:
        available = min(available, max(cgroup.memory_headroom_bytes, 0))
    swap_total = swap.total
    if cgroup.swap_limit_bytes is not None:
        swap_total = min(swap_total, cgroup.swap_limit_bytes)
    kind, speed = _memory_modules(root)
    return Ram(
        total_bytes=total,
        available_bytes=min(available, total),
        physical_bytes=memory.total,
        cgroup_limit_bytes=cgroup.memory_limit_bytes,
        swap_total_bytes=swap_total,
        swap_used_bytes=min(swap.used, swap_total),
        type=kind,
        megatransfers_per_second=speed,
    )


def _memory_modules(root: Path) -> tuple[str | None, int | None]:
    try:
        table = (root / "sys/firmware/dmi/tables/DMI").read_bytes()
    except OSError:
        return None, None
    return parse_memory_modules(table)


def parse_memory_modules(table: bytes) -> tuple[str | None, int | None]:
    """The type that all modules share, and the slowest one's MT/s; None for what is not said.

    `table` is a raw SMBIOS structure table. Damage ends the reading, never raises.
    Source: SMBIOS 3.7, 6.1 and 7.18.
    """
    kinds: set[str | None] = set()
    speeds: set[int] = set()
    for module in _structures(table, _MEMORY_DEVICE):
        if not _integer(module, 0x0C, 2):
            continue  # an empty slot
        kinds.add(_MEMORY_TYPES.get(_integer(module, 0x12, 1)))
        # As configured if said, else as sold. 0 is unknown; 0xFFFF points to a wider field.
        for narrow, wide in ((0x20, 0x58), (0x15, 0x54)):
            speed = _integer(module, narrow, 2)
            if speed == 0xFFFF:
                speed = _integer(module, wide, 4)
            if speed:
                speeds.add(speed)
                break
    return kinds.pop() if len(kinds) == 1 else None, min(speeds, default=None)


def _structures(table: bytes, wanted: int) -> Iterator[bytes]:
    """The formatted parts of one type's structures; their strings, up to two NULs, are skipped."""
    start = 0
    while start + 4 <= len(table):
        kind, length = table[start], table[start + 1]
        end = table.find(b"\0\0", start + length)
        if length < 4 or end < 0:
            return
        if kind == wanted:
            yield table[start : start + length]
        start = end + 2


def _integer(structure: bytes, offset: int, size: int) -> int:
    """Little-endian; 0, which means unknown everywhere here, past the end of an older table."""
    field = structure[offset : offset + size]
    return int.from_bytes(field, "little") if len(field) == size else 0
