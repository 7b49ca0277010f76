"""The ubatch that a plan takes against others tried by hand: prompts, tokens per second, medians of five.

    python benchmarks/ubatch.py rpc
    scripts/vulkan benchmarks/ubatch.py vulkan

rpc: models with half of their layers on an RPC server on loopback, two threads there and one here. vulkan:
the demo over Mesa's software driver, with its matrices in RAM sent to the device for each ubatch, or
streamed from the disk beside it. Bar: the taken ubatch is the fastest of those tried, or within 10 %, in 7 of
8 cases, both runs together.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rpc_servers import rpc_servers
from shapes import MOE, SMALL
from subjects import models
from synthetic import write_model

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.planner.request import Conditions
from memfit.units import GIB, MIB

_REPETITIONS = 5
_CLOSE = 0.9
_RPC = (("demo", 512), ("demo", 2048), ("small", 1024), ("moe", 2048))  # model, tokens of the prompt
_VULKAN = (("sent", 256), ("sent", 512), ("streamed", 256), ("streamed", 512))


def main() -> int:
    bars = {"rpc": rpc, "vulkan": vulkan}
    if len(sys.argv) != 2 or sys.argv[1] not in bars:
        sys.exit(__doc__)
    print("| what | prompt | ubatch taken | tok/s | others tried: tok/s | of the fastest |")
    print("| --- | --- | --- | --- | --- | --- |")
    cases = bars[sys.argv[1]]()
    print(f"{sum(cases)} of {len(cases)} within 10 % of the fastest")
    return int(not all(cases))


def rpc() -> list[bool]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = models()
        for name, shape in (("small", SMALL), ("moe", MOE)):
            paths[name] = str(Path(folder) / f"{name}.gguf")
            write_model(Path(paths[name]), shape)
        for name, prompt in _RPC:
            half = Path(paths[name]).stat().st_size // 2 + 60 * MIB
            with rpc_servers(half) as (endpoint,):
                budget = memfit.Budget(rpc={endpoint: half})
                found.append(compare(f"{name}, RPC", paths[name], prompt, budget, threads=1))
    return found


def vulkan() -> list[bool]:
    # The driver's own memory is RAM: what its runtime takes counts nowhere.
    LlamaCalibration.gpu_runtime_bytes = lambda *_: 0  # type: ignore[method-assign]
    found, demo = [], models()["demo"]
    for way, prompt in _VULKAN:
        budget = memfit.Budget(vram=40 * MIB)
        if way == "streamed":  # RAM half way between what all and what nothing of that streamed needs
            workload = memfit.Workload(
                context=2 * prompt, prompt_tokens=prompt, generated_tokens=1, repack="off", kv_type="f16"
            )
            needs = [
                memfit.plan(demo, budget=replace(budget, ram=ram), workload=workload).ram.needs_bytes
                for ram in (64 * MIB, 4 * GIB)
            ]
            budget = replace(budget, ram=sum(needs) // 2)
        found.append(compare(f"demo, Vulkan, {way}", demo, prompt, budget, threads=2))
    return found


def _unwatched(plan: memfit.Plan) -> memfit.Plan:
    """Memory is not what is measured here: software drivers compile kernels in it."""
    tiers = tuple(
        replace(tier, budget_bytes=16 * GIB, limit_bytes=16 * GIB) if tier.kind == "ram" else tier
        for tier in plan.tiers
    )
    return replace(plan, tiers=tiers)


def compare(what: str, path: str, prompt: int, budget: memfit.Budget, *, threads: int) -> bool:
    """Whether the plan's own ubatch is within 10 % of the fastest."""
    workload = memfit.Workload(
        context=2 * prompt,
        prompt_tokens=prompt,
        generated_tokens=1,
        threads=threads,
        repack="off",
        kv_type="f16",
    )
    own = memfit.plan(path, budget=budget, workload=workload)
    taken, rates = own.ubatch, {}
    for ubatch in sorted({taken, *(size for size in (128, 256, 512, 1024) if size <= prompt)}):
        plan = own
        if ubatch != taken:
            plan = memfit.plan(path, budget=budget, workload=workload, conditions=Conditions(ubatch=ubatch))
        if plan.fits:
            with memfit.load(_unwatched(plan)) as session:
                speed = session.measure(prompt, 1, repetitions=_REPETITIONS)
            assert speed.prompt_tokens_per_second is not None
            rates[ubatch] = speed.prompt_tokens_per_second
    others = ", ".join(f"{size}: {rate:.4g}" for size, rate in rates.items() if size != taken)
    share = rates[taken] / max(rates.values())
    print(f"| {what} | {prompt} | {taken} | {rates[taken]:.4g} | {others} | {share:.2f} |", flush=True)
    return share >= _CLOSE


if __name__ == "__main__":
    sys.exit(main())
