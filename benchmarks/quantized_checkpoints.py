"""Quantized checkpoints in transformers: bytes and speed against the same model in bf16, in one run.

    python benchmarks/quantized_checkpoints.py [FORMAT …]      or all of them

SmolLM2 is written in each format by the tests' writer and loaded as it is stored. Bars: what stays in RAM at
most 1.15 times the tensors of the files, the peak of all processes within max(2 %, 16 MiB) of the plan and
within a budget of that and 1 %, half of the speed of bf16 for a prompt of 256 tokens and for one token. Of
speeds the medians of rounds in which both models take turns, since other programs may compute meanwhile.
Models are written into the home folder, 0.5 GB at most, and deleted.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import checkpoint

import memfit
from memfit.headers.safetensors import find_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "engine"))
from quantized_files import quantize

MIB = 1 << 20
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq 4-bit": ("gptq", {}),
    "gptq 4-bit, act-order": ("gptq", {"ordered": True}),
    "gptq 8-bit": ("gptq", {"bits": 8}),
    "awq": ("awq", {}),
    "pack-quantized int4": ("packed", {}),
    "pack-quantized int8": ("packed", {"bits": 8, "strategy": "channel"}),
    "float-quantized, channel": ("float8", {"strategy": "channel"}),
    "fp8, blocks of 128": ("fp8", {}),
    "bitsandbytes nf4": ("bnb4", {"kind": "nf4", "double": True}),
    "bitsandbytes int8": ("bnb8", {}),
    "gptq 3-bit, unpacked": ("gptq", {"bits": 3}),
}
CONTEXT, PROMPT, TOKENS, ROUNDS = 512, 256, 12, 3
UNBARRED = ("bitsandbytes nf4", "gptq 3-bit, unpacked")  # what may be unpacked, or slower


def main() -> int:
    names = sys.argv[1:] or list(FORMATS)
    failed = 0
    with contextlib.ExitStack() as opened:
        home = tempfile.TemporaryDirectory(prefix="memfit-quantized-", dir=Path.home())
        folder = Path(opened.enter_context(home))
        plain = checkpoint("demo", folder / "bf16", "bfloat16")
        workload = memfit.Workload(context=CONTEXT, threads=2)
        bf16 = opened.enter_context(memfit.load(memfit.plan(str(plain), workload=workload)))
        print(f"{'':26}{'files':>9}{'resident':>9}{'plan':>9}{'peak':>9}{'prompt':>14}{'one token':>14}")
        for name in names:
            form, settings = FORMATS[name]
            made, _ = quantize(plain, folder / "made", form, **settings)
            failed += compare(name, bf16, made)
            shutil.rmtree(folder / "made")
    return failed


def compare(name: str, bf16: memfit.Session, made: Path) -> int:
    """How many bars it misses."""
    weights = find_weights(made / "config.json")
    assert weights
    stored = sum(one.size_bytes for one in weights.tensors)
    workload = memfit.Workload(context=CONTEXT, threads=2)
    needs = memfit.plan(str(made), workload=workload).ram.total_bytes
    planned = memfit.plan(str(made), workload=workload, budget=memfit.Budget(ram=int(needs * 1.01)))
    with memfit.load(planned) as session:
        speeds: dict[Any, list[tuple[float, float]]] = {bf16: [], session: []}
        for _ in range(ROUNDS):
            for one, found in speeds.items():
                measured = one.measure(PROMPT, TOKENS)
                rates = measured.prompt_tokens_per_second, measured.generation_tokens_per_second
                found.append((rates[0] or 0.0, rates[1] or 0.0))
        report = session.report()
    assert report.model is not None
    resident, peak = report.model.loaded_bytes, report.tiers[0].peak_bytes or 0
    (plain_prompt, plain_one), (prompt, one) = (
        (median(pair[0] for pair in found), median(pair[1] for pair in found)) for found in speeds.values()
    )
    (error,) = [tier.error_bytes or 0 for tier in report.tiers]
    print(
        f"{name:26}{stored / MIB:>9.1f}{resident / MIB:>9.1f}{needs / MIB:>9.1f}{peak / MIB:>9.1f}"
        f"{prompt:>8.0f} {prompt / plain_prompt:>4.2f}x{one:>8.1f} {one / plain_one:>4.2f}x",
        flush=True,
    )
    bars = [report.within_budget, abs(error) <= max(0.02 * needs, 16 * MIB)]
    if name not in UNBARRED:
        bars += [resident <= 1.15 * stored, prompt >= plain_prompt / 2, one >= plain_one / 2]
    return len(bars) - sum(bars)


if __name__ == "__main__":
    sys.exit(main())
