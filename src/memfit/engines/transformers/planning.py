"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.engines.transformers.calibrate import Calibration, library_versions, require_libraries
from memfit.engines.transformers.gguf_files import find_checkpoint_of, is_converted
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineError, ModelError, UsageError, WrongValueError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes, require_writes
from memfit.headers.safetensors import find_weights
from memfit.hub.resolve import ResolvedModel, resolve
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN, precision, stored_precision
from memfit.memory.precision_table import PrecisionRow, precision_row
from memfit.memory.process_memory import process_memory
from memfit.planner.llamacpp.planner import thread_count
from memfit.planner.llamacpp.streaming import ASSUMED_DISK
from memfit.planner.request import Budget, Workload, require_devices
from memfit.planner.transformers.planner import (
    Runtime,
    TransformersPlan,
    plan_checkpoint,
    require_sense,
)

__all__ = ["FoundCheckpoint", "TransformersPlanner", "find_again"]

_DECIDING = ("config.json", "generation_config.json", "tokenizer.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


class TransformersPlanner:
    """Satisfies protocol.Planner."""

    only_parallel = 1

    def __init__(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> None:
        """Errors as `Engine.planner`."""
        self._options, self._machine = options, probe()
        require_devices(options.budget, self._machine, is_dummy=False)
        load_in = options.load_in
        if load_in is not None and load_in not in LOAD_IN:
            raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
        self._found = found = _find(model, load_in, options.say)
        self.spec = found.spec
        self._config = TransformersConfig(
            folder=found.folder,
            paths=found.paths,
            load_in=load_in or found.stored_in,
            double_quant=options.double_quant,
            context=0,
            ubatch=0,
            threads=thread_count(self._machine, workload),
            trust_remote_code=options.trust_remote_code,
            gguf=found.gguf,
        )
        require_sense(self._config, workload)
        self._runtimes = self._measure(ASSUMED_DISK[0] if model.is_header_only else None)

    def _measure(self, disk: float | None) -> list[Runtime]:
        """On the GPUs that may be used, where torch can, and on the CPU; `disk` None is measured, too."""
        options = self._options
        if disk is None:
            disk = measure_file(max(self.spec.paths, key=lambda one: one.stat().st_size))[0]
        calibration = Calibration(options.say)

        def runtime(gpus: Sequence[tuple[Gpu, int]]) -> Runtime:
            return calibration.runtime(
                self._config,
                self._found.hf_config,
                self._machine.cpu,
                gpus=gpus,
                disk_bytes_per_second=disk,
                count_parent=options.count_parent,
            )

        runtimes = [runtime(())]
        if gpus := _gpus(self._machine, options.budget):
            try:
                runtimes.insert(0, runtime(gpus))
            except EngineError as error:  # a torch without CUDA
                if options.budget.vram is not None:
                    raise
                options.say(f"GPUs are not used: {error}")
        if self._found.gguf:
            needs = converting_peak_bytes(self.spec.tensors, self._config.precision.element_bytes)
            parent = process_memory().anonymous_bytes if options.count_parent else 0
            converting = parent + self._found.reading_bytes + needs
            runtimes = [replace(one, converting_bytes=converting) for one in runtimes]
        return runtimes

    def plan(self, workload: Workload) -> TransformersPlan:
        found, budget = self._found, self._options.budget
        plan = plan_checkpoint(
            self.spec, found.model, self._config, self._machine, budget, workload, self._runtimes
        )
        fingerprint = take_fingerprint(
            self.spec,
            self._machine,
            engine=_engine(),
            whole_files=found.whole_files,
            counts_parent=self._options.count_parent,
        )
        return replace(plan, fingerprint=fingerprint)

    def count_tokens(self, requests: Sequence[Request]) -> list[int | None]:
        config = self._config
        with TransformersWorker(load_in=config.load_in, threads=1) as worker:
            counts: list[int | None] = worker.ask(
                "count_tokens",
                folder=str(config.folder),
                trust_remote_code=config.trust_remote_code,
                requests=[one.to_json() for one in requests],
            )["counts"]
        return counts

    def __enter__(self) -> TransformersPlanner:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""


def find_again(
    config: TransformersConfig, model: str, say: Callable[[str], None], *, moved: bool
) -> tuple[FoundCheckpoint, PrecisionRow, str]:
    """The checkpoint of a saved plan, what it takes in its precision, and the engine with its build.

    It is where it was, unless it has `moved` to `model`, or is what a GGUF file becomes.
    """
    require_libraries()
    named = model if moved or is_converted(config.folder) else str(config.folder)
    found = _find(replace(resolve(named, say), source=model), config.load_in, say)
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


def _find(model: ResolvedModel, load_in: str | None, say: Callable[[str], None]) -> FoundCheckpoint:
    spec, gguf, path = None, None, model.path
    if not model.is_checkpoint:
        spec = _one_file(model.read_spec())
        require_writes(spec)
        gguf = find_checkpoint_of(path, dtype=precision(load_in or "bf16").plain_type, say=say)
        path = gguf.folder / "config.json"
    else:
        require_checkpoint_writes(model.source, path)
    hf_config, weights = read_config(path), find_weights(path)
    if weights is None:
        raise ModelError(_no_weights(hf_config))
    hf_model = model_from_checkpoint(hf_config, weights)
    return FoundCheckpoint(
        spec=spec or spec_of_checkpoint(model.source, hf_config, weights, hf_model),
        hf_config=hf_config,
        model=hf_model,
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
