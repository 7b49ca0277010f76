"""What computes on the CPUs that this process may use: itself, and others. Only Linux says."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memfit.hardware.cgroup import CpuQuota, cpu_quota

__all__ = ["CpuMeter", "CpuUse", "involuntary_switches", "waited_seconds", "waits"]

_QUIET_CPUS, _QUIET_SHARE = 0.25, 0.05
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ = 0, 1, 2, 5, 6  # columns of /proc/stat


@dataclass(frozen=True, kw_only=True)
class CpuUse:
    """Means over a span of time."""

    seconds: float
    cpus: float  # that this process may use: by affinity, and by quota
    others: float  # of these, CPUs that others kept busy, those aside that give way to this process
    waited: float  # of the time for which this process's threads wanted a CPU, the share without one

    @property
    def is_quiet(self) -> bool:
        """Whether others leave these CPUs alone, but for what every system does beside."""
        return self.others < max(_QUIET_CPUS, _QUIET_SHARE * self.cpus)


class CpuMeter:
    """Measures from one call to the next."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` holds `proc` and `sys`; tests give a made-up one."""
        self._root = root
        self._quota = _readable(cpu_quota(root))
        self._last = self._read()

    def use(self, least_seconds: float) -> CpuUse | None:
        """Since the last use that was told; None where that is less than `least_seconds` ago, or unknown."""
        last = self._last
        if last is None or time.monotonic() - last.at < least_seconds:
            return None
        self._last = now = self._read()
        if now is None or now.cpus != last.cpus:
            return None
        seconds = now.at - last.at
        own = (now.own - last.own) / seconds
        waited = waited_seconds(last.waited, now.waited) / seconds
        cpus = float(len(now.cpus))
        left = cpus - max(0.0, (now.busy - last.busy) / seconds - own)
        if self._quota:  # others of our group use it up; everyone, the CPUs beneath
            cpus = min(cpus, self._quota.cpus)
            left = min(left, cpus - max(0.0, (now.in_group - last.in_group) / seconds - own))
        return CpuUse(
            seconds=seconds,
            cpus=cpus,
            others=max(0.0, cpus - left),
            waited=waited / (own + waited) if waited > 0 else 0.0,
        )

    def _read(self) -> _Sample | None:
        try:
            cpus = frozenset(os.sched_getaffinity(0))
            busy = sum(_busy_ticks(line) for line in self._cpu_lines(cpus)) / os.sysconf("SC_CLK_TCK")
            in_group = self._quota.used_seconds() if self._quota else 0.0
        except (AttributeError, OSError, ValueError, IndexError):  # no Linux, or a container hides it
            return None
        return _Sample(
            at=time.monotonic(),
            cpus=cpus,
            busy=busy,
            in_group=in_group,
            own=time.process_time(),
            waited=waits(self._root),
        )

    def _cpu_lines(self, cpus: frozenset[int]) -> list[list[str]]:
        text = (self._root / "proc/stat").read_text(encoding="ascii")
        rows = [line.split() for line in text.splitlines() if line.startswith("cpu")]
        return [row[1:] for row in rows[1:] if int(row[0].removeprefix("cpu")) in cpus]


def waits(root: Path = Path("/")) -> dict[str, float]:
    """Seconds for which each of this process's threads has had no CPU though it wanted one."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for thread in (root / "proc/self/task").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
                found[thread.name] = int((thread / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return found


def involuntary_switches() -> int:
    """How often a thread of this process was taken off its CPU."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def waited_seconds(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Of all threads together, between two calls of `waits`."""
    return sum(seconds - before.get(thread, 0.0) for thread, seconds in after.items())


@dataclass(frozen=True, kw_only=True)
class _Sample:
    at: float
    cpus: frozenset[int]
    busy: float  # seconds, of all programs together
    in_group: float  # of those that share a quota with us
    own: float
    waited: dict[str, float]


def _readable(quota: CpuQuota | None) -> CpuQuota | None:
    """None where the kernel limits a group and does not say what it used."""
    with contextlib.suppress(ValueError):
        if quota and quota.used_seconds() >= 0:
            return quota
    return None


def _busy_ticks(columns: list[str]) -> int:
    """A program that was made nice gives way to one that was not, and so does not count beside it."""
    counted = [_USER, _SYSTEM, _IRQ, _SOFTIRQ]
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        counted.append(_NICE)
    return sum(int(columns[one]) for one in counted)
