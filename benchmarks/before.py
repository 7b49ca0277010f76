"""This checkout against another commit of memfit: the same text, speed and memory errors, in pairs.

    python benchmarks/before.py COMMIT [CHECKPOINT]

COMMIT is checked out into a temporary folder and runs with this environment's packages. Each side has a
cache folder of its own, since calibrations belong to the code that made them. The sides take turns, PAIRS
times (7 unless the environment says otherwise) and for two minutes at least. Bars: the median ratio of speeds
is at least 0.98, for a prompt, an answer, a batch of 128 requests, and a model of 1 GB of which half is read
from the disk; five prompts get the same greedy text; no memory error grows by more than 2 MiB. CHECKPOINT is
a folder that transformers runs, in bf16: its text and its speed too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from shapes import SMALL
from subjects import ROOT
from synthetic import write_model
from text import PROMPTS

from memfit.units import MIB

PAIRS = int(os.environ.get("PAIRS", "7"))
LEAST_SECONDS = 120.0
GREEDY = ("--temperature", "0", "--max-tokens", "64")
BAR, ERROR_MIB = 0.98, 2.0

Memfit = Callable[..., dict[str, Any]]  # arguments of a command → what it prints under --json


def main() -> int:
    commit, *checkpoint = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        folder = Path(name)
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", folder / "before", commit], check=True)
        try:
            sides = side(folder / "before", folder), side(ROOT, folder)
            return compare(sides, folder, checkpoint)
        finally:
            subprocess.run([*git, "remove", "--force", folder / "before"], check=True)


def side(root: Path, folder: Path) -> Memfit:
    """memfit from this source, with its own cache folder."""
    environment = os.environ | {
        "PYTHONPATH": str(root / "src"),
        "XDG_CACHE_HOME": str(folder / f"cache of {root.name}"),
    }
    subprocess.run([sys.executable, "-m", "compileall", "-q", root / "src"], check=True)

    def run(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "memfit", *arguments, "--json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{root.name}: memfit {' '.join(arguments)}: {done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def compare(sides: tuple[Memfit, Memfit], folder: Path, checkpoint: list[str]) -> int:
    small = folder / "small.gguf"
    write_model(small, SMALL, values="zeros")
    held = sides[1]("plan", str(small), "--ctx", "1024", "--repack", "off")["tiers"][0]
    half = held["total_bytes"] - held["weights_bytes"] // 2
    requests = folder / "requests.jsonl"
    lines = [{"prompt": f"{number}. {PROMPTS[number % len(PROMPTS)]}"} for number in range(128)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def bench(*arguments: str) -> Callable[[Memfit], dict[str, Any]]:
        return lambda memfit: memfit("bench", *arguments)["measured"]

    def batch(memfit: Memfit) -> dict[str, Any]:
        output = folder / "answers.jsonl"
        done = memfit("batch", "demo", "--input", str(requests), "--output", str(output), "--overwrite",
                      "--ram", "1GiB", *GREEDY)  # fmt: skip
        return {**done["measured"], "requests_per_second": len(lines) / done["seconds"]}

    works = {
        "demo": bench("demo", "--ram", "512MiB"),
        "batch": batch,
        "half from disk": bench(
            *(str(small), "--ctx", "1024", "--repack", "off", "--ram", str(half)),
            *("--prompt-tokens", "128", "--gen-tokens", "8"),
        ),
    }
    engines = {"llama.cpp": ("demo", "--ram", "512MiB", "--repack", "off")}
    if checkpoint:
        bf16 = engines["transformers"] = (checkpoint[0], "--load-in", "bf16", "--ram", "2GiB")
        works["checkpoint"] = bench(*bf16, "--prompt-tokens", "128", "--gen-tokens", "32")
    failures = sum([not same_text(sides, name, model) for name, model in engines.items()])
    print("| work | figure | before | now | ratio, or MiB more |\n|" + " --- |" * 5)
    for name, work in works.items():
        failures += pairs(sides, name, work)
    return failures


def same_text(sides: tuple[Memfit, Memfit], name: str, model: tuple[str, ...]) -> bool:
    texts = [[run("run", *model, "-p", one, "--raw", *GREEDY)["text"] for one in PROMPTS] for run in sides]
    same = sum(one == other for one, other in zip(*texts, strict=True))
    print(f"{name}: {same} of {len(PROMPTS)} prompts get the same greedy text", flush=True)
    return same == len(PROMPTS)


def pairs(sides: tuple[Memfit, Memfit], name: str, work: Callable[[Memfit], dict[str, Any]]) -> int:
    """Prints a row a figure; returns how many bars were missed."""
    for memfit in sides:
        work(memfit)  # measures what is measured once, and warms the page cache
    turns: list[list[dict[str, Any]]] = []
    ends = time.monotonic() + LEAST_SECONDS  # a short work's figures vary more
    while len(turns) < PAIRS or time.monotonic() < ends:
        order = 1 if len(turns) % 2 else -1
        turns.append([work(memfit) for memfit in sides[::order]][::order])
    missed = 0
    for key in ("requests_per_second", "prompt_tokens_per_second", "generation_tokens_per_second"):
        if key not in turns[0][0] or (name == "batch" and key != "requests_per_second"):
            continue
        values = [(one[key], other[key]) for one, other in turns]
        ratio = median(now / before for before, now in values)
        before, now = (median(column) for column in zip(*values, strict=True))
        missed += ratio < BAR
        print(f"| {name} | {key} | {before:.1f} | {now:.1f} | {ratio:.3f} |", flush=True)
    errors = [[abs(one["tiers"][0]["error_bytes"]) / MIB for one in turn] for turn in turns]
    before, now = (median(column) for column in zip(*errors, strict=True))
    missed += now > before + ERROR_MIB
    print(f"| {name} | RAM's error, MiB | {before:.2f} | {now:.2f} | {now - before:+.2f} |", flush=True)
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
