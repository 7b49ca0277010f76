"""Predicted against published speed, of machines that are only described. Runs nothing; plans by headers.

    python benchmarks/published.py [RUN …]

Each run is planned as it was published: its placement by llama.cpp's own options, its ubatch and depth. What
a run does not state is taken from the profile, and printed. Bars: median error of generation at most 20 %, of
prompts 35 %, 85 % inside their range.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from shapes import REAL
from synthetic import write_header

import memfit
from memfit.planner.plan import Plan
from memfit.planner.request import ALL_LAYERS, Conditions

BARS = {"generation": 0.20, "prompt": 0.35}


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    model: str  # a name of shapes.REAL
    machine: str  # a profile
    source: str
    assumed: str = ""  # what the run does not state, and the profile does
    conditions: Conditions = field(default_factory=Conditions)
    context: int = 4096
    depth: int = 0
    prompt: tuple[int, float] | None = None  # tokens, and tok/s
    generation: tuple[int, float] | None = None


_EXPERTS_ON_CPU = Conditions(gpu_layers=ALL_LAYERS, cpu_moe_layers=ALL_LAYERS)


def _experts(layers: int, ubatch: int | None = None) -> Conditions:
    return Conditions(gpu_layers=ALL_LAYERS, cpu_moe_layers=layers, ubatch=ubatch)


RUNS = (
    Run(
        name="RTX 3060, Qwen3.6-35B-A3B, all experts on the CPU",
        model="qwen3.6-35b-a3b-q4_k_m",
        machine="rtx3060-12gb",
        source="issue",
        assumed="CPU and RAM",
        conditions=_EXPERTS_ON_CPU,
        prompt=(512, 431),
        generation=(64, 42.3),
    ),
    Run(
        name="RTX 3060, Qwen3.6-35B-A3B, 26 layers' experts on the CPU, ubatch 2048",
        model="qwen3.6-35b-a3b-q4_k_m",
        machine="rtx3060-12gb",
        source="issue",
        assumed="CPU and RAM",
        conditions=_experts(26, 2048),
        prompt=(2048, 1143),
    ),
    Run(
        name="RTX 3090, gpt-oss-120b, 26 layers' experts on the CPU",
        model="gpt-oss-120b",
        machine="rtx3090-24gb",
        source="issue",
        assumed="CPU and RAM",
        conditions=_experts(26, 512),
        context=8192,
        prompt=(4096, 380),
        generation=(128, 32.3),
    ),
    Run(
        name="RTX 3090, gpt-oss-120b, the same, ubatch 4096",
        model="gpt-oss-120b",
        machine="rtx3090-24gb",
        source="issue",
        assumed="CPU and RAM",
        conditions=_experts(26, 4096),
        context=8192,
        prompt=(4096, 1682),
    ),
    Run(
        name="RTX 5090, gpt-oss-120b, 22 layers' experts on the CPU, at 50K",
        model="gpt-oss-120b",
        machine="rtx5090-32gb",
        source="issue",
        conditions=_experts(22),
        context=65536,
        depth=50000,
        prompt=(2048, 1200),
        generation=(128, 35),
    ),
    Run(
        name="RTX 2060, Qwen3.6-27B",
        model="qwen3.6-27b-q4_k_m",
        machine="rtx2060-6gb",
        source="issue",
        assumed="the number of layers on the card: what fits",
        prompt=(512, 138),
        generation=(128, 2.70),
    ),
    Run(
        name="Ryzen AI 9 HX 370, Qwen2.5-32B, CPU",
        model="qwen2.5-32b-q4_k_m",
        machine="ryzen-hx370",
        source="issue",
        generation=(128, 3.54),
    ),
    Run(
        name="Raspberry Pi 5, Qwen3-30B-A3B in 9.6 GiB",
        model="qwen3-30b-a3b-q2_k_s",
        machine="pi-16gb",
        source="issue",
        prompt=(512, 10.9),
        generation=(128, 7.99),
    ),
)


def planned(run: Run, folder: Path) -> Plan:
    path = folder / f"{run.model}.gguf"
    if not path.exists():
        write_header(path, REAL[run.model])
    prompt = run.prompt[0] if run.prompt else 512
    generated = run.generation[0] if run.generation else 128
    workload = memfit.Workload(
        context=run.context, prompt_tokens=prompt, generated_tokens=generated, depth=run.depth
    )
    return memfit.plan(str(path), workload=workload, machine=run.machine, conditions=run.conditions)


def main(words: list[str]) -> int:
    runs = [run for run in RUNS if not words or any(word in run.name for word in words)]
    print("| run | assumed | what | published | predicted | range | error | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    errors: dict[str, list[float]] = {"prompt": [], "generation": []}
    inside = []
    with tempfile.TemporaryDirectory() as name:
        for run in runs:
            plan = planned(run, Path(name))
            if not plan.fits:
                print(f"| {run.name} | does not fit | | | | | | |")
                continue
            for what, published, rate in (
                ("prompt", run.prompt, plan.prediction.prompt),
                ("generation", run.generation, plan.prediction.generation),
            ):
                if published is None:
                    continue
                error = rate.value / published[1] - 1
                errors[what].append(abs(error))
                inside.append(rate.low <= published[1] <= rate.high)
                print(
                    f"| {run.name} | {run.assumed} | {what} {published[0]} | {published[1]:.4g} | "
                    f"{rate.value:.4g} | {rate.low:.3g} to {rate.high:.3g} | {error:+.0%} | "
                    f"{'' if inside[-1] else 'outside'} |",
                    flush=True,
                )
    missed = 0
    for what, bar in BARS.items():
        if errors[what]:
            found = median(errors[what])
            missed += found > bar
            print(f"{what}: median error {found:.0%} of {len(errors[what])} (bar {bar:.0%})")
    print(f"inside: {sum(inside)} of {len(inside)} (bar 85 %)")
    return int(missed or sum(inside) < 0.85 * len(inside))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
