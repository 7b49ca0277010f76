"""Device bytes on a real GPU backend: what the plan says against what the backend allocates.

    scripts/vulkan benchmarks/vulkan.py [COUNT]

Vulkan over Mesa's software driver. COUNT random configurations of the demo (30): of three one streams
weights, and of the others one has the device multiply prompts with what lies in RAM. Counted is the most that
the backend's own log has in device buffers while a prompt that fills half of the context is computed; buffers
that it allocates in RAM for the host do not count. Bars: within 1 MiB of the plan, never above the budget.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.planner.speed import ASSUMED, ASSUMED_GPU, WeightSpeed
from memfit.units import GIB, MIB

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ALLOCATED = re.compile(r": ([+-])([0-9.]+) (B|KiB|MiB|GiB) \w+ at (\w+)\.")


def main() -> int:
    if sys.argv[1:2] == ["one"]:
        return one(json.loads(sys.argv[2]))
    chance, failures = random.Random(17), 0
    print("| VRAM MiB | context | sequences | KV | RAM's matrices | planned MiB | allocated | error | |")
    print("|" + " --- |" * 9)
    for index in range(int(sys.argv[1]) if sys.argv[1:] else 30):
        asked = {
            "vram": chance.randrange(20 * MIB, 110 * MIB),
            "context": chance.choice((256, 512, 1024)),
            "parallel": chance.choice((1, 1, 2, 4)),
            "kv_type": chance.choice(("f16", "f16", "q8_0")),
            "way": ("by the CPU", "sent", "streamed")[index % 3],
        }
        done = subprocess.run(
            [sys.executable, __file__, "one", json.dumps(asked)],
            capture_output=True,
            text=True,
            env={**os.environ, "GGML_VK_MEMORY_LOGGER": "1"},
        )
        if done.returncode:
            print(f"| {asked} | {done.stderr.splitlines()[-1:]} |", flush=True)
            failures += 1
            continue
        said, held = json.loads(done.stdout.splitlines()[-1]), most_held(done.stderr)
        planned = said["device_bytes"]
        failed = abs(held - planned) > MIB or held > asked["vram"]
        failures += failed
        print(
            f"| {asked['vram'] / MIB:.1f} | {asked['context']} | {asked['parallel']} | {asked['kv_type']} "
            f"| {said['way']} | {planned / MIB:.2f} | {held / MIB:.2f} "
            f"| {(held - planned) / MIB:+.2f} | {'FAILED' if failed else 'ok'} |",
            flush=True,
        )
    print(f"{failures} failed")
    return int(failures > 0)


def one(asked: dict[str, Any]) -> int:
    """Plans, loads and computes; the backend's log goes to stderr."""
    # The driver compiles kernels for seconds, and its memory is RAM: neither speeds nor its own bytes count.
    LlamaCalibration.gpu_runtime_bytes = lambda *_: 0  # type: ignore[method-assign]
    speed = replace(
        ASSUMED_GPU,
        weights={"": WeightSpeed(bytes_per_second=40e9, operations_per_second=1e15)},
        split_seconds=0.0,
        split_bytes_per_second=1e15,
        sent_bytes_per_second=1e15 if asked["way"] == "sent" else 1e3,
    )
    LlamaCalibration.device_speed = lambda *_: speed  # type: ignore[method-assign]
    LlamaCalibration.ram_speeds = lambda *_, **__: {False: ASSUMED, True: ASSUMED}  # type: ignore[method-assign]
    keys = ("context", "parallel", "kv_type")
    workload = memfit.Workload(threads=2, repack="off", **{key: asked[key] for key in keys})

    def plan(ram: int | None) -> memfit.Plan:
        return memfit.plan("demo", budget=memfit.Budget(ram=ram, vram=asked["vram"]), workload=workload)

    found = plan(plan(64 * MIB).ram.total_bytes + MIB if asked["way"] == "streamed" else None)
    found.require_fit()
    way = "streamed" if found.config.streamed else "sent" if found.config.op_offload else "by the CPU"
    tiers = tuple(
        replace(tier, budget_bytes=16 * GIB, limit_bytes=16 * GIB) if tier.kind == "ram" else tier
        for tier in found.tiers
    )
    with memfit.load(replace(found, tiers=tiers), verbose=True) as session:
        share = asked["context"] // asked["parallel"]
        session.generate("fox " * (share // 2), memfit.Sampling(max_tokens=4))
    device = sum(tier.total_bytes for tier in found.tiers if tier.kind == "vram")
    print(json.dumps({"device_bytes": device, "way": way}))
    return 0


def most_held(log: str) -> int:
    """Bytes of device buffers at most."""
    held: dict[str, int] = {}
    most, for_host = 0, False
    for line in log.splitlines():
        for_host = for_host or "ggml_vk_host_malloc(" in line
        if not (found := _ALLOCATED.search(line)):
            continue
        sign, number, unit, address = found.groups()
        if sign == "-":
            held.pop(address, None)
        else:
            held[address] = 0 if for_host else round(float(number) * _UNITS[unit])
            for_host = False
        most = max(most, sum(held.values()))
    return most


if __name__ == "__main__":
    sys.exit(main())
