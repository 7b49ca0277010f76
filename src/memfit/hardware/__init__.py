"""Probes the machine: CPU, RAM, cgroup limits, GPUs, disks. Knows nothing of models."""

from memfit.hardware.probe import probe

__all__ = ["probe"]
