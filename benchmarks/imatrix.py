"""`memfit imatrix` against llama-imatrix, built from the same sources: the matrices, time and memory.

    python benchmarks/imatrix.py [CHUNKS]

Both packaged models, a mixture of experts and a 4 GB model of random weights, over CHUNKS (default 20; the
large one 1) chunks of 512 tokens of this repository's own text; the large one with RAM for less than half of
it. Bar: every mean square within 1 %, where it is more than a thousandth of its matrix's mean.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from quantize import measured
from shapes import Shape
from subjects import MEMFIT, ROOT, memfit, models, peers
from synthetic import write_model

from memfit.engines.llamacpp.imatrix_file import read_imatrix
from memfit.units import MIB

_CLOSE = 0.01
_EXPERTS = Shape(
    architecture="qwen3moe",
    mix="Q4_K_M",
    layers=8,
    width=1024,
    feed_forward=512,
    heads=16,
    kv_heads=4,
    vocabulary=32000,
    experts=16,
    experts_used=4,
)
_LARGE = Shape(
    architecture="llama",
    mix="Q4_K_M",
    layers=40,
    width=4096,
    feed_forward=11008,
    heads=32,
    kv_heads=32,
    vocabulary=32000,
)


def main() -> int:
    chunks = sys.argv[1] if len(sys.argv) > 1 else "20"
    program = peers() / "llama-imatrix"
    print("| model | chunks | matrices | median difference | largest | ours s | its s | ours MiB | its MiB |")
    print("|" + " --- |" * 9, flush=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="memfit-imatrix-") as folder:
        room = Path(folder)
        text = room / "text.txt"
        text.write_text("".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
        for name, path in models().items():
            source = room / "f16.gguf"
            memfit("quantize", path, str(source), "--type", "F16", "--overwrite")
            failures += not compare(program, name, source, text, chunks, room)
        source.unlink()
        for name, shape, count, ram in (("experts", _EXPERTS, chunks, None), ("4 GB", _LARGE, "1", True)):
            source = room / "synthetic.gguf"
            write_model(source, shape, values="random")
            limit = source.stat().st_size * 0.49 if ram else None
            failures += not compare(program, name, source, text, count, room, limit and int(limit))
            source.unlink()
    return failures


def compare(
    program: Path, name: str, source: Path, text: Path, chunks: str, room: Path, ram: int | None = None
) -> bool:
    ours, theirs = room / "ours.gguf", room / "theirs.gguf"
    limit = () if ram is None else ("--ram", str(ram))
    took, held = measured(
        [
            *MEMFIT,
            "imatrix",
            str(source),
            str(ours),
            "--text",
            str(text),
            "--chunks",
            chunks,
            "--overwrite",
            *limit,
        ]
    )
    others, its = measured(
        [str(program), "-m", str(source), "-f", str(text), "-o", str(theirs), "--chunks", chunks, "-c", "512"]
    )
    mine, wanted = read_imatrix(ours), read_imatrix(theirs)
    differences = []
    for tensor, values in wanted.items():
        counts = values > values.mean() / 1000
        differences.append(np.abs(mine[tensor][counts] / values[counts] - 1))
    found = np.concatenate(differences)
    same = mine.keys() == wanted.keys()
    print(
        f"| {name} | {chunks} | {len(wanted) if same else 'others'} | {100 * np.median(found):.4f} % "
        f"| {100 * found.max():.3f} % | {took:.1f} | {others:.1f} | {held / MIB:.0f} | {its / MIB:.0f} |",
        flush=True,
    )
    return same and found.max() <= _CLOSE and (ram is None or held <= ram)


if __name__ == "__main__":
    sys.exit(main())
