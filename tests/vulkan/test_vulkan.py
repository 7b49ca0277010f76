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
from pathlib import Path

import pytest

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.gpus import has_gpu_backend
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.hardware.machine import DUMMY
from memfit.hub.local_model import local_path
from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.speed import ASSUMED, ASSUMED_GPU, WeightSpeed
from memfit.units import GIB, KIB, MIB

pytestmark = [
    pytest.mark.vulkan,
    pytest.mark.skipif(not has_gpu_backend(), reason="the engine has no Vulkan: make test-vulkan"),
]

_GREEDY = memfit.Sampling(temperature=0, max_tokens=12)
# Below and above 32 tokens, from where on the engine may compute on a GPU with matrices that lie in RAM.
# The likeliest token leads by 1.5 or more, so that rounding changes none.
_PROMPTS = ("10, 20, 30, 40, 50,", ", ".join(map(str, range(100, 116))) + ",")
_WORKLOAD = memfit.Workload(context=128, threads=2, repack="off", prompt_tokens=64, generated_tokens=16)


@pytest.fixture(autouse=True)
def _uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaCalibration, "gpu_runtime_bytes", lambda *_: 0)
    speeds = {False: ASSUMED, True: ASSUMED}
    monkeypatch.setattr(LlamaCalibration, "ram_speeds", lambda *_, **__: speeds)


_SLOW = replace(ASSUMED_GPU, sent_bytes_per_second=1e3)
_QUICK = replace(
    ASSUMED_GPU,
    weights={"": WeightSpeed(bytes_per_second=40e9, operations_per_second=1e15)},
    split_seconds=0.0,
    split_bytes_per_second=1e15,
    sent_bytes_per_second=1e15,
)


def _plan(
    model: str, kv_type: str, monkeypatch: pytest.MonkeyPatch, *, streamed: bool, offloads: bool
) -> LlamaPlan:
    """For Vulkan0, with its limit in RAM lifted: the driver's own memory lies there."""
    vram, speed = "26MiB" if streamed else "60MiB", _QUICK if offloads else _SLOW
    monkeypatch.setattr(LlamaCalibration, "device_speed", lambda *_: speed)

    def plan(ram: int | None) -> memfit.Plan:
        budget = memfit.Budget(ram=ram, vram={"Vulkan0": vram})
        return memfit.plan(model, budget=budget, workload=replace(_WORKLOAD, kv_type=kv_type))

    # A plan that does not fit says what it needs; everything resident would need twenty MiB more.
    found = plan(plan(64 * MIB).ram.total_bytes + 4 * MIB if streamed else None)
    assert isinstance(found, LlamaPlan) and found.fits
    assert found.config.devices == ("Vulkan0",)
    assert found.config.layers[0] > 0 or streamed
    assert (bool(found.config.streamed), found.config.op_offload) == (streamed, offloads)
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


@pytest.mark.parametrize(
    ("streamed", "offloads", "kv_type"),
    [(False, False, "f16"), (False, False, "q8_0"), (False, True, "f16"), (True, False, "q8_0")],
)
def test_the_cpus_text(
    demo: str,
    on_the_cpu: dict[str, list[str]],
    kv_type: str,
    streamed: bool,
    offloads: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = _plan(demo, kv_type, monkeypatch, streamed=streamed, offloads=offloads)
    with memfit.load(plan) as session:
        assert [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS] == on_the_cpu[kv_type]


@pytest.mark.parametrize("offloads", [False, True])
@pytest.mark.parametrize("layers", [3, 30])
def test_a_dummy_device_counts_the_same_bytes(
    demo: str, layers: int, offloads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Vulkan would order the graph's nodes anew, which spares a buffer of activations in some graphs.
    monkeypatch.setenv("GGML_VK_DISABLE_GRAPH_OPTIMIZE", "1")
    found = []
    for name in ("Vulkan0", f"{DUMMY}gpu0"):
        config = LlamaConfig(
            paths=(Path(demo),),
            context=512,
            parallel=1,
            kv_type="f16",
            ubatch=512,
            threads=2,
            repack=False,
            load_mode="read",
            devices=(name,),
            layers=(layers,),
            op_offload=offloads,
        )
        with LlamaWorker() as worker:
            found.append(worker.ask("simulate", config=config.to_json()))
    real, dummy = found
    assert real["prompt"] == dummy["prompt"]
    for there, counted in zip(real["bytes"], dummy["bytes"], strict=True):
        assert all(abs(there[kind] - counted[kind]) <= KIB for kind in there)
