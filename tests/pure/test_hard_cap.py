"""Caps by memory cgroups: made-up trees of both versions, and a real group whose process is killed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfit.errors import UsageError
from memfit.hardware.cgroup import memory_group
from memfit.memory.hard_cap import HardCap
from memfit.units import GIB, MIB

_MOUNTS = {
    1: "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    2: "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
}
_FOLDERS = {1: "sys/fs/cgroup/memory/job", 2: "sys/fs/cgroup/job"}
_NEW = {  # what the kernel puts into a new group
    1: {"memory.memsw.limit_in_bytes": "-1", "memory.max_usage_in_bytes": "77"},
    2: {"memory.swap.max": "max", "memory.peak": "77"},
}
_LIMIT = GIB + 4 * MIB + 2 * MIB  # 4 MiB, and 8 bytes for each of GiB / 4096 pages


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def root(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree in which groups come and go as the kernel has it."""
    own = tmp_path / _FOLDERS[version]
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory\n")
    (own / "cgroup.subtree_control").write_text("cpu\n")
    (own / "cgroup.procs").touch()
    self = tmp_path / "proc/self"
    self.mkdir(parents=True)
    (tmp_path / f"proc/{os.getpid()}").mkdir()
    (self / "mountinfo").write_text(_MOUNTS[version] + "\n")
    (self / "cgroup").write_text("4:memory:/job\n0::/\n" if version == 1 else "0::/job\n")
    make = Path.mkdir

    def mkdir(path: Path, **options: bool) -> None:
        make(path, **options)
        if path.name.startswith("memfit-"):
            for name, text in _NEW[version].items():
                (path / name).write_text(text)

    def rmdir(path: Path) -> None:
        shutil.rmtree(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    return tmp_path


def _read(folder: Path, name: str) -> str:
    return (folder / name).read_text().strip()


def test_limit_swap_and_processes(root: Path, version: int) -> None:
    own = root / _FOLDERS[version]
    cap = HardCap(GIB, holds_us=True, root=root)
    assert cap.folder.parent == own
    assert _read(cap.folder, "cgroup.procs") == f"{os.getpid()}"
    assert cap.limit_bytes == _LIMIT
    assert cap.peak_bytes == 77
    if version == 1:
        assert _read(cap.folder, "memory.limit_in_bytes") == f"{_LIMIT}"
        assert _read(cap.folder, "memory.memsw.limit_in_bytes") == f"{_LIMIT}"  # RAM and swap together
        assert _read(own, "cgroup.subtree_control") == "cpu"
    else:
        assert _read(cap.folder, "memory.max") == f"{_LIMIT}"
        assert _read(cap.folder, "memory.swap.max") == "0"
        assert _read(own, "cgroup.subtree_control") == "+memory"
    cap.enter(1)
    assert _read(cap.folder, "cgroup.procs") == "1"
    cap.close()
    assert not cap.folder.exists()
    assert _read(own, "cgroup.procs") == f"{os.getpid()}"
    cap.close()  # safe to repeat


def test_without_ourselves_and_without_swap(
    root: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_NEW, version, {})
    own = root / _FOLDERS[version]
    cap = HardCap(GIB, holds_us=False, root=root)
    assert not (cap.folder / "cgroup.procs").exists()
    assert not list(cap.folder.glob("*swap*"))
    assert cap.peak_bytes is None  # an older kernel
    cap.close()
    assert _read(own, "cgroup.procs") == ""


@pytest.mark.parametrize(
    ("text", "killed"),
    [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", False),
        ("low 0\noom 3\noom_kill 2\n", True),
        ("", False),
    ],
)
def test_what_the_kernel_says_of_kills(root: Path, version: int, text: str, killed: bool) -> None:
    cap = HardCap(GIB, holds_us=False, root=root)
    (cap.folder / ("memory.oom_control" if version == 1 else "memory.events")).write_text(text)
    assert cap.has_killed is killed


def test_groups_of_the_dead_are_removed(root: Path, version: int) -> None:
    own = root / _FOLDERS[version]
    (own / "memfit-999999-0").mkdir()
    (own / f"memfit-{os.getpid()}-x").mkdir()  # of a living process
    (own / "others").mkdir()
    cap = HardCap(GIB, holds_us=False, root=root)
    left = {path.name for path in own.iterdir() if path.is_dir()}
    assert left == {f"memfit-{os.getpid()}-x", "others", cap.folder.name}


def test_where_the_kernel_refuses(root: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which file and why, and nothing is left."""
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path.name in ("memory.limit_in_bytes", "cgroup.subtree_control"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(
        UsageError, match=r"--hard-cap: .*(limit_in_bytes|subtree_control): .*busy.*systemd-run"
    ):
        HardCap(GIB, holds_us=True, root=root)
    own = root / _FOLDERS[version]
    assert not list(own.glob("memfit-*"))
    assert _read(own, "cgroup.procs") == f"{os.getpid()}"


def test_without_a_memory_controller(tmp_path: Path) -> None:
    assert memory_group(tmp_path) is None
    with pytest.raises(UsageError, match="no memory cgroup here"):
        HardCap(GIB, holds_us=True, root=tmp_path)


@pytest.fixture
def real_cap() -> Iterator[HardCap]:
    try:
        cap = HardCap(60 * MIB, holds_us=False)
    except UsageError as error:
        pytest.skip(f"{error}")
    yield cap
    cap.close()


_HOLD = "import sys; sys.stdin.readline(); held = bytearray(int(sys.argv[1]) << 20); print('held')"


@pytest.mark.cgroup
@pytest.mark.parametrize(("mebibytes", "killed"), [(40, False), (80, True)])
def test_the_kernel_keeps_it(real_cap: HardCap, mebibytes: int, killed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, f"{mebibytes}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        real_cap.enter(process.pid)
        out, _ = process.communicate("\n", timeout=60)
    assert (out, process.returncode) == (("", -9) if killed else ("held\n", 0))
    assert real_cap.has_killed is killed
    peak = real_cap.peak_bytes
    assert peak is None or 40 * MIB < peak <= real_cap.limit_bytes
    real_cap.close()
    assert not real_cap.folder.exists()
