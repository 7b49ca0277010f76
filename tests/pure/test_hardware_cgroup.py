"""Limits of control groups: made-up trees for what this machine lacks, and one real group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfit.hardware.cgroup import Cgroup, read_cgroup
from memfit.units import GIB, MIB

_NONE = Cgroup(memory_limit_bytes=None, memory_headroom_bytes=None, cpu_quota=None)
_V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
_V1_MOUNTS = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
)
_V1_SENTINEL = "9223372036854771712"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def _version_2(root: Path, files: dict[str, str], *, group: str, mount: str = _V2_MOUNT) -> Cgroup:
    names = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    proc = {"proc/self/mountinfo": mount, "proc/self/cgroup": f"0::{group}"}
    return read_cgroup(_tree(root, proc | names))


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert read_cgroup(tmp_path) == _NONE


def test_version_2_counts_no_page_cache(tmp_path: Path) -> None:
    """Neither what was read once nor what was read often, but what is still to be written."""
    found = _version_2(
        tmp_path,
        {
            "cgroup.controllers": "cpu memory",  # the root itself has no memory.max
            "user/memory.max": str(4 * GIB),
            "user/memory.current": str(3 * GIB),
            "user/memory.stat": f"anon 5\nfile 9\nshmem 3\ninactive_file {GIB}\nactive_file {GIB}\n"
            f"file_dirty {256 * MIB}\nfile_writeback {256 * MIB}\nslab_reclaimable {128 * MIB}\n",
            "user/cpu.max": "150000 100000",
        },
        group="/user",
    )
    kept = 4 * GIB // 64
    assert found == Cgroup(
        memory_limit_bytes=4 * GIB,
        memory_headroom_bytes=GIB + 2 * GIB - 512 * MIB + 128 * MIB - kept,
        cpu_quota=1.5,
    )


@pytest.mark.parametrize(
    ("cached", "dirty", "free"),
    [
        (0, 0, 100 * MIB),
        (2 * MIB, 0, 101 * MIB),  # of little, half is kept
        (300 * MIB, 0, 100 * MIB + 300 * MIB - 16 * MIB),
        (300 * MIB, 300 * MIB, 100 * MIB),
        (300 * MIB, 400 * MIB, 100 * MIB),  # the kernel counts both at different moments
        (2 * GIB, 0, GIB),  # so does it here: not more than is used can be given back
    ],
)
def test_what_of_the_page_cache_is_free(tmp_path: Path, cached: int, dirty: int, free: int) -> None:
    files = {
        "a/memory.max": str(GIB),
        "a/memory.current": str(GIB - 100 * MIB),
        "a/memory.stat": f"active_file {cached}\nfile_dirty {dirty}",
    }
    assert _version_2(tmp_path, files, group="/a").memory_headroom_bytes == free


def test_the_swap_that_groups_allow(tmp_path: Path) -> None:
    files = {"a/memory.swap.max": str(MIB), "a/b/memory.swap.max": "max", "a/b/memory.max": str(GIB)}
    assert _version_2(tmp_path, files, group="/a/b").swap_limit_bytes == MIB


def test_version_2_max_is_no_limit(tmp_path: Path) -> None:
    files = {"user/memory.max": "max", "user/memory.high": "max", "user/cpu.max": "max 100000"}
    assert _version_2(tmp_path, files, group="/user") == _NONE


def test_version_2_throttling_starts_at_memory_high(tmp_path: Path) -> None:
    files = {"a/memory.max": str(2 * GIB), "a/memory.high": str(GIB), "a/memory.current": "0"}
    assert _version_2(tmp_path, files, group="/a").memory_limit_bytes == GIB


def test_every_group_up_to_the_root_counts(tmp_path: Path) -> None:
    """The middle group has the least memory, the outer one the least left, the inner one CPU."""
    found = _version_2(
        tmp_path,
        {
            "a/memory.max": str(8 * GIB),
            "a/memory.current": str(8 * GIB - 100 * MIB),
            "a/cpu.max": "400000 100000",
            "a/b/memory.max": str(2 * GIB),
            "a/b/memory.current": str(GIB),
            "a/b/c/memory.max": "max",
            "a/b/c/cpu.max": "50000 100000",
            "other/memory.max": "1",
        },
        group="/a/b/c",
    )
    assert found == Cgroup(memory_limit_bytes=2 * GIB, memory_headroom_bytes=100 * MIB, cpu_quota=0.5)


@pytest.mark.parametrize("group", ["/docker/0123", "/../../init.scope", "/"])
def test_a_namespace_that_hides_the_path_falls_back_to_the_mount(group: str, tmp_path: Path) -> None:
    files = {"memory.max": str(GIB), "memory.current": str(MIB)}
    found = _version_2(tmp_path, files, group=group)
    assert found.memory_limit_bytes == GIB
    assert found.memory_headroom_bytes == GIB - MIB


def test_a_container_mount_that_starts_at_its_own_group(tmp_path: Path) -> None:
    """Without a cgroup namespace the path is the host's; the mount tells which group is its top."""
    mount = _V2_MOUNT.replace("0:26 /", "0:26 /docker/0123", 1)
    files = {"memory.max": str(2 * GIB), "job/memory.max": str(GIB), "job/memory.current": "0"}
    found = _version_2(tmp_path, files, group="/docker/0123/job", mount=mount)
    assert found.memory_limit_bytes == GIB


def _version_1(root: Path, files: dict[str, str], *, group: str, extra: str = "") -> Cgroup:
    names = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    proc = {
        "proc/self/mountinfo": _V1_MOUNTS + extra,
        "proc/self/cgroup": f"4:memory:{group}\n2:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/",
    }
    return read_cgroup(_tree(root, proc | names))


def test_version_1(tmp_path: Path) -> None:
    found = _version_1(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": _V1_SENTINEL,
            "memory/memory.usage_in_bytes": str(9 * GIB),
            "memory/job/memory.limit_in_bytes": str(2 * GIB),
            "memory/job/memory.usage_in_bytes": str(GIB),
            "memory/job/memory.stat": f"inactive_file 1\nactive_file 1\ntotal_inactive_file {128 * MIB}\n"
            f"total_active_file {256 * MIB}\ntotal_dirty {64 * MIB}\ntotal_writeback {64 * MIB}",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        group="/job",
    )
    kept = 2 * GIB // 64
    assert found == Cgroup(
        memory_limit_bytes=2 * GIB, memory_headroom_bytes=GIB + 256 * MIB - kept, cpu_quota=2.5
    )


def test_version_1_limits_memory_and_swap_together(tmp_path: Path) -> None:
    """Of 1.5 GiB for both, 0.9 GiB are in swap and 0.5 in memory: 0.1 are left, not half of the memory."""
    found = _version_1(
        tmp_path,
        {
            "memory/job/memory.limit_in_bytes": str(GIB),
            "memory/job/memory.usage_in_bytes": str(500 * MIB),
            "memory/job/memory.memsw.limit_in_bytes": str(GIB + 512 * MIB),
            "memory/job/memory.memsw.usage_in_bytes": str(1400 * MIB),
        },
        group="/job",
    )
    assert (found.memory_headroom_bytes, found.swap_limit_bytes) == (136 * MIB, 512 * MIB)


def test_version_1_sentinel_and_minus_one_are_no_limits(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": _V1_SENTINEL,
        "memory/memory.stat": f"hierarchical_memory_limit {_V1_SENTINEL}",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert _version_1(tmp_path, files, group="/") == _NONE


def test_version_1_tells_of_a_limit_above_the_mount(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": _V1_SENTINEL,
        "memory/memory.usage_in_bytes": str(MIB),
        "memory/memory.stat": f"hierarchical_memory_limit {GIB}",
    }
    assert _version_1(tmp_path, files, group="/kubepods/pod1").memory_limit_bytes == GIB


def test_hybrid_takes_memory_from_version_1(tmp_path: Path) -> None:
    """As systemd's hybrid mode: version 2 is mounted too, without any controller."""
    found = _version_1(
        tmp_path,
        {
            "memory/job/memory.limit_in_bytes": str(GIB),
            "memory/job/memory.usage_in_bytes": "0",
            "unified/cgroup.controllers": "",
        },
        group="/job",
        extra="\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    )
    assert found.memory_limit_bytes == GIB


def test_damaged_files_are_no_limits(tmp_path: Path) -> None:
    files = {"a/memory.max": "²", "a/memory.stat": "x\ny z\n", "a/cpu.max": "1 0"}
    mount = f"{_V2_MOUNT}\nshort - cgroup2\n - \n"
    assert _version_2(tmp_path, files, group="/a", mount=mount) == _NONE


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group whose memory can be limited; gone after the test."""
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory/memory.limit_in_bytes").exists()
    enabled = root / "cgroup.subtree_control"
    if not version_1 and not (enabled.exists() and "memory" in enabled.read_text().split()):
        pytest.skip("no memory controller is mounted here")
    group = (root / "memory" if version_1 else root) / f"memfit-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group here: {error}")
    yield group
    for _ in range(50):  # the kernel lets go of a dead process's group after a moment
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.02)
    group.rmdir()


_PROBE_INSIDE = """
import dataclasses, json, os, pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
held = bytearray(64 << 20)
from memfit.hardware.probe import probe
print(json.dumps(dataclasses.asdict(probe().ram)))
"""


@pytest.mark.cgroup
def test_a_real_limit_is_seen_by_the_process_inside(real_group: Path) -> None:
    name = "memory.limit_in_bytes" if "memory" in real_group.parts else "memory.max"
    (real_group / name).write_text(str(512 * MIB))
    done = subprocess.run(
        [sys.executable, "-c", _PROBE_INSIDE, str(real_group)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ram = json.loads(done.stdout)
    assert ram["cgroup_limit_bytes"] == ram["total_bytes"] == 512 * MIB
    assert ram["physical_bytes"] > 512 * MIB
    # 64 MiB are held by the process itself; the rest of its use is the interpreter's.
    assert 400 * MIB < ram["available_bytes"] < 448 * MIB


_READ_INSIDE = """
import dataclasses, json, os, pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
for _ in range(3):
    with open(sys.argv[2], "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
from memfit.hardware.probe import probe
print(json.dumps(dataclasses.asdict(probe().ram)))
"""


@pytest.mark.cgroup
def test_what_was_read_again_and_again_is_free_in_a_real_group(real_group: Path) -> None:
    """As a container that has run a model before: the kernel calls such pages active."""
    name = "memory.limit_in_bytes" if "memory" in real_group.parts else "memory.max"
    (real_group / name).write_text(str(512 * MIB))
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.truncate(384 * MIB)  # a hole is cached as any other page
        done = subprocess.run(
            [sys.executable, "-c", _READ_INSIDE, str(real_group), file.name],
            capture_output=True,
            text=True,
            timeout=60,
        )
        statistics = dict(line.split() for line in (real_group / "memory.stat").read_text().splitlines())
    assert done.returncode == 0, done.stderr
    assert int(statistics.get("total_active_file", statistics["active_file"])) > 300 * MIB
    assert 440 * MIB < json.loads(done.stdout)["available_bytes"] < 512 * MIB
