"""Budgets that the kernel keeps: runs inside a memory cgroup, and one that it has to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import memfit
from conftest import children_of, run_memfit
from memfit.errors import DoesNotFitError, UsageError, WorkerDiedError
from memfit.hardware.cgroup import memory_group
from memfit.memory import hard_cap
from memfit.units import MIB

pytestmark = [pytest.mark.engine, pytest.mark.cgroup]


@pytest.fixture(autouse=True)
def groups() -> Iterator[None]:
    """Skips where none can be made; none is left."""
    try:
        hard_cap.HardCap(100 * MIB, holds_us=False).close()
    except UsageError as error:
        pytest.skip(f"{error}")
    yield
    own = memory_group()
    assert own is not None
    assert list(own.folder.glob(f"memfit-{os.getpid()}-*")) == []


def _plan(ram: str) -> memfit.Plan:
    workload = memfit.Workload(context=1024, repack="off")
    return memfit.plan("demo", budget=memfit.Budget(ram=ram), workload=workload)


_IN_A_CONTAINER = """
import os, pathlib, subprocess, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
for _ in range(3):
    with open(sys.argv[2], "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
sys.exit(subprocess.run([sys.executable, "-m", "memfit", "plan", "demo", "--json"]).returncode)
"""


def test_a_small_container_whose_page_cache_is_full() -> None:
    """Of 700 MiB, a file that was read three times takes 640: the demo fits all the same, without --ram."""
    cap = hard_cap.HardCap(700 * MIB, holds_us=False)
    try:
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            file.truncate(640 * MIB)  # a hole is cached as any other page
            command = [sys.executable, "-c", _IN_A_CONTAINER, str(cap.folder), file.name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        # All but a sixteenth, the page cache's own share and what the interpreter holds.
        assert plan["fits"] and 600 * MIB < plan["tiers"][0]["budget_bytes"] < 660 * MIB
    finally:
        cap.close()


@pytest.mark.parametrize(
    ("ram", "repack", "mode"),
    [("170MiB", "off", "own"), ("230MiB", "off", "mmap"), ("260MiB", "on", "read")],
)
def test_a_run_inside(ram: str, repack: str, mode: str) -> None:
    options = ("demo", "--ctx", "1024", "--ram", ram, "--repack", repack, "--hard-cap")
    run = run_memfit(
        "run",
        *options,
        "-p",
        "The capital of France is",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "3",
        "--json",
    )
    assert run.code == 0, run.err
    assert run.json["text"].strip().startswith("Paris")
    assert run.json["plan"]["load_mode"] == mode
    cap, (tier,) = run.json["measured"]["hard_cap"], run.json["measured"]["tiers"]
    assert cap["limit_bytes"] < tier["budget_bytes"]  # the rest was held by the command line before
    assert cap["peak_bytes"] is None or 0 < cap["peak_bytes"] <= cap["limit_bytes"]
    own = memory_group()
    assert own is not None
    groups = own.folder.glob("memfit-*-*")  # those of tests beside this one have their process still
    assert [one for one in groups if not Path(f"/proc/{one.name.split('-')[1]}").exists()] == []


def test_the_kernel_ends_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_cap, "_KERNEL_BYTES", -80 * MIB)  # so that nothing else stops it before
    with pytest.raises(DoesNotFitError, match="kernel ended the worker at the hard cap") as caught:
        memfit.load(_plan("150MiB"), hard_cap=True)
    assert caught.value.exit_code == 3
    assert children_of(os.getpid()) == []


def test_a_worker_that_dies_otherwise() -> None:
    with memfit.load(_plan("170MiB"), hard_cap=True) as session:
        os.kill(session.worker_pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            session.generate("Once upon a time")


def test_what_a_killed_parent_leaves_is_removed_by_the_next() -> None:
    own = memory_group()
    assert own is not None
    options = ("--ram", "170MiB", "--ctx", "1024", "--raw", "-p", "Once upon a time", "--hard-cap")
    with subprocess.Popen(
        [sys.executable, "-m", "memfit", "run", "demo", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None and process.stdout.read(1)
        process.kill()
    (left,) = own.folder.glob(f"memfit-{process.pid}-*")
    deadline = time.monotonic() + 10
    while (left / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)  # the worker ends by itself
    hard_cap.HardCap(100 * MIB, holds_us=False).close()
    assert not left.exists()


def test_two_at_once() -> None:
    with (
        memfit.load(_plan("170MiB"), hard_cap=True) as one,
        memfit.load(_plan("170MiB"), hard_cap=True) as two,
    ):
        texts = {
            each.generate("The capital of France is", memfit.Sampling(temperature=0, max_tokens=2)).text
            for each in (one, two)
        }
        assert len(texts) == 1
        groups = {Path(f"/proc/{each.worker_pid}/cgroup").read_text() for each in (one, two)}
        assert len(groups) == 2
