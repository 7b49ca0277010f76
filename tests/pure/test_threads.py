"""How many threads compute, by what others do; and how that is read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memfit.engines.threads import Threads
from memfit.hardware.cpu_use import CpuMeter, CpuUse, waited_seconds, waits

_TICKS = os.sysconf("SC_CLK_TCK")


class _Meter:
    """Tells what it is given, look by look."""

    def __init__(self, *uses: CpuUse | None) -> None:
        self._uses = list(uses)

    def use(self, least_seconds: float) -> CpuUse | None:
        return self._uses.pop(0)


def _use(others: float, *, waited: float = 0.3, cpus: float = 4) -> CpuUse:
    return CpuUse(seconds=0.5, cpus=cpus, others=others, waited=waited)


def _threads(most: int, *uses: CpuUse | None) -> list[int]:
    meter: Any = _Meter(*uses)
    threads = Threads(most, _ignore, meter)
    return [_look(threads) for _ in uses]


def _look(threads: Threads) -> int:
    threads.look()
    return threads.count


def _ignore(_: int) -> None:
    pass


def test_all_compute_alone() -> None:
    assert _threads(4, _use(0.0, waited=0.0), _use(0.2), None) == [4, 4, 4]


@pytest.mark.parametrize(("others", "left"), [(0.4, 4), (0.6, 3), (1.0, 3), (2.2, 2), (3.0, 1), (9.0, 1)])
def test_others_get_the_cpus_that_they_use(others: float, left: int) -> None:
    assert _threads(4, _use(others)) == [left]


def test_fewer_threads_than_cpus_leave_room_for_others() -> None:
    assert _threads(2, _use(2.0), _use(3.0)) == [2, 1]


def test_what_runs_in_turns_with_us_is_not_in_the_way() -> None:
    """A device on this machine computes while we wait for it."""
    assert _threads(4, _use(2.0, waited=0.01)) == [4]


def test_after_a_rest_what_others_use_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ours could have waited for a CPU; else the first pass, a prompt's, would be a slow one."""
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter: Any = _Meter(_use(2.0, waited=0.0), _use(3.0, waited=0.0))
    threads = Threads(4, _ignore, meter)
    now += 0.3
    assert _look(threads) == 2
    now += 0.3  # a pass
    threads.done()
    assert _look(threads) == 2


def test_they_come_back_as_soon_as_there_is_room() -> None:
    assert _threads(4, _use(3.0), None, _use(1.0, waited=0.0), _use(0.0, waited=0.0)) == [1, 1, 3, 4]


def test_one_thread_is_never_fewer() -> None:
    meter: Any = _Meter()  # and nobody asks
    assert _look(Threads(1, _ignore, meter)) == 1


def test_the_engine_is_told_only_what_is_new() -> None:
    told: list[int] = []
    meter: Any = _Meter(_use(0.0), _use(1.0), _use(1.0), None, _use(0.0))
    threads = Threads(4, told.append, meter)
    for _ in range(5):
        threads.look()
    assert told == [3, 4]


def test_without_a_pass_those_that_would_compute() -> None:
    assert Threads(4, _ignore, _Meter()).mean == 4  # type: ignore[arg-type]


def test_passes_are_counted_by_their_threads() -> None:
    meter: Any = _Meter(None, _use(3.0), None)
    threads = Threads(4, _ignore, meter)
    for _ in range(3):
        threads.look()
    assert (threads.passes, threads.thread_passes) == (3, 4 + 1 + 1)
    threads.restart()
    assert (threads.passes, threads.thread_passes, threads.count) == (0, 0, 1)


# --- from /proc ---


def _proc(folder: Path, *rows: str, waited: int | None = 0) -> Path:
    (folder / "proc/self/task/7").mkdir(parents=True, exist_ok=True)
    (folder / "proc/stat").write_text("".join(f"{row}\n" for row in rows))
    if waited is not None:
        (folder / "proc/self/task/7/schedstat").write_text(f"123456 {waited} 99\n")
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"monotonic": 10.0, "process_time": 1.0}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    return now


def test_others_are_what_is_busy_and_not_ours(tmp_path: Path, clock: dict[str, float]) -> None:
    """Columns: user, nice, system, idle, iowait, irq, softirq, steal. CPU 1 is not ours to use."""
    meter = CpuMeter(
        _proc(tmp_path, "cpu 9 9 9 9", "cpu0 0 0 0 0 0 0 0 0", "cpu1 0 0 0", "cpu2 0 0 0 0 0 0 0 0")
    )
    assert meter.use(0.2) is None  # too early
    clock["monotonic"], clock["process_time"] = 12.0, 2.0
    rows = (
        "cpu 9 9 9 9",
        f"cpu0 {_TICKS} {5 * _TICKS} {_TICKS // 2} 0 0 0 {_TICKS // 2} {9 * _TICKS}",
        f"cpu1 {99 * _TICKS} 0 0",
        f"cpu2 {_TICKS} 0 0 {_TICKS} 0 0 0 0",
        "intr 1 2 3",
    )
    _proc(tmp_path, *rows, waited=500_000_000)
    use = meter.use(0.2)
    assert use is not None
    # In 2 s: 3 s busy, of which 1 s ours; 0.5 s of waiting beside 1 s of computing.
    assert (use.cpus, use.others) == (2, 1.0)
    assert use.waited == pytest.approx(1 / 3)
    assert not use.is_quiet
    assert meter.use(0.2) is None


def test_beside_a_nice_program_a_nice_one_counts(
    tmp_path: Path, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpriority", lambda *_: 10)
    meter = CpuMeter(_proc(tmp_path, "cpu", "cpu0 0 0 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0"))
    clock["monotonic"] = 11.0
    _proc(tmp_path, "cpu", f"cpu0 0 {_TICKS} 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0")
    use = meter.use(0.0)
    assert use is not None and use.others == 1.0


@pytest.mark.parametrize("text", [None, "", "cpu\ncpu0\n", "cpu\ncpu0 a b c d e f g\n", "cpu\ncpux 1\n"])
def test_where_nothing_says_it_nothing_is_told(
    tmp_path: Path, clock: dict[str, float], text: str | None
) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(text)
    meter = CpuMeter(tmp_path)
    clock["monotonic"] = 20.0
    use = meter.use(0.2)
    assert use is None or use.others == 0.0
    assert _look(Threads(4, _ignore, meter)) == 4


@pytest.mark.parametrize("version", [1, 2])
def test_under_a_quota_only_those_in_the_group_are_in_the_way(
    tmp_path: Path, clock: dict[str, float], version: int
) -> None:
    """A container of a CPU and a half on a busy machine of two."""
    group = _group(tmp_path, version, used_seconds=5)
    meter = CpuMeter(_proc(tmp_path, "cpu", "cpu0 0 0 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0"))
    clock["monotonic"], clock["process_time"] = 12.0, 2.0  # half a CPU is ours
    _proc(tmp_path, "cpu", f"cpu0 {2 * _TICKS} 0 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0")
    assert _group(tmp_path, version, used_seconds=8) == group  # two CPUs' halves are others'
    use = meter.use(0.2)
    assert use is not None
    assert (use.cpus, use.others) == (1.5, 1.0)


def test_a_quota_without_a_count_is_none(tmp_path: Path, clock: dict[str, float]) -> None:
    (_group(tmp_path, 2, used_seconds=5) / "cpu.stat").unlink()
    meter = CpuMeter(_proc(tmp_path, "cpu", "cpu0 0 0 0 0 0 0 0", "cpu2 0 0 0 0 0 0 0"))
    clock["monotonic"] = 12.0
    use = meter.use(0.2)
    assert use is not None and use.cpus == 2


def _group(root: Path, version: int, *, used_seconds: int) -> Path:
    """A group limited to 1.5 CPUs."""
    folder = root / "sys/fs/cgroup/box"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    (root / "proc/self/mountinfo").write_text(f"35 31 0:32 / /sys/fs/cgroup rw - {kind}\n")
    (root / "proc/self/cgroup").write_text("0::/box\n" if version == 2 else "4:cpu,cpuacct:/box\n")
    if version == 2:
        (folder / "cpu.max").write_text("150000 100000\n")
        (folder / "cpu.stat").write_text(f"usage_usec {used_seconds * 10**6}\nuser_usec 1\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text("150000\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
        (folder / "cpuacct.usage").write_text(f"{used_seconds * 10**9}\n")
    return folder


def test_a_thread_that_is_new_has_waited_since_it_began() -> None:
    assert waited_seconds({"1": 2.0, "2": 5.0}, {"1": 2.5, "3": 1.0}) == 1.5


def test_the_kernel_tells_what_a_busy_process_does() -> None:
    """Of this machine: beside as many busy processes as there are CPUs, a busy thread waits."""
    if not waits():
        pytest.skip("this kernel does not say how long threads wait")
    cpus = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cpus)]
    try:
        time.sleep(0.5)
        meter = CpuMeter()
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            pass
        use = meter.use(0.2)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert use is not None and use.cpus == cpus
    assert use.others > 0.3 * cpus
    assert use.waited > 0.1
    assert not use.is_quiet
