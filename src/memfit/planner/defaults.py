"""What both engines' planners start from where nobody asked for anything else."""

from __future__ import annotations

from memfit.hardware.machine import Machine
from memfit.planner.request import Workload

__all__ = ["ASSUMED_DISK", "UBATCHES", "context_of", "thread_count"]

ASSUMED_DISK = (0.7e9, 1.5e9)  # bytes per second: an older NVMe drive, or two SATA ones
UBATCHES = (512, 256, 128, 64, 32)  # worth trying, the largest first
_CONTEXT = 4096


def context_of(workload: Workload, longest: int | None) -> int:
    """Tokens: asked for, or 4096, or the `longest` that the model was trained for if that is less."""
    return workload.context or min(_CONTEXT, longest or _CONTEXT)


def thread_count(machine: Machine, workload: Workload) -> int:
    """Threads to compute with: asked for, or the physical cores this process may use."""
    return workload.threads or max(1, min(machine.cpu.physical_cores, machine.cpu.logical_cores))
