"""CPU, RAM, memory modules and disks; then the whole probe on the machine it runs on."""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.hardware.cgroup import Cgroup
from memfit.hardware.cpu import read_cpu
from memfit.hardware.disks import is_rotational, read_disks
from memfit.hardware.machine import Ram
from memfit.hardware.probe import probe
from memfit.hardware.ram import parse_memory_modules, read_ram
from memfit.units import GIB, MIB

_FREE = Cgroup(memory_limit_bytes=None, memory_headroom_bytes=None, cpu_quota=None)

# --- CPU ---


def _cpuinfo(root: Path, text: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(text)
    return root


def test_x86_name_and_instruction_sets(tmp_path: Path) -> None:
    block = "processor\t: 0\nmodel name\t: AMD Ryzen 5 5600X\nflags\t\t: fpu avx2 fma avx avx2x\n\n"
    cpu = read_cpu(_FREE, _cpuinfo(tmp_path, block + block.replace("5600X", "other")))
    assert cpu.model == "AMD Ryzen 5 5600X"
    assert cpu.instruction_sets == ("avx", "fma", "avx2")


def test_arm_takes_the_boards_name(tmp_path: Path) -> None:
    root = _cpuinfo(tmp_path, "processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp\n")
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    cpu = read_cpu(_FREE, root)
    assert cpu.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert cpu.instruction_sets == ("asimd", "asimddp")


def test_without_proc_there_is_still_a_cpu(tmp_path: Path) -> None:
    cpu = read_cpu(_FREE, tmp_path)
    assert cpu.model
    assert cpu.instruction_sets == ()


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (1.5, 2), (2.0, 2), (0.1, 1), (64.0, 6)])
def test_a_cpu_quota_counts_in_whole_cores(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    limits = dataclasses.replace(_FREE, cpu_quota=quota)
    assert read_cpu(limits).logical_cores == cores


# --- RAM ---


@pytest.mark.parametrize(
    ("limit", "headroom", "total", "available"),
    [
        (None, None, 64 * GIB, 40 * GIB),
        (8 * GIB, 6 * GIB, 8 * GIB, 6 * GIB),
        (60 * GIB, 50 * GIB, 60 * GIB, 40 * GIB),  # the machine has less left than the group
        (8 * GIB, -5 * MIB, 8 * GIB, 0),  # a limit lowered below what was in use
        (128 * GIB, 120 * GIB, 64 * GIB, 40 * GIB),  # a limit above what the machine holds
    ],
)
def test_ram_is_the_lesser_of_machine_and_cgroup(
    limit: int | None,
    headroom: int | None,
    total: int,
    available: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    swap = SimpleNamespace(total=2 * GIB, used=GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: swap)
    limits = Cgroup(memory_limit_bytes=limit, memory_headroom_bytes=headroom, cpu_quota=None)
    assert read_ram(limits, tmp_path) == Ram(
        total_bytes=total,
        available_bytes=available,
        physical_bytes=64 * GIB,
        cgroup_limit_bytes=limit,
        swap_total_bytes=2 * GIB,
        swap_used_bytes=GIB,
        type=None,
        megatransfers_per_second=None,
    )


def _module(
    *, kind: int = 0x1A, size: int = 16_384, speed: int = 3_200, configured: int = 0, wide: int = 0
) -> bytes:
    """A "Memory Device" structure of SMBIOS 3.3 (92 bytes), with two strings after it."""
    body = bytearray(92)
    body[0:4] = struct.pack("<BBH", 17, 92, 0x1100)
    body[0x0C:0x0E] = struct.pack("<H", size)
    body[0x12] = kind
    body[0x15:0x17] = struct.pack("<H", speed)
    body[0x20:0x22] = struct.pack("<H", configured)
    body[0x58:0x5C] = struct.pack("<I", wide)
    return bytes(body) + b"DIMM 0\0Bank 0\0\0"


_OTHER = struct.pack("<BBH", 4, 8, 0x400) + b"\x11\x11\0\0" + b"\0\0"  # a CPU without strings
_END = struct.pack("<BBH", 127, 4, 0xFFFF) + b"\0\0"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (_OTHER + _module() + _module() + _END, ("DDR4", 3200)),
        (_module(configured=2_133), ("DDR4", 2133)),  # sold as 3200, runs at 2133
        (_module() + _module(speed=2_666), ("DDR4", 2666)),  # the slowest sets the pace
        (_module(kind=0x22, configured=0xFFFF, wide=70_000), ("DDR5", 70_000)),
        (_module(size=0, speed=9) + _module(), ("DDR4", 3200)),  # an empty slot
        (_module() + _module(kind=0x22), (None, 3200)),
        (_module(kind=7, speed=0), (None, None)),  # a virtual machine's "RAM"
        (b"", (None, None)),
        (_END, (None, None)),
    ],
)
def test_memory_modules(table: bytes, expected: tuple[str | None, int | None]) -> None:
    assert parse_memory_modules(table) == expected


def test_a_table_of_smbios_2_0_has_no_speed() -> None:
    short = bytearray(_module()[:0x15])
    short[1] = 0x15
    assert parse_memory_modules(bytes(short) + b"\0\0") == ("DDR4", None)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_damaged_tables_never_raise(noise: bytes, cut: int) -> None:
    parse_memory_modules(_module()[:cut] + noise + _module())


def test_modules_are_read_from_sysfs(tmp_path: Path) -> None:
    tables = tmp_path / "sys/firmware/dmi/tables"
    tables.mkdir(parents=True)
    (tables / "DMI").write_bytes(_module() + _END)
    ram = read_ram(_FREE, tmp_path)
    assert (ram.type, ram.megatransfers_per_second) == ("DDR4", 3200)


# --- disks ---


def test_a_partition_turns_as_its_disk_does(tmp_path: Path) -> None:
    disk = tmp_path / "sys/devices/pci0/block/sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "queue/rotational").write_text("1\n")
    (disk / "sda1").mkdir()
    classes = tmp_path / "sys/class/block"
    classes.mkdir(parents=True)
    (classes / "sda").symlink_to(disk)
    (classes / "sda1").symlink_to(disk / "sda1")
    assert is_rotational("/dev/sda", tmp_path) is True
    assert is_rotational("/dev/sda1", tmp_path) is True
    (disk / "queue/rotational").write_text("0\n")
    assert is_rotational("/dev/sda1", tmp_path) is False
    assert is_rotational("overlay", tmp_path) is None


def test_disks_are_listed_once_and_a_containers_root_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(device: str, folder: Path, filesystem: str) -> SimpleNamespace:
        return SimpleNamespace(device=device, mountpoint=str(folder), fstype=filesystem)

    data, image = tmp_path / "data", tmp_path / "snap"
    for folder in (data, image, data / "again"):
        folder.mkdir()
    hosts = tmp_path / "hosts"
    hosts.touch()
    real = [
        mount("/dev/sdb1", hosts, "ext4"),  # as containers mount /etc/hosts: a file
        mount("/dev/sda1", data / "again", "ext4"),
        mount("/dev/sda1", data, "ext4"),
        mount("/dev/loop0", image, "squashfs"),
        mount("/dev/sdc1", tmp_path / "gone", "ext4"),
    ]
    root = Path("/")
    everything = [*real, mount("overlay", root, "overlay"), mount("proc", root / "proc", "proc")]
    monkeypatch.setattr(
        psutil,
        "disk_partitions",
        lambda *, all: everything if all else real,
    )
    monkeypatch.setattr(Path, "cwd", lambda: root)
    monkeypatch.setattr(Path, "home", lambda: root)
    assert [(disk.mount, disk.device) for disk in read_disks()] == [
        ("/", "overlay"),
        (str(data), "/dev/sda1"),
    ]


def test_nowhere_to_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deleted working directory and a user without a home leave the real disks."""

    def deleted() -> Path:
        raise FileNotFoundError

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "cwd", deleted)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [])
    assert read_disks() == ()


# --- the whole ---


def test_probe_agrees_with_the_system() -> None:
    machine = probe()
    assert machine.ram.physical_bytes == psutil.virtual_memory().total
    assert 0 < machine.ram.available_bytes <= machine.ram.total_bytes
    assert machine.ram.total_bytes <= machine.ram.physical_bytes
    assert 1 <= machine.cpu.logical_cores <= (os.cpu_count() or 1)
    assert all(0 <= disk.free_bytes <= disk.total_bytes for disk in machine.disks)


def test_probe_loads_nothing_heavy() -> None:
    code = (
        "import sys; from memfit.hardware.probe import probe; probe(); "
        "print([n for n in ('torch', 'numpy', 'rich', 'llama_cpp') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
