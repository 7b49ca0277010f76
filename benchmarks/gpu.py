"""What only a machine with an NVIDIA GPU can show: both engines within a budget of video memory.

    python benchmarks/gpu.py [--vram 12GiB] [--large-gb 40]

llama.cpp (built with CMAKE_ARGS=-DGGML_CUDA=on): the two packaged models, and a synthetic dense GGUF file of
--large-gb gigabytes, of which the GPU holds what the budget allows. transformers (torch's build for CUDA):
SmolLM2 at every precision, and a random llama in half of what it would take, so that layers lie in RAM and
are sent.
A row is met where no tier went over its budget, and where what NVML says is within max(2 %, 16 MiB) of the
prediction. Models are written into the home folder and deleted. Ends with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import checkpoint
from subjects import models
from synthetic import write_dense

import memfit
from memfit.errors import MemfitError
from memfit.hardware.probe import probe

MIB = 1 << 20
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "nf4", "nf4-dq", "fp4")
COLUMNS = ("case", "tier", "budget", "predicted", "peak", "error", "tok/s predicted", "measured", "missed")
# 0.66 GB of Q4_K in each layer, as wide as the widest models have them.
LAYER = {"width": 8192, "feed_forward": 42000 // 256 * 256, "heads": 64, "kv_heads": 8}
LAYER_GB = 0.66


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    model: str
    vram: str | int
    settings: dict[str, Any] = field(default_factory=dict)  # of memfit.plan
    tokens: tuple[int, int] = (512, 32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vram", default="12GiB")
    parser.add_argument(
        "--large-gb", type=int, default=40, help="of the synthetic GGUF file; 0 leaves it out"
    )
    arguments = parser.parse_args()
    machine = probe()
    if not machine.gpus:
        print(f"no NVIDIA GPU here: {machine.gpu_note or 'none was found'}", file=sys.stderr)
        return 2
    print(f"{machine.gpus[0].name}, driver {machine.gpus[0].driver}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|" + " --- |" * len(COLUMNS))
    with tempfile.TemporaryDirectory(prefix="memfit-gpu-", dir=Path.home()) as folder:
        return sum(judge(case) for case in cases(Path(folder), arguments.vram, arguments.large_gb))


def cases(folder: Path, vram: str, large_gb: int) -> Iterator[Case]:
    """One after the other, since a large model is written when its turn comes."""
    for name, path in models().items():
        yield Case(name=f"llama.cpp {name}", model=path, vram=vram)
    if large_gb:
        large = folder / "large.gguf"
        write_dense(large, layers=round(large_gb / LAYER_GB), **LAYER)
        yield Case(name=f"llama.cpp {large_gb} GB", model=str(large), vram=vram, tokens=(512, 8))
        large.unlink()
    small = str(checkpoint("demo", folder / "demo"))
    for precision in PRECISIONS:
        load_in, _, nested = precision.partition("-")
        settings = {"load_in": load_in, "double_quant": bool(nested)}
        yield Case(name=f"transformers SmolLM2 {precision}", model=small, vram=vram, settings=settings)
    half = str(checkpoint("llama", folder / "llama"))
    whole = memfit.plan(half, load_in="bf16", budget=memfit.Budget(vram=vram)).tiers[0]
    less = whole.total_bytes - whole.weights_bytes // 2
    yield Case(name="transformers llama, half", model=half, vram=less, settings={"load_in": "bf16"})


def judge(case: Case) -> int:
    """Prints a row for each tier; how many bars are missed."""
    try:
        plan = memfit.plan(case.model, budget=memfit.Budget(vram=case.vram), **case.settings)
        with memfit.load(plan) as session:
            speed = session.measure(*case.tokens)
            report = session.report()
    except MemfitError as error:
        print(f"| {case.name} | {error} |" + " |" * (len(COLUMNS) - 2), flush=True)
        return 1
    missed = 0
    for tier in report.tiers:
        bars = {"no figure": tier.peak_bytes is not None}
        if tier.peak_bytes is not None:
            bars["budget"] = tier.peak_bytes <= tier.budget_bytes
            bars["error"] = abs(tier.error_bytes or 0) <= max(0.02 * tier.peak_bytes, 16 * MIB)
        rates = (plan.prediction.generation.value, speed.generation_tokens_per_second or 0.0)
        cells = (
            *(case.name, tier.name, mib(tier.budget_bytes), mib(tier.predicted_bytes), mib(tier.peak_bytes)),
            mib(tier.error_bytes),
            *(f"{rate:.1f}" for rate in rates),
            ", ".join(bar for bar, met in bars.items() if not met),
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        missed += sum(not met for met in bars.values())
    if not any(tier.kind == "vram" and tier.predicted_bytes for tier in report.tiers):
        print(f"| {case.name} | the plan does not use the GPU |" + " |" * (len(COLUMNS) - 2), flush=True)
        missed += 1
    return missed


def mib(size: int | None) -> str:
    return "?" if size is None else f"{size / MIB:.1f}"


if __name__ == "__main__":
    sys.exit(main())
