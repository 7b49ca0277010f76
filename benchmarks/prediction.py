"""Predicted against measured speed, resident and split over workers, at several depths.

    python benchmarks/prediction.py

Six models: the two packaged ones and four of invented shapes (values do not matter to kernels). Each in
RAM, and with half of it on a worker with two threads, this side having one. The plan is made for each
depth; prompt and generation are timed from that depth on, as llama-bench's -d has it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from rpc_servers import rpc_servers
from shapes import MOE, QWEN25_0B5, SMALL, TINY
from subjects import models
from synthetic import write_model

import memfit
from memfit.units import MIB

DEPTHS = (0, 512, 2048)
SPLIT_DEPTHS = (0, 1536)
PROMPT, GENERATED, REPETITIONS = 512, 32, 3


def main() -> int:
    errors: dict[str, list[float]] = {"prompt": [], "generation": []}
    inside = cases = 0
    print(
        "| model | where | depth | basis | prompt: predicted | measured | error "
        "| generation | measured | error | |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="memfit-prediction-") as folder:
        subjects = models()
        for name, shape in (("tiny", TINY), ("0.5b", QWEN25_0B5), ("small", SMALL), ("moe", MOE)):
            write_model(Path(folder) / f"{name}.gguf", shape, values="zeros")
            subjects[name] = str(Path(folder) / f"{name}.gguf")
        for name, path in subjects.items():
            rows = run(path, "RAM", None, DEPTHS, 2)
            half = (Path(path).stat().st_size + 100 * MIB) // 2
            with rpc_servers(half + 60 * MIB) as (endpoint,):
                rows += run(path, "half on a worker", endpoint, SPLIT_DEPTHS, 1)
            for where, depth, predicted, measured in rows:
                within, cells = 0, []
                for kind in ("prompt", "generation"):
                    rate, real = getattr(predicted, kind), measured[kind]
                    error = rate.value / real - 1
                    errors[kind].append(abs(error))
                    within += rate.low <= real <= rate.high
                    cells += [f"{rate.value:.1f}", f"{real:.1f}", f"{100 * error:+.0f} %"]
                inside, cases = inside + within, cases + 2
                print(
                    f"| {name} | {where} | {depth} | {predicted.basis} | {' | '.join(cells)} "
                    f"| {within} of 2 inside |",
                    flush=True,
                )
    middle = {kind: median(values) for kind, values in errors.items()}
    print(
        f"median error: generation {100 * middle['generation']:.1f} %, "
        f"prompt {100 * middle['prompt']:.1f} %; {inside} of {cases} rates inside their range"
    )
    return int(middle["generation"] > 0.10 or middle["prompt"] > 0.08 or inside < 0.95 * cases)


def run(path: str, where: str, endpoint: str | None, depths: tuple[int, ...], threads: int) -> list[tuple]:
    """(where, depth, prediction, measured rates) at each depth, of one loaded plan."""
    budget = memfit.Budget(rpc={endpoint: None} if endpoint else {})
    plans = [
        memfit.plan(
            path,
            budget=budget,
            workload=memfit.Workload(
                context=4096, threads=threads, prompt_tokens=PROMPT, generated_tokens=GENERATED, depth=depth
            ),
            say=lambda text: print(text, file=sys.stderr),
        )
        for depth in depths
    ]
    rows = []
    for depth, plan in zip(depths, plans, strict=True):
        with memfit.load(plan) as session:
            speed = session.measure(PROMPT, GENERATED, depth=depth, repetitions=REPETITIONS)
        rates = {"prompt": speed.prompt_tokens_per_second, "generation": speed.generation_tokens_per_second}
        rows.append((where, depth, plan.prediction, rates))
    return rows


if __name__ == "__main__":
    sys.exit(main())
