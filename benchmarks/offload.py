"""Our placement against llama.cpp's whole-layer split, measured, at the same device budget.

    python benchmarks/offload.py

The device is a worker on loopback, faster than this side (two threads against one) or slower (one against
two). Both placements run through the same engine: the split is what `--n-gpu-layers` does, as many whole
layers as the budget holds, the output with them. Seconds of a request (a prompt, then generation, both
after `depth` tokens), alternating, the median ratio of two rounds.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from rpc_servers import rpc_servers
from shapes import BIG_MOE, MOE, SMALL
from synthetic import write_model

import memfit
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.memory.process_memory import Baseline
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.units import MIB

ROUNDS = 2
PROMPT, GENERATED = 512, 64
CASES = (
    # model, shape, share of the weights that the device holds, depth, its threads, ours
    ("dense, shallow", SMALL, 0.5, 0, 2, 1),
    ("dense, deep", SMALL, 0.5, 2048, 2, 1),
    ("MoE, shallow", MOE, 0.4, 0, 2, 1),
    ("MoE, deep", MOE, 0.4, 2048, 2, 1),
    ("large MoE, shallow", BIG_MOE, 0.25, 0, 2, 1),
    ("large MoE, deep", BIG_MOE, 0.25, 2048, 2, 1),
    ("dense, slow device", SMALL, 0.3, 0, 1, 2),
)


def main() -> int:
    slower = 0
    print("| case | layers on the device: ours | split | ours s | split s | ours / split | speeds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="memfit-offload-") as folder:
        for name, shape, share, depth, theirs, ours in CASES:
            path = Path(folder) / f"{shape.architecture}-{shape.layers}.gguf"
            if not path.exists():
                # Routers of zeros would send every token to the same experts.
                write_model(path, shape, values="random")
            budget = int(share * path.stat().st_size) + 60 * MIB
            with rpc_servers(budget, threads=theirs) as (endpoint,):
                plan = memfit.plan(
                    str(path),
                    budget=memfit.Budget(rpc={endpoint: None}),
                    workload=memfit.Workload(
                        context=4096,
                        threads=ours,
                        prompt_tokens=PROMPT,
                        generated_tokens=GENERATED,
                        depth=depth,
                        repack="off",
                    ),
                )
                split = split_of(plan)
                pairs = [(seconds(plan, depth), seconds(split, depth)) for _ in range(ROUNDS)]
            ratio = median(mine / other for mine, other in pairs)
            slower += ratio > 1.05
            print(
                f"| {name} | {plan.config.layers[0]} | {split.config.layers[0]} | "
                f"{median(mine for mine, _ in pairs):.2f} | {median(other for _, other in pairs):.2f} | "
                f"{ratio:.3f} | {plan.prediction.basis} |",
                flush=True,
            )
    print(f"{slower} cases slower by more than 5 %")
    return slower


def split_of(plan: LlamaPlan) -> LlamaPlan:
    """The same plan with as many whole layers on the device as its budget holds."""
    tier = plan.tiers[1]
    nothing = Baseline(parent=None, decode_bytes=0)
    layers = int(str(plan.spec.architecture_value("block_count")))
    with LlamaOracle(plan.spec, nothing, repack_modes=(False,)) as oracle:
        for count in range(layers, -1, -1):
            config = replace(plan.config, layers=(count,), overrides=())
            (held,) = oracle.ask(config).devices
            if held.total_bytes + tier.parts["overhead"] + 2 * MIB <= tier.limit_bytes:
                return replace(plan, config=config)
    raise SystemExit("not one layer fits")


def seconds(plan: LlamaPlan, depth: int) -> float:
    with memfit.load(plan) as session:
        speed = session.measure(PROMPT, GENERATED, depth=depth)
    return speed.prompt_seconds + speed.generation_seconds


if __name__ == "__main__":
    sys.exit(main())
