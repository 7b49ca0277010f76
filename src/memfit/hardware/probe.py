"""Probes the machine: asks the file of each part once (cpu.py, ram.py, nvidia.py, drm.py, disks.py), and puts
the answers together.

Measures no speeds.
"""

from __future__ import annotations

import platform

from memfit.hardware.cgroup import read_cgroup
from memfit.hardware.cpu import read_cpu
from memfit.hardware.disks import read_disks
from memfit.hardware.drm import read_drm_gpus
from memfit.hardware.machine import Machine
from memfit.hardware.nvidia import read_gpus
from memfit.hardware.ram import read_ram

__all__ = ["probe"]


def probe() -> Machine:
    """This machine as this process may use it, now. Nothing is cached: free memory changes."""
    cgroup = read_cgroup()
    gpus, gpu_note = read_gpus()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=read_cpu(cgroup),
        ram=read_ram(cgroup),
        gpus=(*gpus, *read_drm_gpus(len(gpus))),
        gpu_note=gpu_note,
        disks=read_disks(),
    )
