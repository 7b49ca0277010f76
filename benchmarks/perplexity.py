"""`memfit perplexity` against llama-perplexity, built from the same sources: perplexity and KL.

    python benchmarks/perplexity.py [CHUNKS [MODEL…]]

Both packaged models, and each from itself with all matrices in Q8_0 and in Q4_K_M as the model and in F16 as
the reference, over CHUNKS (default 20) chunks of 512 tokens of this repository's own text. Bar: within 0.5 %,
by the same kernels. We always score with those that compute on weights as the file has them; llama-perplexity
does with --no-repack, and by itself rewrites some types: shown beside, as what that changes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subjects import ROOT, memfit, models, peers

_CLOSE = 0.005
_PERPLEXITY = re.compile(r"Final estimate: PPL = ([\d.]+)")
_KL_PERPLEXITY = re.compile(r"Mean PPL\(Q\) *: *([\d.]+)")
_KL = re.compile(r"Mean *KLD: *([\d.]+)")


def main() -> int:
    chunks, *names = sys.argv[1:] or ["20"]
    program = peers() / "llama-perplexity"
    print("| model | figure | ours | llama-perplexity | difference | ours s | llama-perplexity s |")
    print("|" + " --- |" * 7, flush=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="memfit-perplexity-") as folder:
        room = Path(folder)
        text = room / "text.txt"
        text.write_text("".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
        common = ["--text", str(text), "--chunks", chunks]
        theirs = ["-f", str(text), "--chunks", chunks, "-c", "512"]
        every = models()
        for name in names or every:
            path = every[name]
            (ours, seconds) = timed(memfit_json, "perplexity", path, *common)
            (log, others) = timed(run, program, "-m", path, *theirs)
            failures += not row(
                name, "perplexity", ours["perplexity"], found(_PERPLEXITY, log), seconds, others
            )
            base, kept = room / "f16.gguf", room / "base.kld"
            memfit("quantize", path, str(base), "--type", "F16", "--overwrite")
            run(program, "-m", str(base), *theirs, "--kl-divergence-base", str(kept))
            for kind in ("Q8_0", "Q4_K_M"):
                model = room / f"{kind}.gguf"
                memfit("quantize", str(base), str(model), "--type", kind, "--overwrite")
                (ours, seconds) = timed(
                    memfit_json, "perplexity", str(model), "--reference", str(base), *common
                )
                figures = (
                    ("perplexity", ours["perplexity"], _KL_PERPLEXITY),
                    ("mean KL", ours["kl_divergence"]["mean"], _KL),
                )
                asked = ("-m", str(model), "--kl-divergence-base", str(kept), "--kl-divergence", *theirs)
                for way in ("--no-repack", "--repack"):
                    (log, others) = timed(run, program, *asked, way)
                    for figure, value, pattern in figures:
                        what = f"{name} {kind}, {way}"
                        is_close = row(what, figure, value, found(pattern, log), seconds, others)
                        failures += way == "--no-repack" and not is_close
    return failures


def timed(what: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.monotonic()
    return what(*arguments), time.monotonic() - began


def memfit_json(*arguments: str) -> dict[str, Any]:
    code, document, errors = memfit(*arguments)
    assert code == 0, errors
    return document


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def found(pattern: re.Pattern[str], log: str) -> float:
    match = pattern.search(log)
    assert match, log[-2000:]
    return float(match[1])


def row(what: str, figure: str, ours: float, theirs: float, seconds: float, others: float) -> bool:
    difference = ours / theirs - 1
    print(
        f"| {what} | {figure} | {ours:.6g} | {theirs:.6g} | {100 * difference:+.2f} % | {seconds:.1f} "
        f"| {others:.1f} |",
        flush=True,
    )
    return abs(difference) <= _CLOSE


if __name__ == "__main__":
    sys.exit(main())
