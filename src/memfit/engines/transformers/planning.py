"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from memfit.engines.transformers.calibrate import Calibration
from memfit.engines.transformers.gguf_files import find_checkpoint_of
from memfit.errors import EngineError, ModelError, UsageError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.headers.gguf_model import read_model
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes, require_writes
from memfit.hub.header_only import is_header_only
from memfit.hub.resolve import find_file, find_weights
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN, precision, stored_precision
from memfit.memory.process_memory import process_memory
from memfit.planner.defaults import ASSUMED_DISK, thread_count
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import plan_checkpoint, require_sense
from memfit.planner.transformers.runtime import Runtime
from memfit.planner.transformers.transformers_plan import TransformersPlan

__all__ = ["plan_for_transformers"]

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


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
        raise UsageError(f"--load-in is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
    path, spec, gguf = find_file(model, say), None, None
    if path.name != "config.json":
        spec = _one_file(read_model(path, source=model))
        require_writes(spec)
        load_in = load_in or "bf16"
        gguf = find_checkpoint_of(path, dtype=precision(load_in).plain_type, say=say)
        path = gguf.folder / "config.json"
    else:
        require_checkpoint_writes(model, path)
    hf_config, weights = read_config(path), find_weights(path)
    if weights is None:
        raise ModelError(_no_weights(hf_config))
    checkpoint = model_from_checkpoint(hf_config, weights)
    here = probe()
    config = TransformersConfig(
        folder=path.absolute().parent,
        paths=weights.paths,
        load_in=load_in or stored_precision(hf_config.dtype).name,
        double_quant=double_quant,
        context=0,
        ubatch=0,
        threads=thread_count(here, workload),
        trust_remote_code=trust_remote_code,
        gguf=spec.paths[0] if spec and gguf and not gguf.is_whole else None,
    )
    require_sense(config, workload)
    spec = spec or spec_of_checkpoint(model, hf_config, weights, checkpoint)
    remote = any(map(is_header_only, spec.paths))
    disk = ASSUMED_DISK[0] if remote else measure_file(max(spec.paths, key=lambda one: one.stat().st_size))[0]
    calibration = Calibration(say)

    def runtime(gpus: Sequence[tuple[Gpu, int]]) -> Runtime:
        return calibration.runtime(
            config,
            hf_config,
            here.cpu,
            gpus=gpus,
            disk_bytes_per_second=disk,
            count_parent=count_parent,
        )

    runtimes = [runtime(())]
    if gpus := _gpus(here, budget):
        try:
            runtimes.insert(0, runtime(gpus))
        except EngineError as error:  # a torch without CUDA
            if budget.vram is not None:
                raise
            say(f"GPUs are not used: {error}")
    if gguf and not gguf.is_whole:
        needs = converting_peak_bytes(spec.tensors, config.precision.element_bytes)
        parent = process_memory().anonymous_bytes if count_parent else 0
        converting = parent + gguf.reading_bytes + needs
        runtimes = [replace(one, converting_bytes=converting) for one in runtimes]
    return plan_checkpoint(spec, checkpoint, config, here, budget, workload, runtimes)


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


def _one_file(spec: ModelSpec) -> ModelSpec:
    """Raises ModelError where it is split."""
    if len(spec.paths) > 1:
        raise ModelError(
            f"{spec.source} is split into {len(spec.paths)} files, and transformers reads one; merge them "
            "with llama-gguf-split --merge"
        )
    return spec


def _no_weights(hf_config: HfConfig) -> str:
    folder = hf_config.path.parent
    for name in _PICKLES:
        if (folder / name).exists():
            return (
                f"{folder} holds {name}, a pickle: loading one runs whatever program is in it, so memfit "
                "does not; look for the same model as safetensors, or convert it where you trust it"
            )
    return f"there are no safetensors in {folder}"
