"""Predicted against published speed of transformers on machines that are only described.

    python benchmarks/published_checkpoints.py

One token after another, batch 1, as bitsandbytes 0.45 publishes it (transformers 4.46, torch 2.5) and others
do. Runs nothing on a GPU and plans by headers only. The T4 there is in a server of its own, not in a Colab
session. INT8 is the one with outliers, which is what transformers does unless it is told otherwise. Bars:
median error at most 20 %, 85 % inside their range.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from header_only import write_header_only

import memfit

BNB = "https://github.com/bitsandbytes-foundation/bitsandbytes/tree/main/benchmarking"
COLAB = "https://github.com/dohu012/llm-quantization-benchmark"
# machine, model, where it was published, precision → tokens per second
RUNS = (
    ("colab-t4", "qwen2.5-3b", BNB, {"fp16": 25.66, "nf4": 16.45, "nf4-dq": 13.58, "int8": 5.98}),
    ("colab-t4", "qwen2.5-0.5b", COLAB, {"fp16": 24.4, "int8": 6.3}),
    ("rtx4090-24gb", "llama-3.1-8b", BNB, {"bf16": 47.46, "nf4": 67.71, "nf4-dq": 57.08, "int8": 22.26}),
    ("rtx4090-24gb", "qwen2.5-14b", BNB, {"nf4": 46.74, "nf4-dq": 39.03, "int8": 15.44}),
    ("h100-80gb", "llama-3.1-8b", BNB, {"bf16": 40.99, "nf4": 30.14, "nf4-dq": 24.34, "int8": 12.24}),
    ("h100-80gb", "qwen2.5-32b", BNB, {"bf16": 19.67, "nf4": 14.14, "nf4-dq": 11.63, "int8": 5.49}),
    ("h100-80gb", "llama-3.1-70b", BNB, {"nf4": 12.0, "nf4-dq": 9.5, "int8": 5.04}),
)  # fmt: skip
_ERROR, _INSIDE = 0.20, 0.85


def main() -> int:
    print("| machine | model | precision | published | predicted | range | error | |\n|" + " --- |" * 8)
    errors, inside = [], []
    with tempfile.TemporaryDirectory(prefix="memfit-", dir=Path.home()) as folder:
        for machine, model, _, published in RUNS:
            path = write_header_only(model, Path(folder) / model)
            for precision, measured in published.items():
                load_in, _, nested = precision.partition("-")
                plan = memfit.plan(
                    str(path),
                    machine=machine,
                    load_in=load_in,
                    double_quant=bool(nested),
                    workload=memfit.Workload(context=1024),
                )
                rate = plan.prediction.main
                errors.append(rate.value / measured - 1)
                inside.append(rate.low <= measured <= rate.high)
                reach = f"{rate.low:.3g} to {rate.high:.3g}"
                cells = (machine, model, precision, f"{measured:.2f}", f"{rate.value:.3g}", reach)
                verdict = "" if inside[-1] else "outside"
                print(f"| {' | '.join(cells)} | {errors[-1]:+.0%} | {verdict} |")
    middle, share = median(map(abs, errors)), sum(inside) / len(inside)
    is_met = middle <= _ERROR and share >= _INSIDE
    print(f"\nmedian error {middle:.0%}, inside {share:.0%}: {'met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
