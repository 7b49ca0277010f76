"""Plans a model for llama.cpp on this machine: finds devices, measures what is unknown, asks the planner."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from memfit.closing import Closing
from memfit.engines.fingerprinting import header_digest, take_fingerprint
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.lookup import dummy_devices, find_devices
from memfit.engines.llamacpp.oracle import LlamaOracle, small_config
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.probe import probe
from memfit.hardware.profile import read_profile
from memfit.headers.model_spec import ModelSpec
from memfit.hub.header_only import is_header_only
from memfit.memory.streaming import DEQUANTIZED, WIDENED, WIDENS
from memfit.planner.llamacpp.changes import changes, own_choice
from memfit.planner.llamacpp.embedding import for_model
from memfit.planner.llamacpp.inputs import PlanInputs, repack_modes
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.profile_speed import profile_speeds
from memfit.planner.llamacpp.solver_process import SolverProcess
from memfit.planner.request import ASSUMED_DISK, Budget, Workload, require_devices
from memfit.planner.speed import DeviceSpeed, needed_rates

__all__ = ["LlamaPlanner"]

_Speeds = tuple[Mapping[bool, DeviceSpeed] | None, list[DeviceSpeed | None]]


class LlamaPlanner(Closing):
    """Satisfies protocol.Planner. A context manager around the oracle's and the solver's processes."""

    only_parallel = None
    divides = False

    def __init__(self, spec: ModelSpec, options: PlanOptions, workload: Workload) -> None:
        """Errors as `Engine.planner`."""
        self.spec, self._options = spec, options
        workload = for_model(workload, spec)
        self._profile = read_profile(options.machine) if options.machine else None
        self._machine = self._profile.to_machine() if self._profile else probe()
        if self._profile:
            require_devices(options.budget, self._machine, is_dummy=True)
        self._calibration = calibration = LlamaCalibration(cpu_model=probe().cpu.model, say=options.say)
        self._devices = (
            dummy_devices(self._profile)
            if self._profile
            else find_devices(self._machine, options.budget, calibration)
        )
        baseline = calibration.baseline(count_parent=options.count_parent)
        grammar = calibration.grammar(spec) if workload.grammars else None
        modes = repack_modes(workload)
        self._solver = SolverProcess()
        self._oracle = LlamaOracle(
            spec,
            baseline,
            repack_modes=modes,
            answers=calibration.answers(header_digest(spec)),
            grammar=grammar,
            verbose=options.verbose,
        )
        try:
            self._speeds, device_speeds = self._measure(workload, modes)
        except BaseException:
            self.close()
            raise
        self._lent = tuple(zip(self._devices, device_speeds, strict=True))

    def _measure(self, workload: Workload, modes: Sequence[bool]) -> _Speeds:
        """Of RAM by the ways of holding weights, and of each device; a profile's are published ones."""
        if self._profile:
            ram, dummies = profile_speeds(self._profile)
            return dict.fromkeys(modes, ram), [*dummies]
        small = self._oracle.ask(small_config(self.spec, modes[0]))
        many = self._options.many or workload.parallel > 1
        instead: dict[str, list[str]] = {}
        if workload.repack == "auto" and not self._devices:
            instead = {one: [WIDENED] for one in WIDENS}
            # BF16 alone is for many sequences; beside Q8_0, whose kernels are slow on many CPUs, for prompts.
            for one in {tensor.type for tensor in self.spec.tensors} if many else ("Q8_0",):
                instead.setdefault(one, []).append(DEQUANTIZED)
        types, attention = needed_rates(small, instead=instead)
        threads = workload.threads or self._machine.cpu.threads
        self._oracle.settle()
        speeds = self._calibration.ram_speeds(types, attention, repack_modes=modes, threads=threads)
        return speeds, [
            self._calibration.device_speed(device.engine_name, types, attention) for device in self._devices
        ]

    @functools.cache  # noqa: B019 - a planner lives as long as its command
    def _disk_speed(self) -> tuple[float, float]:
        if self._profile:
            disk = self._profile.disk and self._profile.disk.read_bytes_per_second
            return (disk.value, disk.value) if disk else ASSUMED_DISK
        if is_header_only(self.spec.paths[0]):
            return ASSUMED_DISK
        return measure_file(max(self.spec.paths, key=lambda path: path.stat().st_size))

    def plan(self, workload: Workload, budget: Budget | None = None) -> LlamaPlan:
        options, profile = self._options, self._profile
        workload = for_model(workload, self.spec)
        inputs = PlanInputs(
            spec=self.spec,
            machine=self._machine,
            budget=budget or options.budget,
            workload=workload,
            conditions=options.conditions,
            speeds=self._speeds,
            devices=self._lent,
            disk_speed=self._disk_speed,
        )
        planned = self._made(inputs)
        if options.conditions:
            planned = replace(planned, own_choice=own_choice(inputs, self._made))
        if options.explain:
            planned = replace(planned, changes=tuple(changes(planned, inputs, self._made)))
        fingerprint = take_fingerprint(
            self.spec,
            self._machine,
            [device for device in self._devices if device.engine_name in planned.config.devices],
            engine=f"llamacpp {self._calibration.engine_build}".strip(),
            profile=profile.name if profile else None,
            counts_parent=options.count_parent,
        )
        stated = (f"machine {profile.name}: {profile.origin}",) if profile else ()
        return replace(planned, fingerprint=fingerprint, why=(*stated, *planned.why))

    def _made(self, inputs: PlanInputs) -> LlamaPlan:
        return make_plan(inputs, self._oracle, self._solver.solve)

    def tokenize(self, requests: Sequence[Request]) -> list[list[int] | None]:
        return self._oracle.tokenize(requests)

    def close(self) -> None:
        self._oracle.close()
        self._solver.close()
