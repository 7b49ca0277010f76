"""Probes the machine: CPU, RAM, cgroup limits, GPUs, disks. Knows nothing of models."""
