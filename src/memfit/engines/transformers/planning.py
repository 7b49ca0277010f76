"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.transformers.calibrate import Calibration, engine_build
from memfit.engines.transformers.checkpoint_files import CheckpointFiles, find_checkpoint_files
from memfit.errors import EngineError, UsageError, WrongValueError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.hub.header_only import is_header_only
from memfit.hub.resolve import find_file
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN
from memfit.memory.process_memory import process_memory
from memfit.planner.defaults import ASSUMED_DISK, thread_count
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import plan_checkpoint, require_sense
from memfit.planner.transformers.runtime import Runtime
from memfit.planner.transformers.transformers_plan import TransformersPlan

__all__ = ["plan_for_transformers"]


def plan_for_transformers(
    model: str,
    *,
    budget: Budget,
    workload: Workload,
    load_in: str | None,
    double_quant: bool,
    trust_remote_code: bool,
    count_parent: bool,
    say: Callable[[str], None],
) -> TransformersPlan:
    """A plan for the checkpoint that `model` names; `load_in` None takes the type it is stored in.

    Raises:
        ModelError: it is missing, damaged, or made of pickles.
        UsageError: a setting that makes no sense, or that this CPU cannot run.
        EngineMissingError: transformers is not installed.
    """
    if load_in is not None and load_in not in LOAD_IN:
        raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
    found = find_checkpoint_files(find_file(model, say), model, load_in, say)
    here = probe()
    config = TransformersConfig(
        folder=found.folder,
        paths=found.paths,
        load_in=load_in or found.stored_in,
        double_quant=double_quant,
        context=0,
        ubatch=0,
        threads=thread_count(here, workload),
        trust_remote_code=trust_remote_code,
        gguf=found.gguf,
    )
    require_sense(config, workload)
    runtimes = _runtimes(found, config, here, budget, count_parent=count_parent, say=say)
    plan = plan_checkpoint(found.spec, found.model, config, here, budget, workload, runtimes)
    fingerprint = take_fingerprint(
        found.spec, here, engine=engine_build(), whole_files=found.whole_files, counts_parent=count_parent
    )
    return replace(plan, fingerprint=fingerprint)


def _runtimes(
    found: CheckpointFiles,
    config: TransformersConfig,
    here: Machine,
    budget: Budget,
    *,
    count_parent: bool,
    say: Callable[[str], None],
) -> list[Runtime]:
    """On GPUs, where there are any that may be used, and on the CPU."""
    paths = found.spec.paths
    remote = any(map(is_header_only, paths))
    disk = ASSUMED_DISK[0] if remote else measure_file(max(paths, key=lambda one: one.stat().st_size))[0]
    measure = partial(
        Calibration(say).runtime,
        config,
        found.hf_config,
        here.cpu,
        disk_bytes_per_second=disk,
        count_parent=count_parent,
    )
    runtimes = [measure()]
    if gpus := _gpus(here, budget):
        try:
            runtimes.insert(0, measure(gpus=gpus))
        except EngineError as error:  # a torch without CUDA
            if budget.vram is not None:
                raise
            say(f"GPUs are not used: {error}")
    if found.gguf:
        needs = converting_peak_bytes(found.spec.tensors, config.precision.element_bytes)
        parent = process_memory().anonymous_bytes if count_parent else 0
        converting = parent + found.reading_bytes + needs
        runtimes = [replace(one, converting_bytes=converting) for one in runtimes]
    return runtimes


def _gpus(machine: Machine, budget: Budget) -> list[tuple[Gpu, int]]:
    """Those that may be used, with their budgets."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not all(one.isdigit() for one in visible.split(",") if one):
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; memfit understands numbers, as nvidia-smi has them"
        )
    budgets = [(gpu, budget.gpu_bytes(gpu.index, gpu.free_bytes, gpu.total_bytes)) for gpu in machine.gpus]
    allowed = None if visible is None else {int(one) for one in visible.split(",") if one}
    return [(gpu, size) for gpu, size in budgets if size and (allowed is None or gpu.index in allowed)]
