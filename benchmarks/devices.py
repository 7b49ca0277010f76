"""Budgets on loopback workers, held and filled, with the CPU's own text.

    python benchmarks/devices.py

Each model runs on one RPC server with about half of what it needs, and on two with a quarter each.
Checked: every device's peak is within its budget and within max(2 %, 16 MiB) of the prediction, at least
97 % of each budget is used, the bytes in RAM likewise, and the first 64 greedy tokens equal those of a run
in RAM (repack off).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rpc_servers import rpc_servers
from shapes import MOE, SMALL
from subjects import memfit, models
from synthetic import write_model

from memfit.headers import read_model
from memfit.units import MIB

PROMPTS = ("The capital of France is", "Once upon a time, in a small village by the sea,")
SHARES = ((0.5,), (0.3, 0.25))
THREADS = "1"  # less than the workers' two, so that a device is the faster place
WORKER_BYTES = 26 * MIB  # of a worker itself


def main() -> int:
    failures = 0
    print("| model | devices | tier | budget MiB | predicted | peak | error | used | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="memfit-devices-") as folder:
        subjects = models()
        for name, shape in (("small", SMALL), ("moe", MOE)):
            path = Path(folder) / f"{name}.gguf"
            write_model(path, shape, values="random")
            subjects[name] = str(path)
        for name, path in subjects.items():
            texts = [run(path, prompt)[0]["text"] for prompt in PROMPTS]
            _, whole, _ = memfit("plan", path, "--repack", "off", "--ctx", "2048")
            needs = whole["tiers"][0]["weights_bytes"] + whole["tiers"][0]["kv_cache_bytes"]
            needs -= token_table_bytes(path)  # it fits whole or not at all
            for shares in SHARES:
                budgets = [int(share * needs) + WORKER_BYTES + 20 * MIB for share in shares]
                with rpc_servers(*budgets) as endpoints:
                    options = [part for one in endpoints for part in ("--rpc", one)]
                    for prompt, text in zip(PROMPTS, texts, strict=True):
                        document, plan = run(path, prompt, *options)
                        failures += judge(name, len(shares), document, plan, text)
    print(f"{failures} failures")
    return failures


def run(path: str, prompt: str, *options: str) -> tuple[dict, dict]:
    common = [path, "--repack", "off", "--threads", THREADS, "--ctx", "2048", *options]
    _, plan, _ = memfit("plan", *common)
    code, document, error = memfit(
        "run", *common, "-p", prompt, "--raw", "--temperature", "0", "--max-tokens", "64"
    )
    if code:
        sys.exit(error)
    return document, plan


def token_table_bytes(path: str) -> int:
    tensors = read_model(path).tensors
    return sum(one.size_bytes for one in tensors if one.name in ("token_embd.weight", "output.weight"))


def judge(name: str, devices: int, document: dict, plan: dict, text: str) -> int:
    """Prints a row per tier; the number of bars missed."""
    missed = int(document["text"] != text)
    for tier, planned in zip(document["measured"]["tiers"], plan["tiers"], strict=True):
        budget, peak, predicted = (tier[f"{key}_bytes"] for key in ("budget", "peak", "predicted"))
        error, used = predicted - peak, predicted / budget
        good = peak <= budget and abs(error) <= max(0.02 * peak, 16 * MIB)
        good = good and (tier["kind"] == "ram" or used >= 0.97)
        missed += not good
        cells = " | ".join(f"{size / MIB:.1f}" for size in (budget, predicted, peak, error))
        print(
            f"| {name} | {devices} | {tier['kind']} | {cells} | {100 * used:.1f} % | "
            f"{'ok' if good else 'FAILS'} {'same text' if document['text'] == text else 'OTHER TEXT'} |",
            flush=True,
        )
        assert planned["total_bytes"] > 0 or tier["kind"] == "vram"
    return missed


if __name__ == "__main__":
    sys.exit(main())
