"""The engine's own kernels on this CPU: every family that is calibrated computes, on a busy machine too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import rpc_server
from memfit.engines.llamacpp import calibrate
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.errors import EngineError

pytestmark = pytest.mark.engine

# In a process of its own, since only workers load the engine. Its bench takes every run for a clean one.
_BENCH = """
import json, sys
from memfit.engines.llamacpp import kernels
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.library import load_library

kernels._WAITED, kernels._CLEAN_RUNS, kernels._LEAST_SECONDS = 1e12, 1, 0.0
library = load_library()
library.api.llama_backend_init()
asked = json.loads(sys.argv[1])
devices = Devices(library, dummies=False)
device, threads = (devices.find([asked["device"]])[0], None) if asked["device"] else (devices.cpu, 1)
with kernels.Bench(library, device, threads=threads, repack=asked["repack"]) as bench:
    found = [bench.weights(name) for name in asked["types"]]
    found += [bench.attention(name) for name in asked["attention"]]
print(json.dumps(found))
"""


def _bench(
    types: tuple[str, ...], attention: tuple[str, ...], *, repack: bool = False, device: str | None = None
) -> dict[str, Any]:
    asked = {"types": types, "attention": attention, "repack": repack, "device": device}
    command = [sys.executable, "-c", _BENCH, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip((*types, *attention), json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_every_family_computes_on_this_cpu() -> None:
    found = _bench((*calibrate._TYPES, "experts Q4_K/256"), calibrate._ATTENTION)
    assert len(found) == 16 + 1 + 10
    # A head of 80 numbers is no whole number of Q8_0's blocks of 32: the engine has no such cache.
    assert [name for name, rates in found.items() if rates is None] == ["Q8_0/80"]
    assert all(rate > 0 for rates in found.values() if rates for rate in rates.values())


def test_types_that_are_not_repacked_are_told_apart() -> None:
    found = _bench((*calibrate._TYPES, "experts F32", "experts Q4_K"), (), repack=True)
    assert found["F32"] is None and found["BF16"] is None
    assert found["experts F32"] is None
    assert all(rate > 0 for rates in found.values() if rates for rate in rates.values())


def test_a_remote_device_is_waited_for() -> None:
    """Computing behind RPC only sends a request. Timed alone, that seems hundreds of times faster."""
    with rpc_server("512MiB", "--threads", "1") as worker:
        remote = _bench(("Q4_1",), ("F16/64",), device=worker.endpoint)
    here = _bench(("Q4_1",), ("F16/64",))
    for name, rates in here.items():
        for kind, rate in rates.items():
            assert remote[name][kind] < 20 * rate, (name, kind)


def test_everything_is_measured_and_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate, "_TYPES", ("Q8_0",))
    monkeypatch.setattr(calibrate, "_ATTENTION", ("F16/64", "Q8_0/80"))
    path = tmp_path / "calibration.json"
    calibration = LlamaCalibration(cpu_model="this CPU", say=pytest.fail, path=path)
    progress: list[float] = []
    try:
        measured = calibration.measure_all(
            [None], threads=1, folders=(tmp_path,), on_progress=lambda done, _: progress.append(done)
        )
    except EngineError as error:
        if "busy" not in str(error):
            raise
        assert not path.exists()
        pytest.skip(str(error))
    assert progress == [
        0,
        1 / 6,
        2 / 6,
        3 / 6,
        4 / 6,
        5 / 6,
    ]  # weights, attention twice, basics; repacked; disk
    if '"is_provisional": true' in path.read_text():
        pytest.skip("other programs computed meanwhile, so all of it would be measured again")
    (cpu,) = measured.devices
    assert cpu.weights["Q8_0"] is not None
    assert cpu.attention["Q8_0/80"] is None
    again = LlamaCalibration(cpu_model="this CPU", say=pytest.fail, path=path)
    assert again.measured() == measured
    speeds = again.ram_speeds(["Q8_0"], ["F16/64", "Q8_0/80"], repack_modes=(False, True), threads=1)
    assert speeds is not None
    assert speeds[False].weight("Q8_0").bytes_per_second == cpu.weights["Q8_0"]["bytes_per_second"]
    assert list(speeds[False].attention) == ["F16/64"]
