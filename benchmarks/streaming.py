"""Models larger than their RAM budget: ours against llama.cpp's mmap in the same memory cgroup, in one run.

    sudo python benchmarks/streaming.py [MODEL …]

RAM holds 90, 75 or 50 % of the weights. Both run inside a memory cgroup (v1) of the budget and 16 MiB, with
caches emptied before. llama.cpp's is the better of repacked and plain. The bound is the slower of computing
(ours, all resident) and reading what is streamed at the disk's speed of that moment, measured before and
after. Bars: generation at least 5, 3 and 1.8 times llama.cpp's and 80 % of the bound, the peak within the
budget and within max(2 %, 16 MiB) of the prediction, and at 50 % a prompt of 512 tokens 3 times as fast.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shapes import BIG
from subjects import models, peers
from synthetic import write_model

MIB = 1 << 20
SHARES = {0.9: 5.0, 0.75: 3.0, 0.5: 1.8}  # of the weights in RAM → times llama.cpp's generation
PROMPT, GENERATED, CONTEXT = 512, 16, 1024
THEIR_TOKENS = 1
THEIR_SECONDS = 60  # and then what they would at best have reached counts
SLACK = 16 * MIB  # what the kernel counts beside, such as page tables
CGROUPS = Path("/sys/fs/cgroup/memory")
OURS = """
import json, sys, memfit
path, ram, prompt, generated, context = sys.argv[1:]
workload = memfit.Workload(context=int(context), threads=2, repack="off")
plan = memfit.plan(path, budget=memfit.Budget(ram=ram or None), workload=workload, count_parent=True)
with memfit.load(plan, count_parent=True) as session:
    session.measure(int(prompt), int(generated))
    report = session.report()
    print(json.dumps(report.to_json(text="", finish_reason="", prompt_tokens=0, completion_tokens=0)))
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="memfit-streaming-", dir=Path.home()) as folder:
        subjects = {Path(one).stem: one for one in sys.argv[1:]}
        if not subjects:
            subjects = {"demo": models()["demo"], "dense 4.1 GB": str(Path(folder) / "big.gguf")}
            write_model(Path(subjects["dense 4.1 GB"]), BIG, values="random")
        print(
            "| model | RAM | budget MiB | peak | error | streamed MB | disk GB/s | bound tok/s "
            "| ours | of bound | llama.cpp | ratio | predicted "
            "| prompt: ours | llama.cpp | ratio | passes | missed |"
        )
        print("| --- |" + " --- |" * 17)
        missed = 0
        for name, path in subjects.items():
            whole = ours(path, None)
            for share in SHARES:
                missed += row(name, path, share, whole)
    return missed


def row(name: str, path: str, share: float, whole: dict) -> int:
    """Prints one row; the number of bars missed."""
    tier = whole["plan"]["tiers"][0]
    budget = tier["total_bytes"] - int((1 - share) * tier["weights_bytes"])
    with cgroup(budget + SLACK) as group:
        disk = disk_speed(path)
        mine = ours(path, str(budget), group)
        disk = (disk + disk_speed(path)) / 2
        theirs = max(llama_bench(path, group, repack, 0, THEIR_TOKENS) for repack in ("0", "1"))
        prompts = share == 0.5 and max(llama_bench(path, group, repack, PROMPT, 0) for repack in ("0", "1"))
    measured, streamed = mine["measured"], mine["plan"]["streamed_bytes_per_pass"]
    used, rate = measured["tiers"][0], measured["generation_tokens_per_second"]
    bound = min(whole["measured"]["generation_tokens_per_second"], disk / max(streamed, 1))
    predicted = mine["plan"]["predicted"]["generation_tokens_per_second"]
    passes = (measured["disk_read_bytes"] - mine["plan"]["tiers"][0]["weights_bytes"]) / max(streamed, 1)
    prompt = measured["prompt_tokens_per_second"]
    bars = {
        "peak": used["peak_bytes"] <= budget,
        "error": abs(used["error_bytes"]) <= max(0.02 * used["peak_bytes"], 16 * MIB),
        "llama.cpp": rate >= SHARES[share] * theirs,
        "bound": rate >= 0.8 * bound,
        "range": predicted["low"] <= rate <= predicted["high"],
        "prompt": not prompts or prompt >= 3 * prompts,
    }
    missed = [bar for bar, met in bars.items() if not met]
    cells = [
        name,
        f"{share:.0%}",
        f"{budget / MIB:.0f}",
        f"{used['peak_bytes'] / MIB:.0f}",
        f"{used['error_bytes'] / MIB:.1f}",
        f"{streamed / 1e6:.0f}",
        f"{disk / 1e9:.2f}",
        f"{bound:.2f}",
        f"{rate:.2f}",
        f"{rate / bound:.0%}",
        f"{theirs:.2f}",
        f"{rate / theirs:.1f}",
        f"{predicted['value']:.2f}",
        f"{prompt:.1f}",
        f"{prompts:.1f}" if prompts else "",
        f"{prompt / prompts:.1f}" if prompts else "",
        f"{passes:.1f}" if streamed else "",
        ", ".join(missed),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return len(missed)


def ours(path: str, ram: str | None, group: Path | None = None) -> dict:
    """Our report of a prompt and of tokens generated, each once, in a process of its own."""
    empty_caches()
    command = [sys.executable, "-c", OURS, path, ram or "", str(PROMPT), str(GENERATED), str(CONTEXT)]
    done = subprocess.run(inside(group, command), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def llama_bench(path: str, group: Path, repack: str, prompt: int, generated: int) -> float:
    empty_caches()
    command = [str(peers() / "llama-bench"), "-m", path, "-t", "2", "-p", str(prompt), "-n", str(generated)]
    command += ["-r", "1", "--no-warmup", "-lm", "mmap", "--repack", repack, "-o", "json"]
    try:
        done = subprocess.run(inside(group, command), capture_output=True, text=True, timeout=THEIR_SECONDS)
    except subprocess.TimeoutExpired:  # counted as if loading took none of it
        return (prompt + generated) / THEIR_SECONDS
    if done.returncode:  # repacked copies beside the mapping may not fit at all
        return 0.0
    return float(json.loads(done.stdout)[0]["avg_ts"])


def inside(group: Path | None, command: list[str]) -> list[str]:
    if group is None:
        return command
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]


@contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    group = CGROUPS / f"memfit-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def empty_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def disk_speed(path: str) -> float:
    """Bytes per second of the file itself, read as we read it, for up to a second."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    memory, offset, size = mmap.mmap(-1, 8 * MIB), 0, os.fstat(file).st_size
    started = time.perf_counter()
    while offset < size and time.perf_counter() - started < 1:
        offset += os.preadv(file, [memory], offset)
    seconds = time.perf_counter() - started
    os.close(file)
    return offset / seconds


if __name__ == "__main__":
    sys.exit(main())
