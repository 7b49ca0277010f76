"""`memfit quantize --target-size` against standard types of the same size: what is lost, and what it costs.

    python benchmarks/target_size.py [--model NAME] [--types TYPE,…] [--read N] [--held-out N] [--targets N]

Both packaged models off their types' grid (off_grid.py), at the sizes of six standard types. Of one half of
Python's own language reference --read chunks of 512 tokens (100) are for llama-imatrix, and some to measure;
of the other half --held-out chunks (33) are scored by llama-perplexity, 255 tokens each. Each size has three
files: the standard type alone, the standard type with the importance matrix, and ours with the same matrix,
which `memfit quantize` collects where none is given. Bars: geometric mean of mean KL at most 0.65 of the
standard type's without a matrix, 0.80 with it, none above 1; measuring takes at most 4 times as long as
llama-imatrix does for 100 chunks; of --targets random sizes (50) none is exceeded, and 99.5 % of it used.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import exp, log
from pathlib import Path
from pydoc_data.topics import topics

from subjects import ROOT, models, peers

import memfit
from memfit.cli.texts import TextReader
from memfit.hub.resolve import resolve
from memfit.quantize.choice_process import choose_apart
from memfit.quantize.job import Quantizer, Recipe
from memfit.quantize.losses import corrected
from memfit.quantize.target import PLACES, Measured, fit, measure
from memfit.units import GIB, MIB

_KL = re.compile(r"Mean *KLD: *([\d.]+)")
_USED = 0.995


class Subject:
    """One model, its files in a folder."""

    def __init__(self, name: str, path: str, room: Path, read: int, held_out: int) -> None:
        self.room, self.held_out = room, held_out
        self.source, self.matrix, self.base = (
            room / f"{name}.gguf",
            room / f"{name}.imatrix",
            room / "base.kld",
        )
        self.text, self.other = room / "read.txt", room / "held-out.txt"
        # In a process of its own: what ours holds counts while a model is loaded.
        subprocess.run([sys.executable, ROOT / "benchmarks/off_grid.py", path, self.source], check=True)
        names = sorted(topics)
        self.text.write_text("".join(topics[one] for one in names[::2]))
        self.other.write_text("".join(topics[one] for one in names[1::2]))
        began = time.monotonic()
        asked = ("-f", self.text, "-o", self.matrix, "--chunks", read, "-c", 512)
        run("llama-imatrix", "-m", self.source, *asked)
        self.imatrix_seconds = time.monotonic() - began
        self.perplexity("-m", self.source)
        self.spec = resolve(str(self.source), print).read_spec()
        self.quantizer = Quantizer()

    def perplexity(self, *arguments: object) -> str:
        common = ("-f", self.other, "--chunks", self.held_out, "-c", 512, "--kl-divergence-base", self.base)
        return run("llama-perplexity", *arguments, *common)

    def loss(self, recipe: Recipe) -> tuple[float, int]:
        """Mean KL of a file, and its size."""
        output = self.room / "out.gguf"
        looked = self.quantizer.look(self.spec, recipe, threads=2)
        self.quantizer.write(looked, output, ram_bytes=8 * GIB, overwrite=True)
        found = _KL.search(self.perplexity("-m", output, "--kl-divergence"))
        assert found
        return float(found[1]), looked.file_bytes

    def measured(self, sizes: dict[str, int]) -> tuple[Measured, dict[str, Measured]]:
        """What every type loses; and for each size corrected for the types near it."""
        options = {
            "ctx": 512,
            "chunks": 40,
            "kv_type": "f16",
            "threads": 2,
            "ram": None,
            "vram": (),
            "rpc": (),
            "no_disk": True,
            "engine": "auto",
            "load_in": None,
            "double_quant": False,
            "trust_remote_code": False,
        }
        reader = TextReader(self.text, options, print, verbose=False)
        plan, tokens = reader.plan(str(self.source), probes=PLACES)
        found: dict[str, Measured] = {}
        with memfit.load(plan, count_parent=True) as session:

            class Loaded:  # stays open when it is left
                def __enter__(self) -> memfit.Session:
                    return session

                def __exit__(self, *_: object) -> None:
                    pass

            began = time.monotonic()
            whole = measure(
                self.quantizer,
                self.spec,
                lambda _: Loaded(),
                plan,
                tokens,
                imatrix=self.matrix,
                text=None,
                threads=2,
            )
            for size, cap in sizes.items():
                chosen = choose_apart(whole.losses, cap - whole.rest_bytes)
                assert chosen
                losses = corrected(session, whole.losses, chosen)
                found[size] = Measured(losses=losses, rest_bytes=whole.rest_bytes, imatrix=self.matrix)
                if len(found) == 1:
                    self.seconds = time.monotonic() - began
            ram = session.report().tiers[0]
            print(f"measuring held {ram.peak_bytes / MIB:.0f} MiB, {ram.predicted_bytes / MIB:.0f} predicted")
        return whole, found


def run(program: str, *arguments: object) -> str:
    command = [str(peers() / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--types", default="Q2_K,IQ3_XXS,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M")
    for name, default in (("--read", 100), ("--held-out", 33), ("--targets", 50)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    failures = 0
    ratios: tuple[list[float], list[float]] = ([], [])
    for name, path in models().items():
        if asked.model not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="memfit-target-") as folder:
            subject = Subject(name, path, Path(folder), asked.read, asked.held_out)
            for plain, matrix in cells(name, subject, asked.types.split(",")):
                ratios[0].extend([plain] if plain else [])
                ratios[1].append(matrix)
            theirs = subject.imatrix_seconds * 100 / asked.read
            cost = subject.seconds / theirs
            print(f"{name}: measuring {subject.seconds:.0f} s, llama-imatrix {theirs:.0f} s: {cost:.2f}")
            failures += cost > 4
            failures += random_targets(subject, asked.targets)
    for what, found, bar in (("without", ratios[0], 0.65), ("with", ratios[1], 0.80)):
        mean = exp(sum(map(log, found)) / len(found))
        print(f"{what} a matrix: geometric mean {mean:.3f} (bar {bar}), largest {max(found):.3f}")
        failures += mean > bar or max(found) > 1
    return failures


def cells(name: str, subject: Subject, types: list[str]) -> Iterator[tuple[float | None, float]]:
    """For each size our loss as a share of the standard type's, without and with a matrix."""
    standard = {kind: Recipe(file_type=kind, imatrix=subject.matrix) for kind in types}
    sizes = {
        kind: subject.quantizer.look(subject.spec, one, threads=2).file_bytes
        for kind, one in standard.items()
    }
    subject.whole, measured = subject.measured(sizes)
    print("| model | size of | used | standard | with a matrix | ours | expected | ratio | with a matrix |")
    print("|" + " --- |" * 9, flush=True)
    for kind, cap in sizes.items():
        chosen = fit(subject.quantizer, subject.spec, measured[kind], cap, threads=2)
        ours, size = subject.loss(chosen.recipe)
        theirs, _ = subject.loss(standard[kind])
        plain = None if kind == "IQ3_XXS" else subject.loss(Recipe(file_type=kind))[0]
        alone, ratio = (f"{plain:.4f}", f"{ours / plain:.3f}") if plain else ("", "")
        print(
            f"| {name} | {kind} | {size / cap:.4f} | {alone} | {theirs:.4f} | {ours:.4f} "
            f"| {chosen.expected_loss:.4f} | {ratio} | {ours / theirs:.3f} |",
            flush=True,
        )
        yield plain and ours / plain, ours / theirs


def random_targets(subject: Subject, count: int) -> int:
    """How many of `count` sizes are exceeded, or not used."""
    generator = random.Random(0)
    losses, rest = subject.whole.losses, subject.whole.rest_bytes
    least = rest + sum(min(one.size_bytes for one in kinds.values()) for kinds in losses.values())
    most = rest + sum(kinds["Q8_0"].size_bytes for kinds in losses.values())
    failures, lowest = 0, 1.0
    for _ in range(count):
        cap = generator.randint(least, most)  # beyond lies only the source's own type
        chosen = fit(subject.quantizer, subject.spec, subject.whole, cap, threads=2)
        used = chosen.looked.file_bytes / cap
        all_best = all(
            losses[name][kind].loss == min(one.loss for one in losses[name].values())
            for name, kind in chosen.recipe.types.items()
        )
        failures += used > 1 or (used < _USED and not all_best)
        lowest = min(lowest, 1.0 if all_best else used)
    print(f"{count} random targets: {failures} missed, at least {100 * lowest:.3f} % used")
    return failures


if __name__ == "__main__":
    sys.exit(main())
