"""Models larger than their RAM budget: ours against llama.cpp's mmap in the same memory cgroup, in one run.

    sudo python benchmarks/streaming.py [MODEL …]

RAM holds 90, 75 or 50 % of the weights. Both run inside a memory cgroup (v1) of the budget and 16 MiB, caches
emptied before. llama.cpp's is the better of repacked and plain. The bound is the slower of computing (ours,
all resident) and reading what is streamed at the disk's speed of that moment, measured before and after. Bars:
generation at least 5, 3 and 1.8 times llama.cpp's and 80 % of the bound, the peak within the budget and
max(2 %, 16 MiB) of the prediction, and at 50 % a prompt of 512 tokens at least 3 times as fast.
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
from subjects import MEMFIT, models, peers
from synthetic import write_model

MIB = 1 << 20
SHARES = {0.9: 5.0, 0.75: 3.0, 0.5: 1.8}  # of the weights in RAM → times llama.cpp's generation
PROMPT, GENERATED, CONTEXT = 512, 24, 1024
THEIR_TOKENS = 4  # they take a second each
SLACK = 16 * MIB  # what the kernel counts beside, such as page tables
CGROUPS = Path("/sys/fs/cgroup/memory")
COMMON = ("--repack", "off", "--ctx", str(CONTEXT), "--threads", "2", "--json")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="memfit-streaming-", dir=Path.home()) as folder:
        subjects = {Path(one).stem: one for one in sys.argv[1:]}
        if not subjects:
            subjects = {"demo": models()["demo"], "dense 4.1 GB": str(Path(folder) / "big.gguf")}
            write_model(Path(subjects["dense 4.1 GB"]), BIG, values="random")
        print(
            "| model | RAM | budget MiB | peak | error | streamed MB | disk GB/s | tok/s: bound | ours | of bound "
            "| llama.cpp | ratio | predicted | prompt: ours | llama.cpp | ratio | passes |"
        )
        print("| --- |" + " --- |" * 16)
        return sum(
            row(name, path, share, gain) for name, path in subjects.items() for share, gain in SHARES.items()
        )


def row(name: str, path: str, share: float, gain: float) -> int:
    """Prints one row; the number of bars missed."""
    whole = ours(["bench", path, "--gen-tokens", str(GENERATED), "--prompt-tokens", "32"])
    tier = whole["plan"]["tiers"][0]
    budget = tier["total_bytes"] - int((1 - share) * tier["weights_bytes"])
    with cgroup(budget + SLACK) as group:
        disk = disk_speed(path)
        mine = ours(
            [
                "bench",
                path,
                "--ram",
                str(budget),
                "--gen-tokens",
                str(GENERATED),
                "--prompt-tokens",
                str(PROMPT),
            ],
            group,
        )
        disk = (disk + disk_speed(path)) / 2
        theirs = max(llama_bench(path, group, repack, 0, THEIR_TOKENS) for repack in ("0", "1"))
        prompts = (
            max(llama_bench(path, group, repack, PROMPT, 0) for repack in ("0", "1")) if share == 0.5 else 0.0
        )
    measured, streamed = mine["measured"], mine["plan"]["streamed_bytes_per_pass"]
    used, rate = measured["tiers"][0], measured["generation_tokens_per_second"]
    bound = min(whole["measured"]["generation_tokens_per_second"], disk / streamed if streamed else 1e9)
    predicted = mine["plan"]["predicted"]["generation_tokens_per_second"]
    pinned = used["predicted_bytes"] - (tier["total_bytes"] - tier["weights_bytes"])
    passes = (measured["disk_read_bytes"] - pinned) / streamed if streamed else 0.0
    prompt = measured["prompt_tokens_per_second"]
    misses = [
        used["peak_bytes"] > budget,
        abs(used["error_bytes"]) > max(0.02 * used["peak_bytes"], 16 * MIB),
        rate < gain * theirs,
        rate < 0.8 * bound,
        not predicted["low"] <= rate <= predicted["high"],
        share == 0.5 and prompt < 3 * prompts,
    ]
    print(
        f"| {name} | {share:.0%} | {budget / MIB:.0f} | {used['peak_bytes'] / MIB:.0f} | "
        f"{used['error_bytes'] / MIB:.1f} | {streamed / 1e6:.0f} | {disk / 1e9:.2f} | {bound:.2f} | {rate:.2f} | "
        f"{rate / bound:.0%} | {theirs:.2f} | {rate / theirs:.1f} | {predicted['value']:.2f} | {prompt:.1f} | "
        + (f"{prompts:.1f} | {prompt / prompts:.1f} |" if prompts else "| |")
        + f" {passes:.1f} | {'missed ' + str([i for i, m in enumerate(misses) if m]) if any(misses) else ''}",
        flush=True,
    )
    return sum(misses)


def ours(arguments: list[str], group: Path | None = None) -> dict:
    empty_caches()
    done = subprocess.run(inside(group, [*MEMFIT, *arguments, *COMMON]), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def llama_bench(path: str, group: Path, repack: str, prompt: int, generated: int) -> float:
    empty_caches()
    command = [str(peers() / "llama-bench"), "-m", path, "-t", "2", "-p", str(prompt), "-n", str(generated)]
    command += ["-r", "1", "--no-warmup", "-lm", "mmap", "--repack", repack, "-o", "json"]
    done = subprocess.run(inside(group, command), capture_output=True, text=True)
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
