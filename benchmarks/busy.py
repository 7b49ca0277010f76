"""memfit where other programs compute, against llama-bench in the same state.

    python benchmarks/busy.py [MODEL …]

Models are files; without any, the packaged demo and a synthetic one of 0.6 B parameters in Q4_K. In every
round each program runs alone, then beside one process that computes all the time; then two and four of ours
at once; then ours with a load that begins in the middle of an answer. All are given two threads. Bars, as
medians over ROUNDS (5 unless the environment says otherwise): beside one process at least 0.45 of the speed
alone and 1.0 of llama-bench's, prompts likewise; two at once 0.35 each; four end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from shapes import TINY
from subjects import MEMFIT, models, peers
from synthetic import write_model

import memfit

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PROMPT, GENERATED, THREADS = 256, 48, 2
LOAD_AFTER_SECONDS = 1.5
PATIENCE_SECONDS = 120.0  # for llama-bench; its speed is then taken to be what that would be
Rates = tuple[float, float]  # prompt and generation, tokens per second


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="memfit-busy-") as folder:
        paths = {Path(one).name: one for one in sys.argv[1:]}
        if not paths:
            synthetic = Path(folder) / "synthetic.gguf"
            write_model(synthetic, TINY)
            paths = {"demo": models()["demo"], "synthetic 0.6B Q4_K": str(synthetic)}
        print("| model | state | ours: prompt, generation | llama-bench | of ours alone | of llama-bench's |")
        print("|" + " --- |" * 6)
        return sum(compare(name, path) for name, path in paths.items())


def compare(name: str, path: str) -> int:
    """Prints the rows of a model; the number of bars missed."""
    finish([start_ours(path)])  # measures what is measured once
    ours: dict[str, list[Rates]] = defaultdict(list)
    theirs: dict[str, list[Rates]] = defaultdict(list)
    for _ in range(ROUNDS):
        ours["alone"] += finish([start_ours(path)])
        theirs["alone"] += [llama_bench(path)]
        with busy():
            ours["one busy process"] += finish([start_ours(path)])
            theirs["one busy process"] += [llama_bench(path)]
        ours["two at once"].append(least(finish([start_ours(path) for _ in range(2)])))
        ours["four at once"].append(least(finish([start_ours(path) for _ in range(4)])))
        ours["load in the middle"].append(in_the_middle(path))
    missed = 0
    for state, rates in ours.items():
        mine = middle(rates)
        alone = share(rates, ours["alone"])
        beside = share(rates, theirs[state]) if theirs[state] else None
        peer = middle(theirs[state]) if theirs[state] else None
        bar = {"one busy process": 0.45, "load in the middle": 0.45, "two at once": 0.35}.get(state, 0.0)
        missed += min(alone) < bar or (beside is not None and min(beside) < 0.97)
        print(
            f"| {name} | {state} | {pair(mine)} | {pair(peer)} | {pair(alone)} | {pair(beside)} |", flush=True
        )
    return missed


def start_ours(path: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(*MEMFIT, "bench", path, "--json", "--threads", str(THREADS)),
            *("--prompt-tokens", str(PROMPT), "--gen-tokens", str(GENERATED)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(started: list[subprocess.Popen[str]]) -> list[Rates]:
    found = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"memfit bench ended with exit code {process.returncode}")
        measured = json.loads(output)["measured"]
        found.append((measured["prompt_tokens_per_second"], measured["generation_tokens_per_second"]))
    return found


def llama_bench(path: str) -> Rates:
    command = [str(peers() / "llama-bench"), "-m", path, "-t", str(THREADS), "-r", "1", "-o", "json"]
    rates = []
    for tokens in (("-p", str(PROMPT), "-n", "0"), ("-p", "0", "-n", str(GENERATED))):
        try:
            done = subprocess.run(
                [*command, *tokens], check=True, capture_output=True, timeout=PATIENCE_SECONDS
            )
            rates.append(json.loads(done.stdout)[0]["avg_ts"])
        except subprocess.TimeoutExpired:
            rates.append(max(PROMPT, GENERATED) / PATIENCE_SECONDS)
    return rates[0], rates[1]


@contextlib.contextmanager
def busy(after_seconds: float = 0.0) -> Iterator[None]:
    """Beside one process that computes, from some time on."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep({after_seconds})\nwhile 1: pass"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_the_middle(path: str) -> Rates:
    """A load comes while an answer is computed: the rates from then on."""
    workload = memfit.Workload(context=4096, threads=THREADS)
    with memfit.load(path, workload=workload) as session:
        rate = session.measure(0, GENERATED).generation_tokens_per_second or 0.0
        tokens = round(5 * LOAD_AFTER_SECONDS * rate)
        alone = session.measure(0, tokens).generation_seconds
        with busy(LOAD_AFTER_SECONDS):
            seconds = session.measure(0, tokens).generation_seconds
            prompt = session.measure(PROMPT, 1).prompt_tokens_per_second or 0.0
    # The same tokens follow the load's beginning: the more there are before, the longer each takes.
    return prompt, rate * (alone - LOAD_AFTER_SECONDS) / (seconds - LOAD_AFTER_SECONDS)


def least(rates: list[Rates]) -> Rates:
    return min(one for one, _ in rates), min(other for _, other in rates)


def middle(rates: list[Rates]) -> Rates:
    return median(one for one, _ in rates), median(other for _, other in rates)


def share(rates: list[Rates], of: list[Rates]) -> Rates:
    return middle([(one[0] / other[0], one[1] / other[1]) for one, other in zip(rates, of, strict=True)])


def pair(rates: Rates | None) -> str:
    return "" if rates is None else ", ".join(f"{one:.3g}" for one in rates)


if __name__ == "__main__":
    raise SystemExit(main())
