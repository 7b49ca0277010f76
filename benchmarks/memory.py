"""Predicted against measured RAM, over models, contexts, KV types and sequences.

    python benchmarks/memory.py

Each case is planned by one process and run by another, under a budget 16 MiB above the prediction. The
run's own peak is checked by a second opinion: the summed Pss of its processes, sampled from outside
every 10 ms. For one configuration of each model a prompt fills the context.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from statistics import median

import psutil
from subjects import MEMFIT, memfit, models

from memfit.units import MIB

CONTEXTS = (512, 4096, 0)  # 0: the model's maximum
SLACK_BYTES = 16 * MIB


def main() -> int:
    errors, failures = [], 0
    print("| model | ctx | KV | parallel | predicted MiB | peak MiB | error MiB | Pss MiB | budget MiB | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (name, path), context, kv_type, parallel in itertools.product(
        models().items(), CONTEXTS, ("f16", "q8_0"), (1, 4)
    ):
        _, facts, _ = memfit("inspect", path)
        tokens = context or facts["context_length"]
        options = ["--ctx", str(tokens), "--kv-type", kv_type, "--parallel", str(parallel)]
        fill = (context, kv_type, parallel) == (4096, "f16", 1)
        _, wide, _ = memfit("plan", path, *options)
        budget = wide["tiers"][0]["total_bytes"] + SLACK_BYTES
        options += ["--ram", str(budget)]
        _, plan, _ = memfit("plan", path, *options)
        predicted = plan["tiers"][0]["total_bytes"]
        result, pss = run_watched(
            [*MEMFIT, "run", path, *options, "--raw", "--max-tokens", "16", "--json"], fill
        )
        tier = result["measured"]["tiers"][0]
        peak, error = tier["peak_bytes"], predicted - tier["peak_bytes"]
        assert tier["predicted_bytes"] == result["plan"]["tiers"][0]["total_bytes"]
        good = peak <= budget and pss <= budget and abs(error) <= max(0.02 * peak, 16 * MIB)
        failures += not good
        errors.append(abs(error))
        note = f"prompt of {result['usage']['prompt_tokens']} tokens" if fill else ""
        cells = [predicted, peak, error, pss, budget]
        print(
            f"| {name} | {tokens} | {kv_type} | {parallel} | "
            + " | ".join(f"{value / MIB:.1f}" for value in cells)
            + f" | {'ok' if good else 'FAILS'} {note} |",
            flush=True,
        )
    middle, largest = median(errors) / MIB, max(errors) / MIB
    print(f"error: median {middle:.2f} MiB, largest {largest:.2f} MiB; {failures} failures")
    return failures


def run_watched(command: list[str], fill: bool) -> tuple[dict, int]:
    """The run's JSON, and the highest sum of Pss seen over it and its children."""
    prompt = "word " * 4070 if fill else "The capital of France is"
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not done.is_set():
            total = 0
            try:
                for one in [root, *root.children(recursive=True)]:
                    total += one.memory_full_info().pss
            except psutil.Error:
                continue
            peak = max(peak, total)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, error = process.communicate(prompt.encode())
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(error.decode())
    return json.loads(output), peak


if __name__ == "__main__":
    sys.exit(main())
