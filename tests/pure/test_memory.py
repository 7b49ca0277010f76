"""What processes hold: sums made by hand, and this machine's processes against psutil."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import make_graph

from memfit.memory.estimate import DeviceBytes, LlamaConfig, MemoryEstimate
from memfit.memory.others import process_tree, ram_shared
from memfit.memory.process_memory import (
    Baseline,
    ProcessMemory,
    disk_read_bytes,
    group_bytes,
    process_memory,
    process_status,
)
from memfit.units import MIB


@contextmanager
def _child(code: str) -> Iterator[int]:
    """A process that has run `code` and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield process.pid
    finally:
        process.communicate(b"\n", timeout=20)


def test_an_answers_total_by_hand() -> None:
    device = DeviceBytes(weights_bytes=10**6, kv_cache_bytes=0, compute_bytes=0, scratch_bytes=0)
    answer = MemoryEstimate(
        context=256,
        weights_bytes=1,
        kv_cache_bytes=20,
        compute_bytes=300,
        scratch_bytes=4000,
        process_bytes=50000,
        generation=make_graph(),
        prompt=make_graph(tokens=512),
        devices=(device, device),
    )
    assert answer.total_bytes == 54321  # in RAM


def test_a_devices_total_by_hand() -> None:
    device = DeviceBytes(weights_bytes=1, kv_cache_bytes=20, compute_bytes=300, scratch_bytes=4000)
    assert device.total_bytes == 4321


def _parameters(**changes: Any) -> LlamaConfig:
    values: dict[str, Any] = {
        "paths": (Path("/models/one.gguf"), Path("/models/two.gguf")),
        "context": 4096,
        "parallel": 2,
        "kv_type": "q8_0",
        "ubatch": 512,
        "threads": 6,
        "repack": True,
        "load_mode": "read",
        **changes,
    }
    return LlamaConfig(**values)


@pytest.mark.parametrize(
    "parameters",
    [
        _parameters(),
        _parameters(
            devices=("CUDA0", "host:1"),
            layers=(3, 0),
            overrides=((r"^blk\.(0|1)\.(ffn_up)\.", 2), (r"^(output|token_embd)", 0)),
        ),
    ],
)
def test_parameters_survive_json(parameters: LlamaConfig) -> None:
    """They are keys of what was asked before, so they must be equal and hashable again."""
    again = LlamaConfig.from_json(json.loads(json.dumps(parameters.to_json())))
    assert again == parameters
    assert hash(again) == hash(parameters)


def test_relative_paths_become_absolute_in_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # the worker may be elsewhere
    assert _parameters(paths=(Path("one.gguf"),)).to_json()["paths"] == [str(tmp_path / "one.gguf")]


def test_a_group_by_hand() -> None:
    """libc once at its larger use; what only one maps whole; anonymous memory all of it."""
    first = ProcessMemory(anonymous_bytes=1000, files={"libc": 50, "python": 7})
    second = ProcessMemory(anonymous_bytes=200, files={"libc": 60, "ggml": 3})
    assert (first.total_bytes, second.total_bytes) == (1057, 263)
    assert group_bytes([first, second]) == 1000 + 200 + 60 + 7 + 3
    assert group_bytes([first]) == 1057
    assert group_bytes([]) == 0


def test_a_baseline_by_hand() -> None:
    parent = ProcessMemory(anonymous_bytes=1000, files={"libc": 50})
    worker = ProcessMemory(anonymous_bytes=300, files={"libc": 60})
    assert Baseline(parent=parent, decode_bytes=9).with_worker(worker) == 1369
    assert Baseline(parent=None, decode_bytes=9).with_worker(worker) == 369


def test_this_process_against_psutil() -> None:
    ours, theirs = process_memory(), psutil.Process().memory_full_info()
    assert ours.total_bytes == pytest.approx(theirs.rss, rel=0.03)
    # Unique memory is the anonymous part, and private file pages at most.
    private_files = theirs.uss - ours.anonymous_bytes
    assert -0.03 * theirs.uss <= private_files <= 1.03 * sum(ours.files.values())
    status = process_status(os.getpid())
    assert status.resident_bytes == pytest.approx(theirs.rss, rel=0.03)
    assert status.peak_resident_bytes >= 0.97 * theirs.rss
    assert status.swapped_bytes == pytest.approx(theirs.swap, abs=MIB)
    assert status.kept_bytes == pytest.approx(theirs.rss - theirs.shared, rel=0.03)


def test_what_a_tree_of_processes_holds_is_not_others() -> None:
    with _child("data = bytearray(300 << 20)") as pid:
        assert {os.getpid(), pid} <= set(process_tree(os.getpid()))
        assert list(process_tree(pid)) == [pid]
        without, counted = ram_shared([]), ram_shared([pid])
    assert without.others_bytes - counted.others_bytes == pytest.approx(300 * MIB, rel=0.3)
    assert 0 <= counted.others_bytes < counted.capacity_bytes <= psutil.virtual_memory().total
    assert list(process_tree(pid)) == []  # it has ended


def test_a_child_against_psutil() -> None:
    with _child("data = bytearray(20 << 20)") as pid:
        ours, theirs = process_memory(pid), psutil.Process(pid).memory_full_info()
        assert ours.total_bytes == pytest.approx(theirs.rss, rel=0.02)
        assert any(Path(name).name.startswith("libc") for name in ours.files)


_FIFTY_MEBIBYTES = """
import mmap
with mmap.mmap(-1, 50 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as data:
    data.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page at its edge would hold what lies beside it too
    print("ready", flush=True)
    input()
    for at in range(0, len(data), mmap.PAGESIZE):
        data[at] = 1
    print("written", flush=True)
    input()
"""


def test_fifty_mebibytes_are_fifty_mebibytes() -> None:
    # In a process of its own: in this one, other tests leave threads that allocate.
    with subprocess.Popen(
        [sys.executable, "-c", _FIFTY_MEBIBYTES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        found = []
        for word in (b"ready\n", b"written\n"):
            assert child.stdout.readline() == word
            found.append(process_memory(child.pid))
            child.stdin.write(b"\n")
    before, after = found
    assert after.anonymous_bytes - before.anonymous_bytes == pytest.approx(50 * MIB, abs=MIB)
    assert sum(after.files.values()) == pytest.approx(sum(before.files.values()), abs=MIB)


def test_a_mapped_file_is_counted_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a file - with a dash and spaces.bin"
    path.write_bytes(bytes(8 * MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"x") == -1  # reads every page
        assert process_memory().files[str(path)] == 8 * MIB


def test_a_file_that_two_processes_map_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "shared.bin"
    path.write_bytes(bytes(32 * MIB))
    read = (
        f"import mmap\nfile = open({str(path)!r}, 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\nmapped.find(b'x')"
    )
    with _child(read) as first, _child(read) as second:
        one, other = process_memory(first), process_memory(second)
    assert one.files[str(path)] == other.files[str(path)] == 32 * MIB
    shared = one.total_bytes + other.total_bytes - group_bytes([one, other])
    assert 32 * MIB <= shared < 48 * MIB  # and the libraries


def test_shared_anonymous_memory_of_two_processes_is_counted_twice() -> None:
    hold = "import mmap\nheld = mmap.mmap(-1, 32 << 20)\nheld.write(b'x' * (32 << 20))"
    with _child(hold) as first, _child(hold) as second:
        assert group_bytes([process_memory(first), process_memory(second)]) > 64 * MIB


def test_the_peak_stays_when_memory_is_given_back() -> None:
    with _child("data = bytearray(b'x' * (64 << 20))\ndel data") as pid:
        status = process_status(pid)
        assert status.peak_resident_bytes > 64 * MIB > status.resident_bytes


def test_bytes_read_from_disk_are_at_least_those_of_a_dropped_file(tmp_path: Path) -> None:
    assert 0 <= disk_read_bytes(os.getpid()) == psutil.Process().io_counters().read_bytes


def _gone() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait(timeout=20)
    return done.pid


@pytest.mark.parametrize("read", [process_memory, process_status, disk_read_bytes])
def test_a_process_that_is_gone(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProcessLookupError, match="has ended"):
        read(_gone())


@pytest.mark.parametrize(
    "read",
    [
        process_memory,
        process_status,
    ],
)
def test_a_zombie_has_ended_too(read) -> None:  # type: ignore[no-untyped-def]
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
        with pytest.raises(ProcessLookupError):
            read(process.pid)
    finally:
        process.wait(timeout=20)
