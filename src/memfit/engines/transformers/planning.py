"""Plans a checkpoint for this machine, or one that a profile describes: finds it, measures what is not in its
header, asks the planner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from memfit.closing import Closing
from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.engines.transformers.calibrate import engine_build, measure_processes, measure_runtime
from memfit.engines.transformers.checkpoint_files import find_checkpoint_files
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineError, UsageError, WrongValueError
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Gpu, Machine
from memfit.hardware.probe import probe
from memfit.hardware.profile import Profile, read_profile
from memfit.hub.resolve import ResolvedModel
from memfit.memory.loaded_checkpoint import TransformersConfig, converting_peak_bytes
from memfit.memory.packed_weights import form_of
from memfit.memory.precision import LOAD_IN, STORED
from memfit.memory.process_memory import process_memory
from memfit.memory.serving import SERVING_BYTES
from memfit.planner.request import ASSUMED_DISK, Budget, Workload, context_of, require_devices
from memfit.planner.transformers.planner import plan_checkpoint, require_sense, runs_in_parallel
from memfit.planner.transformers.profile_speed import described_runtimes
from memfit.planner.transformers.runtime import Runtime
from memfit.planner.transformers.transformers_plan import TransformersPlan, cautions

__all__ = ["TransformersPlanner"]

_SERVED_TOKENS = 1024  # of a conversation, at least


class TransformersPlanner(Closing):
    """Satisfies protocol.Planner."""

    divides = True

    def __init__(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> None:
        """Errors as `Engine.planner`."""
        if options.conditions:
            raise UsageError(f"{options.conditions}: placement options are for GGUF files, in llama.cpp")
        self._options = options
        self._profile = read_profile(options.machine) if options.machine else None
        machine = self._profile.to_machine() if self._profile else probe()
        # torch uses CUDA's GPUs; a profile says of those alone what they can compute.
        gpus = [one for one in machine.gpus if not one.kernel_driver]
        if self._profile:
            gpus = [one for one in gpus if one.compute_capability]
        self._machine = replace(machine, gpus=tuple(gpus))
        require_devices(options.budget, self._machine, is_dummy=bool(self._profile))
        load_in = options.load_in
        if load_in is not None and load_in not in LOAD_IN:
            raise WrongValueError("load_in", f" is {load_in!r}; it must be one of {', '.join(LOAD_IN)}")
        self._found = found = find_checkpoint_files(model, load_in, options.say)
        self.spec = found.spec
        self._config = TransformersConfig(
            folder=found.folder,
            paths=found.paths,
            load_in=found.stored_in if load_in in (None, STORED) else load_in,
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
        for caution in cautions(found.model, self._config, self._runtimes[0]):
            options.say(caution)

    def _measure(self, disk: tuple[float, float] | None) -> list[Runtime]:
        """On the GPUs that may be used, where torch can, and on the CPU; `disk` None is measured, too."""
        options = self._options
        if self._profile:
            return self._with_converting(self._described(self._profile))
        if disk is None:
            disk = measure_file(max(self.spec.paths, key=lambda one: one.stat().st_size))
        forms = {form_of(one.stored) for one in self._found.model.parameters} - {None}
        if not self._config.precision.is_stored:
            forms = set()
        measure = partial(
            measure_runtime,
            self._config,
            self._found.hf_config,
            self._machine.cpu,
            forms=sorted(map(str, forms)),
            say=options.say,
            disk_bytes_per_second=disk,
            count_parent=options.count_parent,
        )
        runtimes = [measure()]
        gpus = _gpus(self._machine, options.budget)
        if gpus and forms:
            options.say(
                "GPUs are not used: packed weights are computed with on the CPU; --load-in bf16 unpacks"
            )
        elif gpus:
            try:
                runtimes.insert(0, measure(gpus=gpus))
            except EngineError as error:  # a torch without CUDA
                if options.budget.vram is not None:
                    raise
                options.say(f"GPUs are not used: {error}")
        return self._with_converting(runtimes)

    def _described(self, profile: Profile) -> list[Runtime]:
        """Speeds as published; the processes' memory is measured here, quantized or not."""
        here, config = probe().cpu, self._config
        kind = "nf4" if config.precision.is_quantized else "bf16"
        small = replace(config, load_in=kind, double_quant=False, threads=here.threads)
        processes = measure_processes(
            small, here, say=self._options.say, count_parent=self._options.count_parent
        )
        gpus = [(gpu, self._options.budget.gpu_bytes(gpu)) for gpu in self._machine.gpus]
        return described_runtimes(profile, config, processes, [one for one in gpus if one[1] > 0])

    def _with_converting(self, runtimes: list[Runtime]) -> list[Runtime]:
        if not self._found.gguf:
            return runtimes
        needs = converting_peak_bytes(self.spec.tensors, self._config.precision.element_bytes)
        parent = process_memory().anonymous_bytes if self._options.count_parent else 0
        converting = parent + self._found.reading_bytes + needs
        return [replace(one, converting_bytes=converting) for one in runtimes]

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
            profile=self._profile.name if self._profile else None,
            counts_parent=self._options.count_parent,
        )
        stated = (f"machine {self._profile.name}: {self._profile.origin}",) if self._profile else ()
        return replace(plan, fingerprint=fingerprint, why=(*stated, *plan.why))

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
