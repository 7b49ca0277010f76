"""`memfit quantize` against llama-quantize, built from the same sources: bytes, time and memory.

    python benchmarks/quantize.py [ROUNDS]

Both packaged models in F16, by five types, and a 4 GB file of random F16 with 1 GiB of RAM. Bars: every
tensor is the same, byte for byte; time at most 1.1 of llama-quantize's; peak memory at most its, and within
--ram. The two take turns; medians of ROUNDS (default 3), the large one once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from shapes import Shape
from subjects import MEMFIT, memfit, models, peers
from synthetic import write_model

from memfit.headers.gguf import read_header
from memfit.units import GIB, MIB

_TYPES = ("Q4_K_M", "Q3_K_M", "Q5_0", "Q8_0", "IQ4_XS")
_LARGE = Shape(  # 4.0 GB in F16; its largest matrix has 0.3 GB
    architecture="llama",
    mix="Q8_0",
    layers=20,
    width=3072,
    feed_forward=12288,
    heads=24,
    kv_heads=8,
    vocabulary=49152,
)
_SLOWER = 1.1


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    program = peers() / "llama-quantize"
    print("| source | type | tensors equal | ours s | llama-quantize s | ratio | ours MiB | its MiB |")
    print("|" + " --- |" * 8, flush=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="memfit-quantize-") as folder:
        room = Path(folder)
        for name, path in models().items():
            source = room / f"{name}-f16.gguf"
            memfit("quantize", path, str(source), "--type", "F16")
            for kind in _TYPES:
                failures += not compare(program, name, source, kind, room, rounds)
            source.unlink()
        source = room / "large.gguf"
        quantized = room / "large-q8.gguf"
        write_model(quantized, _LARGE, values="random")
        memfit("quantize", str(quantized), str(source), "--type", "F16")
        quantized.unlink()
        failures += not compare(program, "4 GB", source, "Q4_K_M", room, 1, ram=GIB)
    return failures


def compare(
    program: Path, name: str, source: Path, kind: str, room: Path, rounds: int, *, ram: int | None = None
) -> bool:
    ours, theirs = room / "ours.gguf", room / "theirs.gguf"
    limit = () if ram is None else ("--ram", str(ram))
    seconds: tuple[list[float], list[float]] = ([], [])
    peaks: tuple[list[int], list[int]] = ([], [])
    for _ in range(rounds):
        commands = (
            [*MEMFIT, "quantize", str(source), str(ours), "--type", kind, "--overwrite", *limit],
            [str(program), str(source), str(theirs), kind],
        )
        for place, command in enumerate(commands):
            took, peak = measured(command)
            seconds[place].append(took)
            peaks[place].append(peak)
    same, count = same_tensors(ours, theirs)
    ratio = median(seconds[0]) / median(seconds[1])
    held, others = (max(one) / MIB for one in peaks)
    print(
        f"| {name} | {kind} | {same} of {count} | {median(seconds[0]):.2f} | {median(seconds[1]):.2f} "
        f"| {ratio:.2f} | {held:.0f} | {others:.0f} |",
        flush=True,
    )
    return same == count and ratio <= _SLOWER and held <= others and (ram is None or held * MIB <= ram)


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most that the command and its children held at once, looked at 50 times a second."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, [process.pid, *children(process.pid)])))
        time.sleep(0.02)
    assert process.returncode == 0, command
    return time.monotonic() - began, peak


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in map(int, found) for one in (child, *children(child))]


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def same_tensors(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors of the second are in the first, byte for byte."""
    mine = {one.name: one for one in read_header(ours).tensors}
    wanted = read_header(theirs).tensors
    same = 0
    with ours.open("rb") as left, theirs.open("rb") as right:
        for one in wanted:
            other = mine.get(one.name)
            if other is None or (other.type, other.shape) != (one.type, one.shape):
                continue
            left.seek(other.offset_bytes)
            right.seek(one.offset_bytes)
            same += left.read(one.size_bytes) == right.read(one.size_bytes)
    return same, len(wanted)


if __name__ == "__main__":
    sys.exit(main())
