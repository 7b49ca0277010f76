"""Seconds until memfit has an answer to give. Medians of five.

    python benchmarks/startup.py

Bounds: `--help` 0.25 s, `plan` of a local file 1.5 s, a budget too small refused in 2 s with a
suggestion that then works. Calibration is cached: run memfit once before.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from subjects import MEMFIT, memfit, models

REPETITIONS = 5


def main() -> int:
    failures = timed("--help", ["--help"], 0.25, 0)
    for name, path in models().items():
        memfit("plan", path)  # so that kernels are measured and files are warm
        failures += timed(f"plan {name}", ["plan", path, "--json"], 1.5, 0)
        small = ["--ctx", "4096", "--kv-type", "f16", "--ram", "150MiB"]
        failures += timed(f"plan {name}, too small", ["plan", path, *small, "--json"], 2.0, 3)
        failures += timed(f"run {name}, too small", ["run", path, *small, "-p", "x", "--json"], 2.0, 3)
        _, refused, _ = memfit("plan", path, *small)
        for suggestion in refused["try"]:
            options = ["--raw", "-p", "The capital of France is", "--max-tokens", "2"]
            code, document, _ = memfit("run", path, *small, *suggestion.split(), *options)
            works = code == 0 and document["within_budget"]
            failures += not works
            print(f"| {name}: try {suggestion} | {'works' if works else 'FAILS'} | |")
    return failures


def timed(label: str, arguments: list[str], bound_seconds: float, code: int) -> int:
    """Prints a row; 1 where the bound or the exit code is missed."""
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        done = subprocess.run([*MEMFIT, *arguments], capture_output=True, stdin=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
        if done.returncode != code:
            print(f"| {label} | exit code {done.returncode}, not {code} | |")
            return 1
    missed = median(seconds) > bound_seconds
    print(
        f"| {label} | {median(seconds):.2f} s | under {bound_seconds} s{' MISSED' if missed else ''} |",
        flush=True,
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
