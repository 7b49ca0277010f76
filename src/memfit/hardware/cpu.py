"""The CPU: its name, the cores that this process may use, the instructions that matter here."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
from pathlib import Path

import psutil

from memfit.hardware.cgroup import Cgroup, kernel_text
from memfit.hardware.machine import Cpu

__all__ = ["INSTRUCTION_SETS", "read_cpu"]

# Those for which the engine has kernels, as Linux names them in /proc/cpuinfo.
INSTRUCTION_SETS = (
    *("avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni"),
    *("avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "sve"),  # Arm
)


def read_cpu(cgroup: Cgroup, root: Path = Path("/")) -> Cpu:
    """Without Linux's /proc the instruction sets stay empty, and the name is what Python knows."""
    first = _first_processor(root / "proc/cpuinfo")
    flags = (first.get("flags") or first.get("Features") or "").split()
    logical = _usable_cores(cgroup)
    return Cpu(
        model=first.get("model name") or _name(root),
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
    )


def _usable_cores(cgroup: Cgroup) -> int:
    """By affinity and quota. A quota of 1.5 cores is 2: the second is busy half of the time."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if cgroup.cpu_quota is not None:
        cores = min(cores, math.ceil(cgroup.cpu_quota))
    return max(cores, 1)


def _first_processor(path: Path) -> dict[str, str]:
    """The first processor's block: on large machines the kernel takes long to write all of them."""
    values: dict[str, str] = {}
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        for line in itertools.takewhile(str.strip, lines):
            key, _, value = line.partition(":")
            values[key.strip()] = value.strip()
    return values


def _name(root: Path) -> str:
    """Arm kernels name the board instead of the CPU: "Raspberry Pi 5 Model B Rev 1.0"."""
    board = kernel_text(root / "proc/device-tree/model").strip("\0\n ")
    # On Linux platform.processor() starts a process and learns nothing more.
    return board or (platform.system() != "Linux" and platform.processor()) or platform.machine()
