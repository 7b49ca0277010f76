"""memfit bench against llama-bench, from the same sources, same threads, alternating in one run.

    python benchmarks/speed.py [programs] [forms]     or both

programs: over the two packaged models and a synthetic one in Q4_K: repack on and off with both programs, and
memfit's own choice (auto) against llama-bench's defaults (repack on) for 512 prompt tokens plus 128
generated ones. Every round runs each program once, three repetitions each; rates and ratios are medians
over the rounds, a ratio being taken within its round. Predictions are checked along the way. forms: requests
to models of Qwen2.5's shapes in other types, with memfit's choice of forms against both of llama-bench's.
Bars: with AVX-512 a Q4_K_M request 1.2 times its default and 1.12 times its better, for other types each rate
0.97 times its better, prompts of Q8_0 1.6 times its default.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

from shapes import QWEN25_0B5, QWEN25_1B5, TINY
from subjects import held, memfit, models, peers
from synthetic import write_model

PROMPT, GENERATED, THREADS = 512, 128, 2
ROUNDS = 4


def main() -> int:
    bars = {"programs": programs, "forms": forms}
    return sum(bars[name]() for name in sys.argv[1:] or bars)


def programs() -> int:
    with tempfile.TemporaryDirectory(prefix="memfit-speed-") as folder:
        synthetic = Path(folder) / "synthetic.gguf"
        write_model(synthetic, TINY)
        return compare({**models(), "synthetic 0.6B Q4_K": str(synthetic)})


def compare(subjects: dict[str, str]) -> int:
    """Prints the table; the number of ratios below the bar."""
    program = peers() / "llama-bench"
    failures = 0
    print("| model | repack | prompt ours | llama-bench | ratio | generation ours | llama-bench | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, path in subjects.items():
        rates: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        inside = 0
        for _ in range(ROUNDS):
            for repack in ("off", "on"):
                rates["peer", repack].append(llama_bench(program, path, repack))
                rates["ours", repack].append(ours(path, repack)[0])
            rate, chosen, within = ours(path, "auto")
            rates["ours", "auto"].append(rate)
            inside += within
        for repack, peer in (("off", "off"), ("on", "on"), ("auto", "on")):
            pairs = list(zip(rates["ours", repack], rates["peer", peer], strict=True))
            mine, theirs = middle([one for one, _ in pairs]), middle([other for _, other in pairs])
            ratios = middle([(one[0] / other[0], one[1] / other[1]) for one, other in pairs])
            label = f"{repack} ({chosen}) against its default" if repack == "auto" else repack
            print(
                f"| {name} | {label} | {mine[0]:.1f} | {theirs[0]:.1f} | {ratios[0]:.3f} "
                f"| {mine[1]:.1f} | {theirs[1]:.1f} | {ratios[1]:.3f} |",
                flush=True,
            )
            if repack == "auto":
                request = [[PROMPT / rate[0] + GENERATED / rate[1] for rate in pair] for pair in pairs]
                print(
                    f"  512 + 128 tokens: ours {median(one for one, _ in request):.2f} s, llama-bench's "
                    f"defaults {median(other for _, other in request):.2f} s"
                )
            else:
                failures += min(ratios) < 0.97
        print(
            f"  predictions with the measured rate inside their range: {inside} of {2 * ROUNDS}", flush=True
        )
    print(f"{failures} ratios below 0.97")
    return failures


def forms() -> int:
    print("| model | request | held | ours | llama-bench | repack off | of its default | of its better |")
    print("|" + " --- |" * 8)
    program, failures = peers() / "llama-bench", 0
    for shape, mix, lengths in (
        *((QWEN25_1B5, "Q4_K_M", lengths) for lengths in ((256, 48), (1024, 256))),
        (QWEN25_0B5, "Q4_K_M", (256, 48)),
        *((QWEN25_1B5, mix, (256, 48)) for mix in ("Q2_K", "Q6_K", "IQ4_XS", "Q8_0")),
    ):
        with tempfile.TemporaryDirectory(prefix="memfit-speed-") as folder:
            path = str(Path(folder) / "model.gguf")
            write_model(Path(path), replace(shape, mix=mix))
            memfit("plan", path, "--threads", str(THREADS))  # measures the kernels
            default = llama_bench(program, path, "on", lengths)
            mine, how, _ = ours(path, "auto", lengths)
            plain = llama_bench(program, path, "off", lengths)
        seconds, *theirs = (_seconds(one, lengths) for one in (mine, default, plain))
        ratios = theirs[0] / seconds, min(theirs) / seconds
        if mix == "Q4_K_M":
            failures += ratios[0] < 1.2 or ratios[1] < 1.12
        else:
            failures += any(one < 0.97 * max(pair) for one, *pair in zip(mine, default, plain, strict=True))
            failures += mix == "Q8_0" and mine[0] < 1.6 * default[0]
        cells = (f"{prompt:.0f}, {generation:.1f}" for prompt, generation in (mine, default, plain))
        print(
            f"| {shape.width} wide, {mix} | {lengths[0]} + {lengths[1]} | {how} | {' | '.join(cells)} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |",
            flush=True,
        )
    return failures


def _seconds(rates: tuple[float, float], lengths: tuple[int, int]) -> float:
    return sum(tokens / rate for tokens, rate in zip(lengths, rates, strict=True))


def llama_bench(
    program: object,
    path: str,
    repack: str,
    lengths: tuple[int, int] = (PROMPT, GENERATED),
) -> tuple[float, float]:
    """(prompt, generation) in tokens per second."""
    prompt, generated = lengths
    output = subprocess.run(
        [
            *(str(program), "-m", path, "-p", str(prompt), "-n", str(generated), "-t", str(THREADS)),
            *("--repack", str(int(repack == "on")), "-r", "3", "-o", "json"),
        ],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ).stdout
    tests = {(test["n_prompt"], test["n_gen"]): test["samples_ts"] for test in json.loads(output)}
    return median(tests[prompt, 0]), median(tests[0, generated])


def ours(
    path: str, repack: str, lengths: tuple[int, int] = (PROMPT, GENERATED)
) -> tuple[tuple[float, float], str, int]:
    """The same pair, what was chosen, and how many of the two rates lie in their predicted range."""
    code, document, error = memfit(
        *("bench", path, "--repack", repack, "--threads", str(THREADS)),
        *("--prompt-tokens", str(lengths[0]), "--gen-tokens", str(lengths[1])),
    )
    if code:
        sys.exit(error)
    pair, within = [], 0
    for kind in ("prompt", "generation"):
        rate = document["measured"][f"{kind}_tokens_per_second"]
        predicted = document["plan"]["predicted"][f"{kind}_tokens_per_second"]
        within += predicted["low"] <= rate <= predicted["high"]
        pair.append(rate)
    return (pair[0], pair[1]), held(document["plan"]["config"]), within


def middle(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


if __name__ == "__main__":
    sys.exit(main())
