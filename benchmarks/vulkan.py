"""A real GPU backend against the plan and against the CPU: Vulkan over Mesa's software driver.

    scripts/vulkan benchmarks/vulkan.py bytes|answers [COUNT [FIRST]]

bytes: COUNT random configurations of the demo (30): of three one streams weights, and of the others one has
the device multiply prompts with what lies in RAM. Counted is the most that the backend's own log has in
device buffers while a prompt that fills half of the context is computed; buffers that it allocates in RAM for
the host do not count. Bars: within 1 MiB of the plan, never above the budget.

answers: COUNT random sets (40) of prompt length, budget, type of the KV cache and way of RAM's matrices. 32
tokens, the CPU's greedy ones, are scored on the CPU, on the device and by the same model in F32. Bars: the
device's mean KL from F32 at most 1.1 times the CPU's + 0.002, its top-1 agreement at most a point below.

With FIRST those before it are left out, as done already.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rewrite import rewrite
from subjects import ROOT

import memfit
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.hub.local_model import local_path
from memfit.planner.speed import ASSUMED, ASSUMED_GPU, WeightSpeed
from memfit.units import GIB, MIB

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ALLOCATED = re.compile(r": ([+-])([0-9.]+) (B|KiB|MiB|GiB) \w+ at (\w+)\.")


_WAYS = ("by the CPU", "sent", "streamed")


def main() -> int:
    bars = {"bytes": count_bytes, "answers": answers}
    bar, *rest = sys.argv[1:] or [""]
    if bar == "one":
        return one(json.loads(rest[0]))
    if bar not in bars:
        sys.exit(f"{bar or 'nothing'} is no bar of this benchmark; it has {' and '.join(bars)}")
    return bars[bar](*map(int, rest))


def count_bytes(count: int = 30, first: int = 0) -> int:
    chance, failures = random.Random(17), 0
    print("| VRAM MiB | context | sequences | KV | RAM's matrices | planned MiB | allocated | error | |")
    print("|" + " --- |" * 9)
    for index in range(count):
        asked = {
            "vram": chance.randrange(20 * MIB, 110 * MIB),
            "context": chance.choice((256, 512, 1024)),
            "parallel": chance.choice((1, 1, 2, 4)),
            "kv_type": chance.choice(("f16", "f16", "q8_0")),
            "way": _WAYS[index % 3],
        }
        if index < first:
            continue
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
    """Loads and computes; the backend's log goes to stderr."""
    keys = ("context", "parallel", "kv_type")
    workload = memfit.Workload(threads=2, repack="off", **{key: asked[key] for key in keys})
    found, way = planned("demo", asked["vram"], workload, asked["way"])
    with memfit.load(found, verbose=True) as session:
        share = asked["context"] // asked["parallel"]
        session.generate("fox " * (share // 2), memfit.Sampling(max_tokens=4))
    device = sum(tier.total_bytes for tier in found.tiers if tier.kind == "vram")
    print(json.dumps({"device_bytes": device, "way": way}))
    return 0


def planned(model: str, vram: int, workload: memfit.Workload, way: str) -> tuple[memfit.Plan, str]:
    """A plan with RAM's matrices treated in this way, if it can be had, and in which way it is."""
    # The driver compiles kernels for seconds, and its memory is RAM: neither speeds nor its own bytes count.
    speed = replace(
        ASSUMED_GPU,
        weights={"": WeightSpeed(bytes_per_second=40e9, operations_per_second=1e15)},
        split_seconds=0.0,
        split_bytes_per_second=1e15,
        sent_bytes_per_second=1e15 if way == "sent" else 1e3,
    )
    both = {False: ASSUMED, True: ASSUMED}
    LlamaCalibration.gpu_runtime_bytes = lambda *_: 0  # type: ignore[method-assign]
    LlamaCalibration.device_speed = lambda *_: speed  # type: ignore[method-assign]
    LlamaCalibration.ram_speeds = lambda *_, **__: both  # type: ignore[method-assign]

    def plan(ram: int | None) -> memfit.Plan:
        return memfit.plan(model, budget=memfit.Budget(ram=ram, vram=vram), workload=workload)

    found = plan(plan(64 * MIB).ram.needs_bytes + 8 * MIB if way == "streamed" else None)
    found.require_fit()
    tiers = tuple(
        replace(tier, budget_bytes=16 * GIB, limit_bytes=16 * GIB) if tier.kind == "ram" else tier
        for tier in found.tiers
    )
    treated = _WAYS[2] if found.config.streamed else _WAYS[1] if found.config.op_offload else _WAYS[0]
    return replace(found, tiers=tiers), treated


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


# -- answers ---------------------------------------------------------------------------------------


def answers(count: int = 40, first: int = 0) -> int:
    import llama_cpp

    chance = random.Random(17)
    demo = str(local_path("demo"))
    words = (ROOT / "docs/LOG.md").read_text().split()
    vocabulary = llama_cpp.Llama(demo, vocab_only=True, verbose=False)
    divergences, agreements = [], []  # of each set: the CPU's, the device's
    print(
        "| prompt | VRAM MiB | KV | RAM's matrices | KL of the CPU | of the device | top-1 | of the device |"
    )
    print("|" + " --- |" * 8, flush=True)
    with tempfile.TemporaryDirectory(prefix="memfit-vulkan-") as folder:
        (whole,) = rewrite(demo, Path(folder) / "f32.gguf", kind="F32")
        for index in range(count):
            start, vram = chance.randrange(len(words) - 200), chance.randrange(25 * MIB, 110 * MIB)
            prompt = " ".join(words[start : start + chance.choice((4, 8, 16, 40, 80))])
            kv_type = chance.choice(("f16", "q8_0"))
            if index < first:
                continue
            workload = memfit.Workload(
                context=512, kv_type=kv_type, threads=2, repack="off", outputs=32, prompt_tokens=64
            )
            plan, way = planned(demo, vram, workload, _WAYS[index % 3])
            alone = memfit.plan(demo, budget=memfit.Budget(vram={0: 0}), workload=workload)
            with memfit.load(alone) as session:
                text = session.generate(prompt, memfit.Sampling(temperature=0, max_tokens=32)).text
                tokens = vocabulary.tokenize((prompt + text).encode())
                by_cpu = log_probabilities(session, tokens)
            with memfit.load(plan) as session:
                by_device = log_probabilities(session, tokens)
            exact = memfit.plan(
                str(whole), budget=memfit.Budget(vram={0: 0}), workload=replace(workload, kv_type="f16")
            )
            with memfit.load(exact) as session:
                wanted = log_probabilities(session, tokens)
            divergences.append([divergence(wanted, one) for one in (by_cpu, by_device)])
            agreements.append([agreement(wanted, one) for one in (by_cpu, by_device)])
            (cpu, device), (cpu_same, device_same) = divergences[-1], agreements[-1]
            length = len(vocabulary.tokenize(prompt.encode()))
            print(
                f"| {length} | {vram / MIB:.1f} | {kv_type} | {way} | {cpu:.5f} | {device:.5f} "
                f"| {100 * cpu_same:.0f} % | {100 * device_same:.0f} % |",
                flush=True,
            )
    (cpu, device), (cpu_same, device_same) = np.mean(divergences, 0), np.mean(agreements, 0)
    failed = device > 1.1 * cpu + 0.002 or device_same < cpu_same - 0.01
    print(f"mean KL {cpu:.5f} and {device:.5f}, top-1 {100 * cpu_same:.1f} and {100 * device_same:.1f} %")
    return int(failed)


def log_probabilities(session: memfit.Session, tokens: list[int]) -> Any:
    """Of the last 32 tokens' places, or as many as there are: [places, vocabulary]."""
    blocks: list[Any] = []
    session.score(
        tokens, first=max(1, len(tokens) - 32), on_logits=lambda one: blocks.append(np.array(one.logits))
    )
    rows = np.concatenate(blocks).astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def divergence(wanted: Any, found: Any) -> float:
    """The mean KL of `found` from `wanted`, in nats a token."""
    return float((np.exp(wanted) * (wanted - found)).sum(1).mean())


def agreement(wanted: Any, found: Any) -> float:
    return float((wanted.argmax(1) == found.argmax(1)).mean())


if __name__ == "__main__":
    sys.exit(main())
