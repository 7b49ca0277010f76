"""Layers of a checkpoint on the disk, in transformers: this checkout against an earlier commit; predictions.

    python benchmarks/disk_layers.py COMMIT
    python benchmarks/disk_layers.py --predictions

SmolLM2 in fp32 with 216 MiB of its layers on the disk, and in bf16 with 108. COMMIT is checked out into a
temporary folder and runs with this environment's packages; both sides take turns, PAIRS times (3 unless the
environment says otherwise), each in a process of its own. The disk's bandwidth is that of direct reads of the
model's file between them. Bars: a token 3 times as fast (median of the pairs) or 0.8 of the bandwidth, the
same greedy text, the peak within the budget and within max(2 %, 16 MiB) of the prediction.

--predictions is ours alone, at more shares and with a random llama: generation inside its predicted range,
9 of 10. Models are written into the home folder, 1.5 GB at most, and deleted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import checkpoint
from subjects import ROOT

from memfit.hardware.disk_speed import measure_file

MIB = 1 << 20
PAIRS = int(os.environ.get("PAIRS", "3"))
WANTED = {"fp32": 216, "bf16": 108}  # MiB on the disk
SHARES = (0.3, 0.5, 0.7, 0.9)  # of the layers, for predictions
# As little RAM as leaves so much on the disk: what each side holds beside it differs.
RUN = """
import json, sys, memfit
path, load_in, wanted, ram = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
workload = memfit.Workload(context=1024, threads=2, prompt_tokens=128)
plan = memfit.plan(path, load_in=load_in, workload=workload, budget=memfit.Budget(ram=ram or None))
if not ram:
    ram = plan.ram.total_bytes - wanted + (48 << 20)
    while plan.streamed_bytes < wanted:
        ram -= 4 << 20
        plan = memfit.plan(path, load_in=load_in, workload=workload, budget=memfit.Budget(ram=ram))
greedy = memfit.Sampling(temperature=0, max_tokens=24)
with memfit.load(plan) as session:
    text = session.generate("The sky is blue because", greedy).text
    speed = session.measure(128, 16)
    tier = session.report().tiers[0]
rate = plan.prediction.generation
print(json.dumps({
    "ram": ram, "streamed": plan.streamed_bytes, "text": text, "predicted": [rate.value, rate.low, rate.high],
    "generation": speed.generation_tokens_per_second, "prompt": speed.prompt_tokens_per_second,
    "peak": tier.peak_bytes, "error": tier.error_bytes,
}))
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="memfit-disk-", dir=Path.home()) as name:
        folder = Path(name)
        demo = checkpoint("demo", folder / "demo")
        if sys.argv[1] == "--predictions":
            return predictions({"SmolLM2": demo, "llama": checkpoint("llama", folder / "llama", "bfloat16")})
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", folder / "before", sys.argv[1]], check=True)
        try:
            return compare(demo, folder / "before")
        finally:
            subprocess.run([*git, "remove", "--force", folder / "before"], check=True)


def run(root: Path, path: Path, load_in: str, wanted: int, ram: int = 0) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(root / "src"),
        "XDG_CACHE_HOME": str(path.parent / f"cache of {root.name}"),  # calibrations belong to the code
    }
    command = [sys.executable, "-c", RUN, str(path), load_in, str(wanted), str(ram)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(path: Path, before: Path) -> int:
    print(
        "| SmolLM2 | streamed MiB | tok/s, before | now | ratio | prompt, before | now | disk GB/s | of it "
        "| predicted | peak MiB | error | same text | missed |\n|" + " --- |" * 14
    )
    missed = 0
    for load_in, mib in WANTED.items():
        rams, turns, disks = {before: 0, ROOT: 0}, [], []
        for number in range(PAIRS):
            pair = {}
            for root in (before, ROOT)[:: 1 if number % 2 else -1]:
                disks.append(sum(measure_file(path / "model.safetensors")) / 2)
                pair[root] = run(root, path, load_in, mib * MIB, rams[root])
                rams[root] = pair[root]["ram"]
            turns.append((pair[before], pair[ROOT]))
        missed += row(load_in, turns, median(disks))
    return missed


def row(load_in: str, turns: list[tuple[dict[str, Any], dict[str, Any]]], disk: float) -> int:
    ratio = median(now["generation"] / then["generation"] for then, now in turns)
    speeds = [
        [median(turn[side][kind] for turn in turns) for side in (0, 1)] for kind in ("generation", "prompt")
    ]
    now = turns[-1][1]
    share = now["streamed"] * speeds[0][1] / disk
    peak = max(turn[1]["peak"] for turn in turns)
    error = max((turn[1]["error"] for turn in turns), key=abs)
    bars = {
        "speed": ratio >= 3 or share >= 0.8,
        "text": len({one["text"] for turn in turns for one in turn}) == 1,
        "budget": peak <= now["ram"],
        "error": abs(error) <= max(0.02 * peak, 16 * MIB),
    }
    value, low, high = now["predicted"]
    cells = [
        load_in,
        f"{now['streamed'] / MIB:.0f}",
        f"{speeds[0][0]:.2f}",
        f"{speeds[0][1]:.2f}",
        f"{ratio:.2f}",
    ]
    cells += [f"{speeds[1][0]:.0f}", f"{speeds[1][1]:.0f}", f"{disk / 1e9:.2f}", f"{share:.2f}"]
    cells += [f"{value:.1f} ({low:.1f} to {high:.1f})", f"{peak / MIB:.1f}", f"{error / MIB:.1f}"]
    cells += ["yes" if bars["text"] else "no", ", ".join(bar for bar, met in bars.items() if not met)]
    print(f"| {' | '.join(cells)} |", flush=True)
    return sum(not met for met in bars.values())


def predictions(models: dict[str, Path]) -> int:
    print("| model | precision | streamed MiB | tok/s | predicted | range | inside |\n|" + " --- |" * 7)
    inside = count = 0
    for name, path in models.items():
        for load_in in WANTED:
            size = 4 if load_in == "fp32" else 2
            layers = {"SmolLM2": 106_204_000, "llama": 193_000_000}[name] * size
            for share in SHARES:
                found = run(ROOT, path, load_in, int(layers * share))
                value, low, high = found["predicted"]
                met = low <= found["generation"] <= high
                inside, count = inside + met, count + 1
                cells = [name, load_in, f"{found['streamed'] / MIB:.0f}", f"{found['generation']:.2f}"]
                cells += [f"{value:.2f}", f"{low:.2f} to {high:.2f}", "yes" if met else "no"]
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"{inside} of {count} inside")
    return inside < 0.9 * count


if __name__ == "__main__":
    raise SystemExit(main())
