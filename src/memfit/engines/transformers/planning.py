"""Plans a checkpoint for this machine: finds it, measures what is not in its header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from memfit.closing import Closing
from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.engines.transformers.calibrate import engine_build, measure_runtime
from memfit.engines.transformers.checkpoint_files import find_checkpoint_files
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineError, UsageError, WrongValueError
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.hardware.probe import probe
from memfit.hub.resolve import ResolvedModel
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.precision import LOAD_IN
from memfit.memory.process_memory import process_memory
from memfit.memory.serving import SERVING_BYTES
from memfit.planner.request import ASSUMED_DISK, Budget, Workload, context_of, require_devices
from memfit.planner.transformers.planner import plan_checkpoint, require_sense, runs_in_parallel
from memfit.planner.transformers.runtime import Runtime
from memfit.planner.transformers.transformers_plan import TransformersPlan

__all__ = ["TransformersPlanner"]

_SERVED_TOKENS = 1024  # of a conversation, at least


class TransformersPlanner(Closing):
    """Satisfies protocol.Planner."""

    divides = True

    def __init__(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> None:
        """Errors as `Engine.planner`."""
        if options.conditions:
            raise UsageError(f"{options.conditions}: placement options are for GGUF files, in llama.cpp")
        here = probe()  # torch uses CUDA's GPUs
        here = replace(here, gpus=tuple(gpu for gpu in here.gpus if not gpu.kernel_driver))
        self._options, self._machine = options, here
        require_devices(options.budget, self._machine, is_dummy=False)
        load_in = options.load_in
        if load_in is not None and load_in not in LOAD_IN:
            raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
        self._found = found = find_checkpoint_files(model, load_in, options.say)
        self.spec = found.spec
        self._config = TransformersConfig(
            folder=found.folder,
            paths=found.paths,
            load_in=load_in or found.stored_in,
            double_quant=options.double_quant,
            context=0,
            ubatch=0,
            threads=workload.threads or self._machine.cpu.threads,
            trust_remote_code=options.trust_remote_code,
            gguf=found.gguf,
        )
        self.only_parallel = None if runs_in_parallel(found.model) else 1
        require_sense(self._config, self._divided(workload), found.model)
        self._runtimes = self._measure(ASSUMED_DISK if model.is_header_only else None)

    def _measure(self, disk: tuple[float, float] | None) -> list[Runtime]:
        """On the GPUs that may be used, where torch can, and on the CPU; `disk` None is measured, too."""
        options = self._options
        if disk is None:
            disk = measure_file(max(self.spec.paths, key=lambda one: one.stat().st_size))
        measure = partial(
            measure_runtime,
            self._config,
            self._found.hf_config,
            self._machine.cpu,
            say=options.say,
            disk_bytes_per_second=disk,
            count_parent=options.count_parent,
        )
        runtimes = [measure()]
        if gpus := _gpus(self._machine, options.budget):
            try:
                runtimes.insert(0, measure(gpus=gpus))
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

    def _divided(self, workload: Workload) -> Workload:
        """Where a server would let any number of sequences share a context: so many as have room for a
        conversation in parts of their own."""
        if not (workload.serves and workload.kv_unified):
            return workload
        context = context_of(workload, self._found.hf_config.max_position_embeddings)
        parallel = self.only_parallel or max(1, min(workload.parallel, context // _SERVED_TOKENS))
        return replace(workload, parallel=parallel, kv_unified=False)

    def plan(self, workload: Workload, budget: Budget | None = None) -> TransformersPlan:
        workload = self._divided(workload)
        found, budget = self._found, budget or self._options.budget
        runtimes = self._runtimes
        if workload.serves:
            runtimes = [
                replace(
                    one,
                    process_bytes=one.process_bytes + SERVING_BYTES,
                    loading_process_bytes=one.loading_process_bytes + SERVING_BYTES,
                )
                for one in runtimes
            ]
        plan = plan_checkpoint(
            self.spec, found.model, self._config, self._machine, budget, workload, runtimes
        )
        fingerprint = take_fingerprint(
            self.spec,
            self._machine,
            engine=engine_build(),
            whole_files=found.whole_files,
            counts_parent=self._options.count_parent,
        )
        return replace(plan, fingerprint=fingerprint)

    def tokenize(self, requests: Sequence[Request]) -> list[list[int] | None]:
        config = self._config
        with TransformersWorker(load_in=config.load_in, threads=1) as worker:
            tokens: list[list[int] | None] = worker.ask(
                "tokenize",
                folder=str(config.folder),
                trust_remote_code=config.trust_remote_code,
                requests=[one.to_json() for one in requests],
            )["tokens"]
        return tokens

    def close(self) -> None:
        """Nothing is held."""


def _gpus(machine: Machine, budget: Budget) -> list[tuple[Gpu, int]]:
    """Those that may be used, with their budgets."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not all(one.isdigit() for one in visible.split(",") if one):
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; memfit understands numbers, as nvidia-smi has them"
        )
    budgets = [(gpu, budget.gpu_bytes(gpu)) for gpu in machine.gpus]
    allowed = None if visible is None else {int(one) for one in visible.split(",") if one}
    return [(gpu, size) for gpu, size in budgets if size and (allowed is None or gpu.index in allowed)]
