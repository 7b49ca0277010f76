"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.transformers.calibrate import Calibration, library_versions, require_libraries
from memfit.engines.transformers.gguf_files import find_checkpoint_of, is_converted
from memfit.errors import EngineError, ModelError, UsageError, WrongValueError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.headers.gguf_model import read_model
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes, require_writes
from memfit.hub.header_only import is_header_only
from memfit.hub.resolve import find_file, find_weights
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN, precision, stored_precision
from memfit.memory.precision_table import PrecisionRow, precision_row
from memfit.memory.process_memory import process_memory
from memfit.planner.llamacpp.planner import thread_count
from memfit.planner.llamacpp.streaming import ASSUMED_DISK
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import (
    Runtime,
    TransformersPlan,
    plan_checkpoint,
    require_sense,
)

__all__ = ["FoundCheckpoint", "find_again", "plan_for_transformers"]

_DECIDING = ("config.json", "generation_config.json", "tokenizer.json")
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
        raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
    found = _find(find_file(model, say), model, load_in, say)
    hf_config, here = found.hf_config, probe()
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
    spec = found.spec
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
    if found.gguf:
        needs = converting_peak_bytes(spec.tensors, config.precision.element_bytes)
        parent = process_memory().anonymous_bytes if count_parent else 0
        converting = parent + found.reading_bytes + needs
        runtimes = [replace(one, converting_bytes=converting) for one in runtimes]
    plan = plan_checkpoint(spec, found.model, config, here, budget, workload, runtimes)
    fingerprint = take_fingerprint(
        spec, here, engine=_engine(), whole_files=found.whole_files, counts_parent=count_parent
    )
    return replace(plan, fingerprint=fingerprint)


def find_again(
    config: TransformersConfig, model: str, say: Callable[[str], None], *, moved: bool
) -> tuple[FoundCheckpoint, PrecisionRow, str]:
    """The checkpoint of a saved plan, what it takes in its precision, and the engine with its build.

    It is where it was, unless it has `moved` to `model`, or is what a GGUF file becomes.
    """
    require_libraries()
    named = model if moved or is_converted(config.folder) else str(config.folder)
    found = _find(find_file(named, say), model, config.load_in, say)
    return found, precision_row(found.model, config.precision, config.context), _engine()


def _engine() -> str:
    return f"transformers of {library_versions()}"


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint, or what a GGUF file becomes as one."""

    spec: ModelSpec
    hf_config: HfConfig
    model: HfModel
    paths: tuple[Path, ...]  # of the weights
    stored_in: str  # the precision without another wish
    gguf: Path | None = None  # the file, until it has become a checkpoint
    reading_bytes: int = 0  # what a process held at most while it read that file's header

    @property
    def folder(self) -> Path:
        return self.hf_config.path.absolute().parent

    @property
    def whole_files(self) -> tuple[Path, ...]:
        """Small files that the model's answers hang on as well."""
        if self.spec.paths != self.paths:  # a GGUF file has it all
            return ()
        found = (self.folder / name for name in _DECIDING)
        return tuple(path for path in found if path.is_file())


def _find(path: Path, source: str, load_in: str | None, say: Callable[[str], None]) -> FoundCheckpoint:
    """`path` is a config.json or a GGUF file."""
    spec, gguf = None, None
    if path.name != "config.json":
        spec = _one_file(read_model(path, source=source))
        require_writes(spec)
        gguf = find_checkpoint_of(path, dtype=precision(load_in or "bf16").plain_type, say=say)
        path = gguf.folder / "config.json"
    else:
        require_checkpoint_writes(source, path)
    hf_config, weights = read_config(path), find_weights(path)
    if weights is None:
        raise ModelError(_no_weights(hf_config))
    model = model_from_checkpoint(hf_config, weights)
    return FoundCheckpoint(
        spec=spec or spec_of_checkpoint(source, hf_config, weights, model),
        hf_config=hf_config,
        model=model,
        paths=weights.paths,
        stored_in="bf16" if spec else stored_precision(hf_config.dtype).name,
        gguf=spec.paths[0] if spec and gguf and not gguf.is_whole else None,
        reading_bytes=gguf.reading_bytes if gguf else 0,
    )


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
