"""The probe against the driver's own command line tool."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from memfit.hardware.nvidia import read_gpus
from memfit.units import MIB

_SLACK_BYTES = 64 * MIB  # other programs may take and give back memory between the two questions


@pytest.mark.gpu
def test_the_probe_agrees_with_nvidia_smi() -> None:
    tool = shutil.which("nvidia-smi")
    gpus, note = read_gpus()
    if tool is None or not gpus:
        pytest.skip(f"no NVIDIA GPU that can be used here ({note or 'no driver'})")
    fields = "name,driver_version,memory.total,memory.free,compute_cap"
    for gpu in gpus:
        command = [
            tool,
            f"--id={gpu.index}",
            f"--query-gpu={fields}",
            "--format=csv,noheader,nounits",
        ]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        name, driver, total, free, capability = answer.stdout.strip().split(", ")
        assert (gpu.name, gpu.driver, gpu.compute_capability) == (name, driver, capability)
        assert abs(gpu.total_bytes - int(total) * MIB) <= MIB
        assert abs(gpu.free_bytes - int(free) * MIB) <= _SLACK_BYTES
