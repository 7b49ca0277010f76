"""A real GPU backend: Vulkan over Mesa's software driver (scripts/vulkan). The CPU's text, whatever lies
where; the device's bytes are benchmarks/vulkan.py's.

The driver's memory is RAM, and it compiles each kernel with LLVM for seconds: RAM and predicted speeds are
not judged here, so calibration is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.gpus import has_gpu_backend
from memfit.hub.local_model import local_path
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.speed import ASSUMED_GPU
from memfit.units import GIB, MIB

pytestmark = [
    pytest.mark.vulkan,
    pytest.mark.skipif(not has_gpu_backend(), reason="the engine has no Vulkan: make test-vulkan"),
]

_GREEDY = memfit.Sampling(temperature=0, max_tokens=12)
# Below and above 32 tokens, from where on the engine may compute on a GPU with matrices that lie in RAM.
_PROMPTS = ("The capital of France is", "The quick brown fox jumps over the lazy dog. " * 8 + "The quick")
_WORKLOAD = memfit.Workload(context=512, threads=2, repack="off", prompt_tokens=64, generated_tokens=16)


@pytest.fixture(autouse=True)
def _uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaCalibration, "gpu_runtime_bytes", lambda *_: 0)
    monkeypatch.setattr(LlamaCalibration, "device_speed", lambda *_: ASSUMED_GPU)
    monkeypatch.setattr(LlamaCalibration, "ram_speeds", lambda *_, **__: None)


def _plan(model: str, vram: str, kv_type: str = "f16", *, streamed: bool = False) -> LlamaPlan:
    """For Vulkan0, with its limit in RAM lifted: the driver's own memory lies there."""

    def plan(ram: int | None) -> memfit.Plan:
        budget = memfit.Budget(ram=ram, vram={"Vulkan0": vram})
        return memfit.plan(model, budget=budget, workload=replace(_WORKLOAD, kv_type=kv_type))

    # What does not fit is planned with everything streamed.
    found = plan(plan(64 * MIB).ram.total_bytes + MIB if streamed else None)
    assert isinstance(found, LlamaPlan) and found.fits
    assert found.config.devices == ("Vulkan0",) and found.config.layers[0] > 0
    assert bool(found.config.streamed) is streamed
    ram, device = found.tiers
    return replace(found, tiers=(replace(ram, budget_bytes=16 * GIB, limit_bytes=16 * GIB), device))


@pytest.fixture(scope="module")
def demo() -> str:
    return str(local_path("demo"))


@pytest.fixture(scope="module")
def on_the_cpu(demo: str) -> dict[str, list[str]]:
    """Texts by the type of the KV cache."""
    found = {}
    for kv_type in ("f16", "q8_0"):
        plan = memfit.plan(
            demo, budget=memfit.Budget(vram={0: 0}), workload=replace(_WORKLOAD, kv_type=kv_type)
        )
        with memfit.load(plan) as session:
            found[kv_type] = [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS]
    return found


def test_the_engine_lists_it() -> None:
    command = [sys.executable, "-m", "memfit", "hardware", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (gpu,) = json.loads(done.stdout)["gpus"]
    assert gpu["engine_name"] == "Vulkan0" and "llvmpipe" in gpu["name"]
    assert gpu["total_bytes"] >= gpu["free_bytes"] > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_cpus_text(demo: str, on_the_cpu: dict[str, list[str]], kv_type: str, streamed: bool) -> None:
    plan = _plan(demo, "40MiB", kv_type, streamed=streamed)
    with memfit.load(plan) as session:
        assert [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS] == on_the_cpu[kv_type]
