"""The meter watches a child process whose memory the test decides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memfit.memory.meter import Meter, Overrun
from memfit.memory.process_memory import ProcessStatus, group_bytes, process_memory, process_status
from memfit.units import GIB, MIB

# Holds so many MiB for each number it reads, and answers when it does.
_WORKER = (
    "for line in iter(input, ''):\n held = None\n held = bytearray(int(line) << 20)\n print(line, flush=True)"
)


class _Worker:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.hold(1)

    def hold(self, mebibytes: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mebibytes}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{mebibytes}\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def worker() -> Iterator[_Worker]:
    one = _Worker()
    yield one
    one.end()


def _never() -> None:
    raise AssertionError("nothing was over the limit")


def _meter(worker: _Worker, *, on_overrun: Callable[[], None] = _never, **changes: object) -> Meter:
    settings: dict[str, object] = {"count_parent": False, "model_files": (), "limit_bytes": GIB, **changes}
    return Meter(worker.process.pid, on_overrun=on_overrun, **settings)  # type: ignore[arg-type]


def test_the_peak_of_a_worker_is_caught(worker: _Worker) -> None:
    meter = _meter(worker)
    before = process_status(worker.process.pid).resident_bytes
    meter.start()
    worker.hold(80)
    worker.hold(1)  # freed before the meter looked, perhaps
    meter.stop()
    assert before + 78 * MIB < meter.peak_bytes < before + 90 * MIB
    assert meter.overrun is None
    assert meter.sample() < before + 10 * MIB


def test_the_parent_counts_once_and_only_if_asked(worker: _Worker) -> None:
    meter = _meter(worker, count_parent=True)
    meter.start()
    meter.stop()
    together = group_bytes([process_memory(), process_memory(worker.process.pid)])
    assert meter.peak_bytes == pytest.approx(together, rel=0.1)
    alone = _meter(worker)
    alone.sample()
    assert alone.peak_bytes == pytest.approx(process_memory(worker.process.pid).total_bytes, rel=0.1)


def test_swap_is_that_of_both_at_its_most(worker: _Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = {worker.process.pid: 5 * MIB, "self": 2 * MIB}

    def status(pid: int | str = "self") -> ProcessStatus:
        return replace(process_status(pid), swapped_bytes=swapped[pid])

    monkeypatch.setattr("memfit.memory.meter.process_status", status)
    both, alone = _meter(worker, count_parent=True), _meter(worker)
    for meter in (both, alone):
        meter.sample()
    swapped["self"] = 0
    both.sample()
    assert (both.swapped_bytes, alone.swapped_bytes) == (7 * MIB, 5 * MIB)


def test_the_alarm_is_raised_once(worker: _Worker) -> None:
    called: list[str] = []
    rung = threading.Event()

    def alarm() -> None:
        called.append(threading.current_thread().name)
        rung.set()

    limit = process_status(worker.process.pid).resident_bytes + 50 * MIB
    meter = _meter(worker, on_overrun=alarm, limit_bytes=limit)
    meter.start()
    worker.hold(30)
    assert not rung.wait(0.3)
    worker.hold(80)
    assert rung.wait(5)
    time.sleep(0.2)
    meter.stop()
    assert called == ["memfit-meter"]
    assert meter.overrun and (meter.overrun.tier, meter.overrun.limit_bytes) == ("RAM", limit)
    assert limit < meter.overrun.held_bytes < limit + 50 * MIB


def test_an_alarm_within_a_fifth_of_a_second(worker: _Worker) -> None:
    rung = threading.Event()
    meter = _meter(
        worker, on_overrun=rung.set, limit_bytes=process_status(worker.process.pid).resident_bytes + 20 * MIB
    )
    meter.start()
    worker.hold(60)
    started = time.monotonic()
    assert rung.wait(5)
    assert time.monotonic() - started < 1  # 50 ms by design; the rest is for a busy machine
    meter.stop()


def test_without_a_limit_there_is_no_alarm(worker: _Worker) -> None:
    meter = _meter(worker, limit_bytes=None)
    meter.start()
    worker.hold(80)
    time.sleep(0.15)
    meter.stop()
    assert meter.peak_bytes > 80 * MIB


def test_a_worker_that_is_gone(worker: _Worker) -> None:
    meter = _meter(worker)
    meter.start()
    worker.hold(40)
    time.sleep(0.15)
    worker.end()
    time.sleep(0.15)
    meter.settle()
    meter.stop()
    meter.stop()  # safe to repeat
    assert meter.peak_bytes > 40 * MIB
    assert meter.sample() == 0


def test_a_meter_that_never_started_can_be_stopped(worker: _Worker) -> None:
    _meter(worker).stop()


def test_files_that_were_cached_before_are_not_memfits(worker: _Worker, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(MIB) * 16)  # lies in the cache from the writing
    meter = _meter(worker, model_files=(path,))
    meter.settle()
    worker_alone = _meter(worker)
    worker_alone.settle()
    assert meter.peak_bytes == pytest.approx(worker_alone.peak_bytes, abs=MIB)


def test_files_that_the_run_left_in_the_cache_count(worker: _Worker, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    meter = _meter(worker, model_files=(path,))
    path.write_bytes(os.urandom(MIB) * 16)  # appears after the meter looked first
    worker_alone = _meter(worker)
    worker_alone.settle()
    meter.settle()
    assert meter.peak_bytes - worker_alone.peak_bytes == pytest.approx(16 * MIB, abs=MIB)


def test_what_other_programs_read_is_not_counted_where_the_worker_reads_past_the_cache(
    worker: _Worker, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    meter = _meter(worker, model_files=(path,))
    meter.counts_cache = False
    path.write_bytes(os.urandom(MIB) * 16)
    worker_alone = _meter(worker)
    worker_alone.settle()
    meter.settle()
    assert meter.peak_bytes - worker_alone.peak_bytes < MIB


# --- GPUs ---


def test_the_peak_of_each_gpu_is_kept(worker: _Worker) -> None:
    held = {"gpu0": 100, "gpu1": 7}
    asked: list[int] = []

    def gpu_bytes(pid: int) -> dict[str, int]:
        asked.append(pid)
        return dict(held)

    meter = _meter(worker, gpu_bytes=gpu_bytes)
    assert meter.gpu_peak_bytes("gpu0") is None  # nobody has looked yet
    meter.sample()
    held |= {"gpu0": 300, "gpu1": 5}
    meter.settle()
    held |= {"gpu0": 200}
    meter.sample()
    assert (meter.gpu_peak_bytes("gpu0"), meter.gpu_peak_bytes("gpu1")) == (300, 7)
    assert set(asked) == {worker.process.pid}


def test_a_gpu_whose_driver_does_not_say_has_no_peak(worker: _Worker) -> None:
    silent, none = _meter(worker, gpu_bytes=lambda _: {}), _meter(worker)
    for meter in (silent, none):
        meter.sample()
        assert meter.gpu_peak_bytes("gpu0") is None


def test_what_a_gpu_holds_is_not_ram(worker: _Worker) -> None:
    meter = _meter(worker, gpu_bytes=lambda _: {"gpu0": 64 * GIB}, limit_bytes=GIB)
    assert meter.sample() < GIB
    assert meter.peak_bytes < GIB
    assert meter.gpu_peak_bytes("gpu0") == 64 * GIB


def test_the_watch_looks_at_gpus_too(worker: _Worker) -> None:
    seen = threading.Event()

    def gpu_bytes(_: int) -> dict[str, int]:
        seen.set()
        return {"gpu0": 5}

    meter = _meter(worker, gpu_bytes=gpu_bytes)
    meter.start()
    assert seen.wait(5)
    meter.stop()
    assert meter.gpu_peak_bytes("gpu0") == 5


def test_a_gpu_over_its_limit_raises_the_alarm(worker: _Worker) -> None:
    held = {"gpu0": 100, "gpu1": 100}
    rung = threading.Event()
    meter = _meter(
        worker, gpu_bytes=lambda _: dict(held), gpu_limits={"gpu0": 100, "gpu1": 150}, on_overrun=rung.set
    )
    meter.start()
    assert not rung.wait(0.2)
    held["gpu1"] = 151
    assert rung.wait(5)
    meter.stop()
    assert meter.overrun == Overrun(tier="gpu1", held_bytes=151, limit_bytes=150)
