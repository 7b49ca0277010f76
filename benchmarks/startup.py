"""Seconds until memfit has an answer to give. Medians of five.

    python benchmarks/startup.py

Bounds: `--help` 0.25 s, `plan` of a local file 1.5 s, a budget too small refused in 2 s with a suggestion
that then works. From the command to the end of an answer of one token: llama-completion's time, repacked or
not as ours, and 0.6 s for the demo; 1.2 times it and 0.4 s for a model of Qwen2.5-1.5B's shape. What is
measured once is measured before; how long the very first run takes is told beside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from shapes import QWEN25_1B5
from subjects import MEMFIT, memfit, models, peers
from synthetic import write_model

REPETITIONS = 5
HELLO = ("-p", "Hello", "--raw", "--max-tokens", "1", "--temperature", "0", "--threads", "2")


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
    return failures + hello()


def hello() -> int:
    """A short answer, start included, against llama-completion's."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="memfit-startup-") as folder:
        larger = Path(folder) / "larger.gguf"
        write_model(larger, QWEN25_1B5)
        print("| model | repack | first run | ours | llama-completion | at most |\n|" + " --- |" * 6)
        for name, path, factor, more in (
            ("demo", models()["demo"], 1.0, 0.6),
            ("1.5B", str(larger), 1.2, 0.4),
        ):
            for repack in ("off", "on"):
                ours = [*MEMFIT, "run", path, "--repack", repack, "--ram", "6GiB", *HELLO]
                theirs = [str(peers() / "llama-completion"), "-m", path, "-p", "Hello", "-n", "1", "-no-cnv"]
                theirs += ["-t", "2", "--temp", "0", *(["--no-repack"] if repack == "off" else [])]
                first = seconds(ours, {"XDG_CACHE_HOME": f"{folder}/{name}-{repack}"})
                turns = [(seconds(ours), seconds(theirs)) for _ in range(1 + REPETITIONS)][1:]
                mine, peer = (median(column) for column in zip(*turns, strict=True))
                most = factor * peer + more
                failures += mine > most
                print(
                    f"| {name} | {repack} | {first:.2f} | {mine:.2f} | {peer:.2f} | {most:.2f} |", flush=True
                )
    return failures


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, env=os.environ | (environment or {})
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-500:]}")
    return time.perf_counter() - started


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
