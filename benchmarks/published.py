"""Predicted against published speed, of machines that are only described. Runs nothing; plans by headers.

    python benchmarks/published.py [RUN …]

Each run is planned as it was published: its placement by llama.cpp's own options, its ubatch and depth. What
a run does not state is assumed, and printed: the CPU and RAM of one profile. Bars: median error of generation
at most 20 %, of prompts 35 %, 85 % inside their range; also where each run is predicted with itself left out:
with the seconds of each kind of kernel scaled to what the other runs say.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from math import log
from pathlib import Path
from statistics import median

from shapes import GPT_OSS_120B, LLAMA2_7B, QWEN3_30B_A3B, QWEN25_32B, QWEN36_27B, QWEN36_35B_A3B
from synthetic import write_header

import memfit
from memfit.planner.plan import Plan
from memfit.planner.request import ALL_LAYERS, Conditions
from memfit.planner.speed import Rate

MODELS = {
    "gpt-oss-120b": GPT_OSS_120B,
    "gpt-oss-20b": replace(GPT_OSS_120B, layers=24, experts=32),
    "llama-2-7b-q4_0": LLAMA2_7B,
    "qwen2.5-32b-q4_k_m": QWEN25_32B,
    "qwen3-30b-a3b-q4_k_m": QWEN3_30B_A3B,
    "qwen3-30b-a3b-q2_k_s": replace(QWEN3_30B_A3B, mix="Q2_K_S"),
    "qwen3.6-27b-q4_k_m": QWEN36_27B,
    "qwen3.6-35b-a3b-q4_k_m": QWEN36_35B_A3B,
    "qwen3.6-35b-a3b-mxfp4": replace(QWEN36_35B_A3B, mix="MXFP4_MOE"),
}
BARS = {"generation": 0.20, "prompt": 0.35}
_INSIDE = 0.85
_STEPS = (1.0, 0.95, 1.05, 0.8, 1.25)
_SWEEPS, _TRUST = 12, 0.25


# What a run does not state: this profile's CPU and RAM, as most profiles have them, and the card's own link.
HOST = "rtx3090-24gb"
LINKS = {"rtx3060-12gb": 31.508e9}  # PCIe 4.0 x16; the profile's own CPU has 3.0


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    model: str  # of MODELS
    machine: str  # a profile
    source: str
    is_hostless: bool = False  # CPU and RAM are not stated
    conditions: Conditions = field(default_factory=Conditions)
    context: int = 4096
    depth: int = 0
    prompt: tuple[int, float] | None = None  # tokens, and tok/s
    generation: tuple[int, float] | None = None


def _experts(layers: int, ubatch: int | None = None) -> Conditions:
    return Conditions(gpu_layers=ALL_LAYERS, cpu_moe_layers=layers, ubatch=ubatch)


_SWEEP = "https://ai-maestro.online/drastically-improve-prompt-processing-speed-for-n-cpu-moe-partially-offloaded-models-6/"
_FLAGS = "https://www.poorpaul.dev/articles/qwen36-moe-flags-rtx5090"
_BOARD = "https://github.com/ggml-org/llama.cpp/discussions/15013"
_GUIDE = "https://github.com/ggml-org/llama.cpp/discussions/15396"
_CPU = "https://github.com/ikawrakow/ik_llama.cpp/issues/1075"  # llama.cpp's own figures in it
_GIVEN = "a user's report, its address not known here"


def _sweep(experts: int, ubatch: int, prompt: float, generation: float) -> Run:
    return Run(
        name=f"RTX 3090, gpt-oss-120b, {experts} layers' experts on the CPU, ubatch {ubatch}",
        model="gpt-oss-120b",
        machine="rtx3090-24gb",
        source=_SWEEP,
        is_hostless=True,
        conditions=_experts(experts, ubatch),
        context=8192,
        prompt=(4096, prompt),
        generation=(128, generation),
    )


def _flags(experts: int, generation: float) -> Run:
    return Run(
        name=f"RTX 5090, Qwen3.6-35B-A3B MXFP4, {experts} layers' experts on the CPU",
        model="qwen3.6-35b-a3b-mxfp4",
        machine="rtx5090-32gb",
        source=_FLAGS,
        is_hostless=True,
        conditions=_experts(experts),
        generation=(128, generation),
    )


def _board(machine: str, prompt: float, generation: float) -> Run:
    return Run(
        name=f"{machine}, llama 7B Q4_0",
        model="llama-2-7b-q4_0",
        machine=machine,
        source=_BOARD,
        prompt=(512, prompt),
        generation=(128, generation),
    )


RUNS = (
    Run(
        name="RTX 3060, Qwen3.6-35B-A3B, all experts on the CPU",
        model="qwen3.6-35b-a3b-q4_k_m",
        machine="rtx3060-12gb",
        source=_GIVEN,
        is_hostless=True,
        conditions=_experts(ALL_LAYERS),
        prompt=(512, 431),
        generation=(64, 42.3),
    ),
    Run(
        name="RTX 3060, Qwen3.6-35B-A3B, 26 layers' experts on the CPU, ubatch 2048",
        model="qwen3.6-35b-a3b-q4_k_m",
        machine="rtx3060-12gb",
        source=_GIVEN,
        is_hostless=True,
        conditions=_experts(26, 2048),
        prompt=(2048, 1143),
    ),
    _sweep(25, 256, 240.03, 33.14),
    _sweep(26, 512, 380.27, 32.29),
    _sweep(25, 2048, 1112.54, 32.96),
    _sweep(26, 4096, 1682.47, 32.38),
    Run(
        name="RTX 5090, gpt-oss-120b, 22 layers' experts on the CPU, at 50K, ubatch 2048",
        model="gpt-oss-120b",
        machine="rtx5090-32gb",
        source=_GIVEN,
        conditions=_experts(22, 2048),
        context=65536,
        depth=50000,
        prompt=(2048, 1200),
        generation=(128, 35),
    ),
    _flags(0, 203.4),
    _flags(20, 86.3),
    _flags(30, 66.7),
    _flags(40, 53.9),
    Run(
        name="RTX 2060, Qwen3.6-27B, as many layers as fit",
        model="qwen3.6-27b-q4_k_m",
        machine="rtx2060-6gb",
        source=_GIVEN,
        prompt=(512, 138),
        generation=(128, 2.70),
    ),
    Run(
        name="Ryzen AI 9 HX 370, Qwen2.5-32B",
        model="qwen2.5-32b-q4_k_m",
        machine="ryzen-hx370",
        source=_GIVEN,
        generation=(128, 3.54),
    ),
    Run(
        name="Raspberry Pi 5, Qwen3-30B-A3B in 9.6 GiB",
        model="qwen3-30b-a3b-q2_k_s",
        machine="pi-16gb",
        source=_GIVEN,
        prompt=(512, 10.9),
        generation=(128, 7.99),
    ),
    Run(
        name="Ryzen 9 7950X, Qwen3-30B-A3B",
        model="qwen3-30b-a3b-q4_k_m",
        machine="rtx3090-24gb",
        source=_CPU,
        conditions=Conditions(gpu_layers=0),
        prompt=(512, 210.37),
        generation=(128, 27.20),
    ),
    Run(
        name="Ryzen 9 7950X, gpt-oss-20b",
        model="gpt-oss-20b",
        machine="rtx3090-24gb",
        source=_CPU,
        conditions=Conditions(gpu_layers=0),
        prompt=(512, 148.73),
        generation=(128, 21.49),
    ),
    Run(
        name="RTX 4090, gpt-oss-20b, ubatch 2048",
        model="gpt-oss-20b",
        machine="rtx4090-24gb",
        source=_GUIDE,
        conditions=_experts(0, 2048),
        prompt=(2048, 8022.33),
        generation=(128, 221.95),
    ),
    Run(
        name="RTX 5090, gpt-oss-20b, ubatch 2048",
        model="gpt-oss-20b",
        machine="rtx5090-32gb",
        source=_GUIDE,
        conditions=_experts(0, 2048),
        prompt=(2048, 9848.38),
        generation=(128, 282.51),
    ),
    _board("rtx3060-12gb", 2137.50, 75.57),
    _board("rtx3090-24gb", 5174.69, 158.16),
    _board("rtx4080-16gb", 8031.64, 142.49),
    _board("rtx4090-24gb", 11992.70, 186.21),
    _board("rtx5090-32gb", 14073.41, 290.02),
    _board("a100-80gb", 4849.53, 190.88),
    _board("h100-80gb", 9918.34, 267.81),
    _board("colab-t4", 1219.06, 46.38),
)


def planned(run: Run, folder: Path) -> Plan:
    path = folder / f"{run.model}.gguf"
    if not path.exists():
        write_header(path, MODELS[run.model])
    prompt = run.prompt[0] if run.prompt else 512
    generated = run.generation[0] if run.generation else 128
    workload = memfit.Workload(
        context=run.context, prompt_tokens=prompt, generated_tokens=generated, depth=run.depth
    )
    machine = _with_host(run, folder) if run.is_hostless else run.machine
    return memfit.plan(str(path), workload=workload, machine=machine, conditions=run.conditions)


def _with_host(run: Run, folder: Path) -> str:
    """A file of the profile's card in the assumed host."""
    profiles = resources.files("memfit.hardware") / "profiles"
    card, host = (json.loads((profiles / f"{name}.json").read_text()) for name in (run.machine, HOST))
    link = card["gpus"][0]["link_bytes_per_second"]
    link["value"] = LINKS.get(run.machine, link["value"])
    path = folder / f"{run.machine}.json"
    path.write_text(json.dumps(card | {"cpu": host["cpu"], "ram": host["ram"]}))
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One published rate, and the predicted seconds of a pass by kinds of kernels."""

    run: Run
    what: str
    tokens: int
    published: float
    rate: Rate
    seconds: dict[str, float]

    def error(self, factors: dict[str, float]) -> float:
        """Of the rate, were each kind so many times as slow."""
        slower = sum(factors.get(kind, 1.0) * taken for kind, taken in self.seconds.items())
        return self.rate.value * sum(self.seconds.values()) / slower / self.published - 1

    def is_inside(self, error: float) -> bool:
        low, high = self.rate.low / self.rate.value, self.rate.high / self.rate.value
        return low <= 1 / (1 + error) <= high


def results(run: Run, plan: Plan) -> Iterator[Result]:
    prediction = plan.prediction
    for what, published, rate, terms in (
        ("prompt", run.prompt, prediction.prompt, prediction.prompt_terms),
        ("generation", run.generation, prediction.generation, prediction.generation_terms),
    ):
        if published is None:
            continue
        seconds: dict[str, float] = {}
        for term in terms:
            kind = term.kind.partition(" ")[0]
            kind = kind if kind in ("experts", "weights", "attention") else "rest"
            name = f"{what}, {kind}, {'GPU' if term.device else 'RAM'}"
            seconds[name] = seconds.get(name, 0.0) + term.seconds
        tokens, rate_published = published
        yield Result(run=run, what=what, tokens=tokens, published=rate_published, rate=rate, seconds=seconds)


def fitted(known: Sequence[Result]) -> dict[str, float]:
    """How much slower each kind of kernel would have to be for the least errors; what few runs say anything
    of stays near what it is."""
    factors = {kind: 1.0 for one in known for kind in one.seconds}

    def loss(tried: dict[str, float]) -> float:
        misses = sum(abs(log(1 + one.error(tried))) for one in known)
        return misses + _TRUST * sum(abs(log(factor)) for factor in tried.values())

    for _ in range(_SWEEPS):
        for kind in factors:
            tries = ({**factors, kind: factors[kind] * step} for step in _STEPS)
            factors = min(tries, key=loss)
    return factors


def main(words: list[str]) -> int:
    runs = [run for run in RUNS if not words or any(word in run.name for word in words)]
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        for run in runs:
            plan = planned(run, Path(name))
            plan.require_fit()
            found += results(run, plan)
    print("| run | assumed | what | published | predicted | range | error | left out | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    errors: dict[str, list[tuple[float, float]]] = {what: [] for what in BARS}
    inside = []
    for one in found:
        others = [other for other in found if other.run != one.run]
        both = one.error({}), one.error(fitted(others) if others else {})
        errors[one.what].append(both)
        inside.append([one.is_inside(error) for error in both])
        host = "host" if one.run.is_hostless else ""
        verdict = "" if all(inside[-1]) else "outside"
        print(
            f"| {one.run.name} | {host} | {one.what} {one.tokens} | {one.published:.4g} | "
            f"{one.rate.value:.4g} | {one.rate.low:.3g} to {one.rate.high:.3g} | {both[0]:+.0%} | "
            f"{both[1]:+.0%} | {verdict} |"
        )
    failures = 0
    for number, how in enumerate(("as planned", "each left out")):
        for what, bar in BARS.items():
            if errors[what]:
                middle = median(abs(both[number]) for both in errors[what])
                failures += middle > bar
                print(f"{how}: {what}: median error {middle:.0%} of {len(errors[what])} (bar {bar:.0%})")
        count = sum(both[number] for both in inside)
        failures += count < _INSIDE * len(inside)
        print(f"{how}: {count} of {len(inside)} inside their range (bar {_INSIDE:.0%})")
    factors = ", ".join(f"{kind} {factor:.2f}" for kind, factor in sorted(fitted(found).items()))
    print(f"what the runs say of each kind's seconds: {factors}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
