"""A whole run on a small checkpoint, in a fresh process: `memfit.cli.rehearse_checkpoint PARAMETERS`.

Answers what the processes held, and what of that was the model. The calibration starts it; users do
not. It does what `memfit run` does, so that it holds what `memfit run` holds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import memfit.api
import memfit.cli.main
import memfit.cli.run  # noqa: F401 - likewise
from memfit.cli.render import console, loading_progress, print_plan, print_report
from memfit.engines.report import TierReport
from memfit.engines.transformers.session import TransformersSession
from memfit.hardware import probe
from memfit.hardware.machine import Gpu
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.hub.resolve import find_weights
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import LOAD_IN
from memfit.memory.process_memory import process_memory
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import plan_checkpoint
from memfit.planner.transformers.runtime import GpuRuntime, Runtime
from memfit.processes.child import Parent, answer
from memfit.units import MIB

__all__: list[str] = []

_ASSUMED_CONTEXT_BYTES = 512 * MIB
_PROMPT_TOKENS, _TOKENS = 512, 16


def _rehearse(_: Parent) -> dict[str, Any]:
    config = TransformersConfig.from_json(json.loads(sys.argv[1]))
    path = config.folder / "config.json"
    hf_config, weights = read_config(path), find_weights(path)
    assert weights is not None
    model = model_from_checkpoint(hf_config, weights)
    spec = spec_of_checkpoint(str(config.folder), hf_config, weights, model)
    rates = dict.fromkeys(LOAD_IN, 1e9)  # of no interest here
    machine = probe()
    runtime = Runtime(
        process_bytes=0,
        loading_process_bytes=0,
        starting_bytes=0,
        packs_4bit="avx512_bf16" in machine.cpu.instruction_sets and not config.gpus,
        layer_seconds=1e-3,
        elements_per_second=rates,
        operations_per_second=rates,
        disk_bytes_per_second=1e9,
        gpus=tuple(_gpu(gpu) for gpu in machine.gpus if gpu.index in config.gpus),
        link_bytes_per_second=1e9,
    )
    workload = Workload(context=config.context, prompt_tokens=_PROMPT_TOKENS, generated_tokens=_TOKENS)
    plan = plan_checkpoint(spec, model, config, machine, Budget(), workload, [runtime])
    with open(os.devnull, "w", encoding="utf-8") as sink:  # noqa: PTH123 - not a file
        out = console(file=sink)
        print_plan(plan, out)
        with loading_progress(out) as on_progress:
            session = TransformersSession(plan, count_parent=True, on_progress=on_progress)
        with session:
            speed = session.measure(_PROMPT_TOKENS, _TOKENS)
            report = session.report()
            print_report(report, out)
            parent, worker = process_memory(), process_memory(session.worker_pid)
            in_torch = session.torch_gpu_bytes
    assert report.model is not None
    held = {name: vars(one) for name, one in (("parent", parent), ("worker", worker))}
    seconds = speed.generation_seconds / speed.generated_tokens
    return {
        **{name: {**values, "files": dict(values["files"])} for name, values in held.items()},
        "first_pass_bytes": report.model.steady_bytes
        - plan.ram.kv_cache_bytes
        - sum(report.model.by_dtype.values())
        - (session.loaded_bytes - report.model.loaded_bytes),
        "starting_bytes": report.model.loading_bytes,
        "model_bytes": 0 if in_torch else sum(report.model.by_dtype.values()) + plan.ram.kv_cache_bytes,
        "gpu_process_bytes": _context_bytes(report.tiers, in_torch),
        "layer_seconds": seconds / hf_config.num_hidden_layers,
    }


def _gpu(gpu: Gpu) -> GpuRuntime:
    return GpuRuntime(
        number=gpu.index, budget_bytes=gpu.free_bytes, limit_bytes=gpu.free_bytes, process_bytes=0
    )


def _context_bytes(tiers: Sequence[TierReport], in_torch: Sequence[int]) -> int:
    """What the driver holds on a GPU beside torch's memory; assumed where the driver does not say."""
    peaks = [tier.peak_bytes for tier in tiers if tier.kind == "vram"]
    if not peaks or not in_torch:
        return 0
    return max(0, peaks[0] - in_torch[0]) if peaks[0] is not None else _ASSUMED_CONTEXT_BYTES


if __name__ == "__main__":
    sys.exit(answer(_rehearse))
