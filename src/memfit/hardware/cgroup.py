"""What the Linux control groups around this process allow it: memory, and CPU time.

Reads versions 1, 2 and both mounted together. A limit of any group from the process's own up to the
root holds, so each is asked; groups above a container's mount cannot be seen from inside. Knows
nothing of cpusets: the scheduler's affinity already tells those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

__all__ = ["Cgroup", "MemoryGroup", "kernel_text", "memory_group", "read_cgroup"]

_KEPT_SHARE = 64
_Number = TypeVar("_Number", int, float)
_NO_LIMIT_BYTES = 2**62  # version 1 writes "none" as the largest multiple of a page below 2^63


@dataclass(frozen=True, kw_only=True)
class Cgroup:
    """The tightest limits found; None where there is none (and on systems without cgroups)."""

    memory_limit_bytes: int | None
    memory_headroom_bytes: int | None  # least that can still be had over the groups; below 0 if shrunk
    cpu_quota: float | None  # cores' worth of time: 1.5
    swap_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """The group that this process's memory is counted in."""

    folder: Path
    version: int  # of the kernel's interface: 1 or 2


@dataclass(frozen=True, kw_only=True)
class CpuQuota:
    """The tightest limit on CPU time that this process shares with its group."""

    cpus: float
    folder: Path

    def used_seconds(self) -> float:
        """Of all processes in the group. Raises ValueError where the kernel does not say."""
        for line in kernel_text(self.folder / "cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
        return int(kernel_text(self.folder / "cpuacct.usage")) / 1e9


@dataclass(frozen=True, kw_only=True)
class _Mount:
    kind: str  # "cgroup" (version 1) or "cgroup2"
    controllers: frozenset[str]  # of version 1; version 2 mounts carry every controller
    group: PurePosixPath  # the group that is seen at `folder`: not "/" inside many containers
    folder: Path


def read_cgroup(root: Path = Path("/")) -> Cgroup:
    """The limits on this process. `root` holds `proc` and `sys`; tests give a made-up one."""
    mounts = _mounts(root)
    groups = _own_groups(root)
    folders = _folders("memory", mounts, groups)
    return Cgroup(
        memory_limit_bytes=_least(map(_memory_limit, folders)),
        memory_headroom_bytes=_least(map(_headroom, folders)),
        cpu_quota=quota.cpus if (quota := _tightest(mounts, groups)) else None,
        swap_limit_bytes=_least(map(_swap_limit, folders)),
    )


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((one for one in values if one is not None), default=None)


def memory_group(root: Path = Path("/")) -> MemoryGroup | None:
    """Where this process's memory can be limited; None without a memory controller. `root` as above."""
    mounts, groups = _mounts(root), _own_groups(root)
    for mount in mounts:
        if mount.kind == "cgroup" and "memory" in mount.controllers:
            return MemoryGroup(folder=_own_folder(mount, groups.get("memory")), version=1)
    for mount in mounts:
        folder = _own_folder(mount, groups.get(""))
        if mount.kind == "cgroup2" and "memory" in kernel_text(folder / "cgroup.controllers").split():
            return MemoryGroup(folder=folder, version=2)
    return None


def cpu_quota(root: Path = Path("/")) -> CpuQuota | None:
    """None without a limit. `root` as above."""
    return _tightest(_mounts(root), _own_groups(root))


def _tightest(mounts: list[_Mount], groups: dict[str, PurePosixPath]) -> CpuQuota | None:
    quotas = [
        CpuQuota(cpus=cpus, folder=folder)
        for folder in _folders("cpu", mounts, groups)
        if (cpus := _cpu_quota(folder)) is not None
    ]
    return min(quotas, key=lambda one: one.cpus, default=None)


def _mounts(root: Path) -> list[_Mount]:
    """From mountinfo: `35 31 0:32 /group /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`."""
    mounts = []
    for line in kernel_text(root / "proc/self/mountinfo").splitlines():
        where, _, kind = line.partition(" - ")
        fields, (filesystem, *options) = where.split(), kind.split() or [""]
        if filesystem in ("cgroup", "cgroup2") and len(fields) > 4 and len(options) > 1:
            mounts.append(
                _Mount(
                    kind=filesystem,
                    controllers=frozenset(options[1].split(",")),
                    group=PurePosixPath(fields[3]),
                    folder=root / fields[4].lstrip("/"),
                )
            )
    return mounts


def _own_groups(root: Path) -> dict[str, PurePosixPath]:
    """This process's group per version 1 controller, and version 2's under the empty name."""
    groups = {}
    for line in kernel_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = PurePosixPath(path)
    return groups


def _folders(controller: str, mounts: list[_Mount], groups: dict[str, PurePosixPath]) -> list[Path]:
    """The folders of this process's groups, its own first, up to the top of each mount."""
    folders: list[Path] = []
    for mount in mounts:
        if mount.kind == "cgroup2":
            group = groups.get("")
        elif controller in mount.controllers:
            group = groups.get(controller)
        else:
            continue
        folder = _own_folder(mount, group)
        folders += [folder, *(up for up in folder.parents if up.is_relative_to(mount.folder))]
    return folders


def _own_folder(mount: _Mount, group: PurePosixPath | None) -> Path:
    """Where the process's group lies; the mount's top where a namespace hides it."""
    if group is None or ".." in group.parts or not group.is_relative_to(mount.group):
        return mount.folder
    folder = mount.folder / group.relative_to(mount.group)
    return folder if folder.is_dir() else mount.folder


def _memory_limit(folder: Path) -> int | None:
    limits = (
        _number(folder / "memory.max"),
        _number(folder / "memory.high"),  # above it the kernel slows the process to a crawl
        _number(folder / "memory.limit_in_bytes"),
        # Version 1: counts the groups above a container's mount too.
        _statistics(folder).get("hierarchical_memory_limit"),
    )
    return _least(limit for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES)


def _headroom(folder: Path) -> int | None:
    """Bytes that processes in this group can still take without swapping: up to its limit, and what the
    kernel gives back at once. None without a limit."""
    limit = _memory_limit(folder)
    if limit is None:
        return None
    statistics = _statistics(folder)
    current = _number(folder / "memory.current")
    if current is not None:
        return limit - current + min(_reclaimable(statistics, "", limit), current)
    usage = _number(folder / "memory.usage_in_bytes") or 0
    room = limit - usage
    if (both := _memory_and_swap_limit(folder)) is not None:
        room = min(room, both - (_number(folder / "memory.memsw.usage_in_bytes") or 0))
    return room + min(_reclaimable(statistics, "total_", limit), usage)


def _reclaimable(statistics: dict[str, int], prefix: str, limit: int) -> int:
    """Page cache, read once or often, and the kernel's caches of names, as MemAvailable counts them.

    Left out is what is not given back at once: pages still to be written, here and on the way; shared memory,
    tmpfs and locked pages are in neither list. The kernel keeps its low watermark of them, since the last
    pages of programs that run are among them; groups have none, so a 64th of the limit stands for it.
    """
    files = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    unwritten = sum(
        statistics.get(name, 0) for name in ("file_dirty", "file_writeback", "total_dirty", "total_writeback")
    )
    found = max(0, files - unwritten) + statistics.get("slab_reclaimable", 0)
    return found - min(found // 2, limit // _KEPT_SHARE)


def _swap_limit(folder: Path) -> int | None:
    """Of version 1 what memory and swap together leave beside memory."""
    limit = _number(folder / "memory.swap.max")
    if (both := _memory_and_swap_limit(folder)) is not None:
        limit = max(0, both - (_number(folder / "memory.limit_in_bytes") or 0))
    return limit


def _memory_and_swap_limit(folder: Path) -> int | None:
    both = _number(folder / "memory.memsw.limit_in_bytes")
    return both if both is not None and both < _NO_LIMIT_BYTES else None


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = kernel_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = kernel_text(folder / "cpu.cfs_quota_us").strip()
        period = kernel_text(folder / "cpu.cfs_period_us").strip()
    # "max" and -1 are no limit
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):
        return None
    return int(quota) / int(period)


def _statistics(folder: Path) -> dict[str, int]:
    pairs = (line.split() for line in kernel_text(folder / "memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = kernel_text(path).strip()
    return int(text) if text.isdecimal() else None


def kernel_text(path: Path) -> str:
    """A file of the kernel's; empty where it cannot be read: a missing file means a missing limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
