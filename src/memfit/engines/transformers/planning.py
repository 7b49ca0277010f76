"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.engines.transformers.calibrate import Calibration
from memfit.engines.transformers.gguf_files import GgufCheckpoint, find_checkpoint_of
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineError, ModelError, UsageError, WrongValueError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes, require_writes
from memfit.headers.safetensors import find_weights
from memfit.hub.resolve import ResolvedModel
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN, precision, stored_precision
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

__all__ = ["TransformersPlanner"]

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


class TransformersPlanner:
    """Satisfies protocol.Planner."""

    only_parallel = 1

    def __init__(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> None:
        """Errors as `Engine.planner`."""
        self._options, self._machine = options, probe()
        self._is_header_only = model.is_header_only
        require_devices(options.budget, self._machine, is_dummy=False)
        self._gguf: GgufCheckpoint | None = None
        spec, load_in, path = None, options.load_in, model.path
        if load_in is not None and load_in not in LOAD_IN:
            raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
        if not model.is_checkpoint:
            spec = _one_file(model.read_spec())
            require_writes(spec)
            load_in = load_in or "bf16"
            self._gguf = find_checkpoint_of(path, dtype=precision(load_in).plain_type, say=options.say)
            path = self._gguf.folder / "config.json"
        else:
            require_checkpoint_writes(model.source, path)
        self._hf_config, weights = read_config(path), find_weights(path)
        if weights is None:
            raise ModelError(_no_weights(self._hf_config))
        self._checkpoint = model_from_checkpoint(self._hf_config, weights)
        becomes = self._gguf and not self._gguf.is_whole
        self._config = TransformersConfig(
            folder=path.absolute().parent,
            paths=weights.paths,
            load_in=load_in or stored_precision(self._hf_config.dtype).name,
            double_quant=options.double_quant,
            context=0,
            ubatch=0,
            threads=thread_count(self._machine, workload),
            trust_remote_code=options.trust_remote_code,
            gguf=spec.paths[0] if spec and becomes else None,
        )
        require_sense(self._config, workload)
        self.spec = spec or spec_of_checkpoint(model.source, self._hf_config, weights, self._checkpoint)
        self._runtimes = self._measure()

    def _measure(self) -> list[Runtime]:
        """On the GPUs that may be used, where torch can, and on the CPU."""
        paths, say = self.spec.paths, self._options.say
        largest = max(paths, key=lambda one: one.stat().st_size)
        disk = ASSUMED_DISK[0] if self._is_header_only else measure_file(largest)[0]
        calibration = Calibration(say)

        def runtime(gpus: Sequence[tuple[Gpu, int]]) -> Runtime:
            return calibration.runtime(
                self._config,
                self._hf_config,
                self._machine.cpu,
                gpus=gpus,
                disk_bytes_per_second=disk,
                count_parent=self._options.count_parent,
            )

        runtimes = [runtime(())]
        if gpus := _gpus(self._machine, self._options.budget):
            try:
                runtimes.insert(0, runtime(gpus))
            except EngineError as error:  # a torch without CUDA
                if self._options.budget.vram is not None:
                    raise
                say(f"GPUs are not used: {error}")
        if self._gguf and not self._gguf.is_whole:
            needs = converting_peak_bytes(self.spec.tensors, self._config.precision.element_bytes)
            parent = process_memory().anonymous_bytes if self._options.count_parent else 0
            converting = parent + self._gguf.reading_bytes + needs
            runtimes = [replace(one, converting_bytes=converting) for one in runtimes]
        return runtimes

    def plan(self, workload: Workload) -> TransformersPlan:
        return plan_checkpoint(
            self.spec,
            self._checkpoint,
            self._config,
            self._machine,
            self._options.budget,
            workload,
            self._runtimes,
        )

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
