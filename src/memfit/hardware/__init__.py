"""Probes the machine: CPU, RAM, cgroup limits, GPUs, disks. `profiles/*.json` describe machines that are not
here.

Knows nothing of models.
"""
