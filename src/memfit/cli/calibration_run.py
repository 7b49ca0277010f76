"""The hidden command `calibration-run`: a whole run on a tiny model, and what its processes held.

The calibration starts it, once per machine and kind of model; users do not. It is a command, so that it
imports what `memfit run` imports and holds the memory that `memfit run` holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

import memfit.cli.run  # noqa: F401 - imported for the memory it takes
from memfit.cli.fetch import load_shown
from memfit.cli.render import console, print_plan, print_report
from memfit.errors import UsageError
from memfit.hardware.machine import Machine
from memfit.hardware.probe import probe
from memfit.memory.process_memory import ProcessMemory, process_memory
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import ASSUMED
from memfit.processes.child import answer
from memfit.units import MIB

if TYPE_CHECKING:
    from memfit.engines.report import Report, TierReport
    from memfit.engines.requests import Speed
    from memfit.engines.worker_session import WorkerSession
    from memfit.planner.plan import Plan
    from memfit.planner.transformers.runtime import Runtime

__all__ = ["command"]

_ASSUMED_CONTEXT_BYTES = 512 * MIB
_PROMPT_TOKENS, _TOKENS = 512, 16  # of a checkpoint


@click.command("calibration-run", hidden=True)
@click.argument("engine", type=click.Choice(["llamacpp", "transformers"]))
@click.argument("model")  # a GGUF file; for transformers a TransformersConfig as JSON
@click.argument("descriptors")  # the parent's; processes/child.py takes them from sys.argv
def command(engine: str, model: str, descriptors: str) -> int:
    """Run a tiny model for the calibration, which alone can start this."""
    if not re.fullmatch(r"\d+,\d+", descriptors):
        raise UsageError("calibration-run is started by memfit itself")
    run = _run_gguf if engine == "llamacpp" else _run_checkpoint
    return answer(lambda _: run(model))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run that has printed its report; its session is still open."""

    session: WorkerSession
    speed: Speed
    report: Report
    parent: ProcessMemory
    worker: ProcessMemory


@contextmanager
def _run(plan: Plan, prompt_tokens: int, generated_tokens: int) -> Iterator[_Run]:
    with open(os.devnull, "w", encoding="utf-8") as sink:  # noqa: PTH123 - not a file
        out = console(file=sink)
        print_plan(plan, out)
        with load_shown(plan, out) as session:
            speed = session.measure(prompt_tokens, generated_tokens)
            report = session.report()
            print_report(report, out)
            yield _Run(
                session=session,
                speed=speed,
                report=report,
                parent=process_memory(),
                worker=process_memory(session.worker_pid),
            )


def _run_gguf(path: str) -> dict[str, Any]:
    from memfit.engines.llamacpp.oracle import LlamaOracle
    from memfit.headers import read_model
    from memfit.memory.process_memory import Baseline
    from memfit.planner.llamacpp.inputs import PlanInputs
    from memfit.planner.llamacpp.planner import make_plan

    spec = read_model(path)
    nothing = Baseline(parent=None, decode_bytes=0)
    # The tiny model's speed is of no interest, only that it is printed.
    speeds = {False: ASSUMED}
    workload = Workload(repack="off", threads=2, prompt_tokens=8, generated_tokens=4)
    inputs = PlanInputs(spec=spec, machine=probe(), budget=Budget(), workload=workload, speeds=speeds)
    with LlamaOracle(spec, nothing, repack_modes=(False,)) as oracle:
        plan = make_plan(inputs, oracle)
    with _run(plan, plan.ubatch, 4) as run:  # of all kernels, those of prompts too
        return {"parent": asdict(run.parent), "decode_bytes": run.worker.total_bytes - plan.ram.total_bytes}


def _run_checkpoint(config_json: str) -> dict[str, Any]:
    from memfit.engines.transformers.session import TransformersSession
    from memfit.headers.hf_config import read_config
    from memfit.headers.hf_shapes import model_from_checkpoint
    from memfit.headers.hf_spec import spec_of_checkpoint
    from memfit.headers.safetensors import find_weights
    from memfit.memory.loaded_checkpoint import TransformersConfig
    from memfit.planner.transformers.planner import plan_checkpoint

    config = TransformersConfig.from_json(json.loads(config_json))
    path = config.folder / "config.json"
    hf_config, weights = read_config(path), find_weights(path)
    assert weights is not None
    model = model_from_checkpoint(hf_config, weights)
    spec = spec_of_checkpoint(str(config.folder), hf_config, weights, model)
    machine = probe()
    workload = Workload(context=config.context, prompt_tokens=_PROMPT_TOKENS, generated_tokens=_TOKENS)
    runtimes = [_assumed_runtime(machine, config.gpus)]
    plan = plan_checkpoint(spec, model, config, machine, Budget(), workload, runtimes)
    with _run(plan, _PROMPT_TOKENS, _TOKENS) as run:
        session, report = run.session, run.report
        assert isinstance(session, TransformersSession) and report.model is not None
        in_torch = session.torch_gpu_bytes
        weights_bytes = sum(report.model.by_dtype.values())
        loading_bytes = session.loaded_bytes - report.model.loaded_bytes
    return {
        "parent": asdict(run.parent),
        "worker": asdict(run.worker),
        "first_pass_bytes": report.model.steady_bytes
        - plan.ram.kv_cache_bytes
        - weights_bytes
        - loading_bytes,
        "starting_bytes": report.model.loading_bytes,
        "model_bytes": 0 if in_torch else weights_bytes + plan.ram.kv_cache_bytes,
        "gpu_process_bytes": _context_bytes(report.tiers, in_torch),
        "layer_seconds": run.speed.generation_seconds
        / run.speed.generated_tokens
        / hf_config.num_hidden_layers,
    }


def _assumed_runtime(machine: Machine, gpus: Sequence[int]) -> Runtime:
    """For a plan whose figures are of no interest."""
    from memfit.memory.precision import LOAD_IN
    from memfit.planner.transformers.runtime import GpuRuntime, Runtime

    rates = dict.fromkeys(LOAD_IN, 1e9)
    return Runtime(
        process_bytes=0,
        loading_process_bytes=0,
        starting_bytes=0,
        packs_4bit="avx512_bf16" in machine.cpu.instruction_sets and not gpus,
        layer_seconds=1e-3,
        elements_per_second=rates,
        operations_per_second=rates,
        disk_bytes_per_second=(1e9, 1e9),
        gpus=tuple(
            GpuRuntime(
                number=gpu.index, budget_bytes=gpu.free_bytes, limit_bytes=gpu.free_bytes, process_bytes=0
            )
            for gpu in machine.gpus
            if gpu.index in gpus
        ),
        link_bytes_per_second=1e9,
        basis="assumed",
    )


def _context_bytes(tiers: Sequence[TierReport], in_torch: Sequence[int]) -> int:
    """What the driver holds on a GPU beside torch's memory; assumed where the driver does not say."""
    peaks = [tier.peak_bytes for tier in tiers if tier.kind == "vram"]
    if not peaks or not in_torch:
        return 0
    return max(0, peaks[0] - in_torch[0]) if peaks[0] is not None else _ASSUMED_CONTEXT_BYTES
