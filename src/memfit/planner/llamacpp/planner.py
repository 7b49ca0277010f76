"""Chooses how to run a model inside its budgets: placement, KV type, ubatch, repacking, load mode.

In this order of worth: an f16 KV cache over q8_0 (it changes the answers), a large ubatch over a
small one (prompt speed), and between repacked and plain weights whatever the measured kernels say is
faster for the workload. The first configuration that fits wins. Every byte comes from the oracle.
Where there are devices, offload.py places the tensors of each configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from memfit.errors import EngineError
from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import RAM, LlamaConfig, MemoryEstimate, Oracle
from memfit.memory.grammars import grammar_bytes
from memfit.memory.streaming import streamed_bytes
from memfit.planner.llamacpp.dequantizing import dequantize
from memfit.planner.llamacpp.offload import Offloader
from memfit.planner.llamacpp.placement import Placement, Problem, solve
from memfit.planner.llamacpp.reasons import reasons
from memfit.planner.llamacpp.streaming import ASSUMED_DISK, resident, slowed, stream_out
from memfit.planner.llamacpp.suggest import suggestions
from memfit.planner.llamacpp.tiers import tiers_of
from memfit.planner.plan import LlamaPlan, TierUse
from memfit.planner.request import KV_TYPES, Budget, Workload
from memfit.planner.speed import ASSUMED, ASSUMED_DEVICE, DeviceSpeed, Prediction, predict
from memfit.units import MIB

__all__ = ["make_plan", "repack_modes", "thread_count"]

_DEFAULT_CONTEXT = 4096
_UBATCHES = (512, 256, 128, 64, 32)
_ROOM_FOR_ERROR = 4 * MIB  # predictions are within 2: benchmarks/memory.py
_DEVICE_ROOM = 3 * MIB // 2
_WORKER_ROOM = MIB // 2  # its kernel counts for us, and what it adds itself is known: benchmarks/devices.py
_ATTEMPTS = 4  # to find out what a device really holds
_NEGLIGIBLE_GAIN = 0.02  # within the noise of measuring kernels


def repack_modes(workload: Workload) -> tuple[bool, ...]:
    """The ways of holding weights that are worth asking about."""
    return {"auto": (False, True), "on": (True,), "off": (False,)}[workload.repack]


def thread_count(machine: Machine, workload: Workload) -> int:
    """Threads to compute with: asked for, or the physical cores this process may use."""
    return workload.threads or max(1, min(machine.cpu.physical_cores, machine.cpu.logical_cores))


def make_plan(
    spec: ModelSpec,
    machine: Machine,
    budget: Budget,
    workload: Workload,
    oracle: Oracle,
    speeds: Mapping[bool, DeviceSpeed] | None,
    devices: Sequence[tuple[Device, DeviceSpeed | None]] = (),
    solver: Callable[[Problem], Placement | None] = solve,
    disk_speed: Callable[[], tuple[float, float]] = lambda: ASSUMED_DISK,
) -> LlamaPlan:
    """The best plan that fits, or the smallest one there is with suggestions of what would fit.

    `speeds` are this CPU's with repacked and with plain weights; None where they could not be measured,
    as with a device's. `disk_speed`, in bytes/s, slowest and fastest, is only asked for where weights do not
    fit.

    Raises:
        UsageError: the budget is not a size.
        EngineError: the engine refuses the configuration that was asked for.
    """
    return _Planner(spec, machine, budget, workload, oracle, speeds, devices, solver, disk_speed).plan()


@dataclass(frozen=True, kw_only=True)
class _UsedDevice:
    device: Device
    speed: DeviceSpeed
    budget_bytes: int
    limit_bytes: int  # the budget, or what is free where that is less

    @property
    def safe_bytes(self) -> int:
        """Less the room for what reality adds."""
        return self.limit_bytes - (_WORKER_ROOM if self.device.is_memfit_server else _DEVICE_ROOM)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A configuration with its tensors placed, weighed and timed."""

    config: LlamaConfig
    answer: MemoryEstimate
    tiers: tuple[TierUse, ...]
    prediction: Prediction
    seconds: float  # for one request of the workload

    def fits(self, within: Sequence[int]) -> bool:
        """`within`: the bytes that each place may need."""
        return all(tier.needs_bytes <= most for tier, most in zip(self.tiers, within, strict=True))


class _Planner:
    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        budget: Budget,
        workload: Workload,
        oracle: Oracle,
        speeds: Mapping[bool, DeviceSpeed] | None,
        devices: Sequence[tuple[Device, DeviceSpeed | None]],
        solver: Callable[[Problem], Placement | None],
        disk_speed: Callable[[], tuple[float, float]],
    ) -> None:
        self._spec = spec
        self._machine = machine
        self._budget = budget
        self._workload = workload
        self._oracle = oracle
        self._ram_speeds = speeds
        self._used = [
            _UsedDevice(
                device=device,
                speed=speed or ASSUMED_DEVICE,
                budget_bytes=size,
                limit_bytes=min(size, device.free_bytes),
            )
            for device, speed in devices
            if (size := budget.device_bytes(device))
        ]
        self._too_small: list[str] = []  # devices without room for anything but compute buffers
        self._solver = solver
        self._disk_speed = disk_speed
        # What passes through memory is not rewritten: who asks for that asks for all of the model in memory.
        self._may_stream = budget.disk and workload.repack != "on"
        self._ram_budget = budget.ram_bytes(machine.ram)
        self._ram_limit = min(self._ram_budget, machine.ram.available_bytes)
        self._context = workload.context or min(_DEFAULT_CONTEXT, spec.context_length)
        self._ubatches = _ubatch_sizes(self._context, workload.parallel)
        self._candidates: dict[tuple[LlamaConfig, tuple[int, ...], bool], _Candidate | None] = {}

    def plan(self) -> LlamaPlan:
        self._leave_out_small_devices()
        # Only a plan that would otherwise not fit goes without the room for what reality adds; with a
        # disk, it would rather stream.
        safe, all_of_it = self._safe_limits, self._limits
        for limits in ((safe,), (all_of_it,)) if self._may_stream else ((safe, all_of_it),):
            for index, (kv_type, within) in enumerate(product(self._kv_types(), limits)):
                try:
                    if found := self._search(kv_type, within):
                        return found
                except EngineError:
                    # A quantized KV cache needs heads of a multiple of 32; f16 always works.
                    if index == 0:
                        raise
            if self._may_stream and (found := self._search_streaming(limits[0])):
                return found
        smallest = self._smallest()
        return replace(
            self._build(smallest, [smallest], self._safe_limits), suggestions=self._suggestions(smallest)
        )

    # -- limits ----------------------------------------------------------------------------------

    @property
    def _limits(self) -> tuple[int, ...]:
        """The bytes that may be used, RAM's first."""
        return (self._ram_limit, *(one.limit_bytes for one in self._used))

    @property
    def _safe_limits(self) -> tuple[int, ...]:
        """What reality adds to a prediction must not break the budget."""
        return (self._ram_limit - _ROOM_FOR_ERROR, *(one.safe_bytes for one in self._used))

    def _leave_out_small_devices(self) -> None:
        """A device is opened for all or none of a model, so one without room for its compute buffers
        would keep the others from being used."""
        if not self._used:
            return
        base = self._oracle.ask(self._config(KV_TYPES[0], self._ubatches[-1], self._repack_modes()[0]))
        buffers = base.compute_bytes + base.scratch_bytes
        kept = []
        for one in self._used:
            if one.device.overhead_bytes + buffers < one.safe_bytes:
                kept.append(one)
            else:
                self._too_small.append(one.device.name)
        self._used = kept

    # -- the search ------------------------------------------------------------------------------

    def _search(self, kv_type: str, within: tuple[int, ...]) -> LlamaPlan | None:
        """With the largest ubatch that fits, or None."""
        sizes = self._ubatches
        # The largest mostly fits; where the smallest does not, none between them does.
        if not any(self._fitting(kv_type, size, within) for size in (sizes[0], sizes[-1])):
            return None
        fitting = next(found for size in sizes if (found := self._fitting(kv_type, size, within)))
        return self._build(self._fastest(fitting), fitting, within)

    def _search_streaming(self, within: tuple[int, ...]) -> LlamaPlan | None:
        """With a part of the weights on the disk, or None. Each ubatch of a prompt reads all of it once,
        so the largest is the best."""
        for kv_type, size in product(self._kv_types(), self._ubatches):
            config = self._config(kv_type, size, False)
            with contextlib.suppress(EngineError):
                if one := self._candidate(config, within, streams=True):
                    return self._build(one, [one], within)
        return None

    def _kv_types(self) -> tuple[str, ...]:
        return ("f16", "q8_0") if self._workload.kv_type == "auto" else (self._workload.kv_type,)

    def _fitting(self, kv_type: str, ubatch: int, within: tuple[int, ...]) -> list[_Candidate]:
        """One configuration with repacked and with plain weights, as far as both are asked for and fit."""
        found = [
            self._candidate(self._config(kv_type, ubatch, repack), within) for repack in self._repack_modes()
        ]
        if self._workload.parallel > 1 and self._workload.repack == "auto" and not self._used:
            found.append(self._dequantized(self._config(kv_type, ubatch, False), within))
        return [one for one in found if one is not None]

    def _dequantized(self, config: LlamaConfig, within: tuple[int, ...]) -> _Candidate | None:
        """With as many matrices as memory has room for held as BF16, which many tokens at once multiply
        faster; None where that gains nothing."""
        own = replace(config, load_mode="own")
        (ram,) = self._tiers(own, self._oracle.ask(resident(own)))
        room = within[RAM] - (ram.total_bytes - ram.weights_bytes)
        for _ in range(_ATTEMPTS):
            larger = dequantize(self._spec, own, self._speeds(False)[RAM], self._workload, room)
            if larger is None:
                return None
            one = self._evaluate(larger)
            if one.fits(within):
                return one
            room -= one.tiers[RAM].needs_bytes - within[RAM]  # its kernels' work buffer is another
        return None

    def _repack_modes(self) -> tuple[bool, ...]:
        """Repacked, plain or both. With devices only what is faster in RAM: each mode is a placement."""
        modes = repack_modes(self._workload)
        if len(modes) == 1 or not self._used:
            return modes
        if self._ram_speeds is None:
            return (True,)
        both = [self._evaluate(self._config("f16", self._ubatches[-1], repack)) for repack in modes]
        return (self._fastest(both).config.repack,)

    def _fastest(self, options: Sequence[_Candidate]) -> _Candidate:
        if self._ram_speeds is None:
            return max(options, key=lambda one: one.config.repack)  # llama.cpp's default
        best = min(options, key=lambda one: one.seconds)
        plain = [one for one in options if not one.config.repack and not one.config.dequantized]
        if plain and plain[0].seconds <= best.seconds * (1 + _NEGLIGIBLE_GAIN):
            return plain[0]
        return best

    def _smallest(self) -> _Candidate:
        """The configuration that leaves fewest bytes in RAM for what was asked."""
        options: list[_Candidate] = []
        modes = (False,) if self._may_stream else self._repack_modes()
        for kv_type, repack in product(self._kv_types(), modes):
            config = self._config(kv_type, self._ubatches[-1], repack)
            with contextlib.suppress(EngineError):
                if self._used:
                    config = self._least_ram(config, self._safe_limits)
                if self._may_stream:
                    config = stream_out(self._spec, config, None) or config
                options.append(self._evaluate(config))
        return min(options, key=lambda one: one.tiers[RAM].needs_bytes)

    # -- one configuration -----------------------------------------------------------------------

    def _config(self, kv_type: str, ubatch: int, repack: bool) -> LlamaConfig:
        """With everything in RAM."""
        return LlamaConfig(
            paths=self._spec.paths,
            context=self._context,
            parallel=self._workload.parallel,
            kv_type=kv_type,
            ubatch=ubatch,
            threads=thread_count(self._machine, self._workload),
            repack=repack,
            # Rewritten weights are copies, so mapping the file as well would hold both.
            load_mode="read" if repack else "mmap",
            kv_unified=self._workload.kv_unified,
            grammar_bytes=grammar_bytes(self._workload.parallel) if self._workload.grammars else 0,
        )

    def _alone(self, config: LlamaConfig) -> LlamaConfig:
        """The same without devices or disk."""
        return self._config(config.kv_type, config.ubatch, config.repack)

    def _candidate(
        self, config: LlamaConfig, within: tuple[int, ...], *, streams: bool = False
    ) -> _Candidate | None:
        """A configuration with its tensors placed, a part of them on the disk if it `streams`; None where it
        does not fit. `config` have everything in RAM."""
        key = (config, within, streams)
        if key not in self._candidates:
            placed: LlamaConfig | None = config
            if streams:
                placed = self._streaming(config, within)
            elif self._used:
                base = self._oracle.ask(config)
                placed = self._offloader(config.repack, within).place(config, base)
            one = placed and self._evaluate(placed)
            self._candidates[key] = one if one and one.fits(within) else None
        return self._candidates[key]

    def _streaming(self, config: LlamaConfig, within: tuple[int, ...]) -> LlamaConfig | None:
        placed = self._least_ram(config, within) if self._used else config
        own = replace(placed, load_mode="own")
        (ram, *_) = self._tiers(own, self._oracle.ask(resident(own)))
        return stream_out(self._spec, own, within[RAM] - (ram.total_bytes - ram.weights_bytes))

    def _least_ram(self, config: LlamaConfig, within: Sequence[int]) -> LlamaConfig:
        """As much on the devices as they really hold: what else a placement needs, only the oracle knows."""
        answer, limits = self._oracle.ask(config), list(within)
        for _ in range(_ATTEMPTS):
            placed = self._offloader(config.repack, limits).least_ram(config, answer)
            tiers = self._tiers(placed, self._oracle.ask(resident(placed)))
            over = [max(0, tier.needs_bytes - most) for tier, most in zip(tiers, within, strict=True)]
            if not any(over[1:]):
                break
            limits = [limits[RAM], *(limit - more for limit, more in zip(limits[1:], over[1:], strict=True))]
        return placed

    def _offloader(self, repack: bool, within: Sequence[int]) -> Offloader:
        return Offloader(
            self._spec,
            self._workload,
            [one.device for one in self._used],
            within,
            [one.limit_bytes * self._is_asked_for(one.device) for one in self._used],
            self._speeds(repack),
            lambda placed: self._tiers(placed, self._oracle.ask(resident(placed))),
            self._solver,
        )

    def _is_asked_for(self, device: Device) -> bool:
        return self._budget.vram is not None or device.name in self._budget.rpc

    def _evaluate(self, config: LlamaConfig) -> _Candidate:
        answer = self._oracle.ask(resident(config))
        workload = self._workload
        prediction = predict(
            answer,
            self._speeds(config.repack),
            prompt_tokens=min(workload.prompt_tokens, answer.context),
            generated_tokens=workload.generated_tokens,
            depth=workload.depth,
            sequences=workload.parallel,
            expert_share=self._spec.expert_share,
        )
        if read := streamed_bytes(self._spec.tensors, config.streamed):
            tokens = min(workload.prompt_tokens, answer.context)
            prediction = slowed(
                prediction,
                read,
                len(config.streamed),
                self._disk_speed(),
                tokens,
                config.ubatch,
                workload.parallel,
            )
        return _Candidate(
            config=config,
            answer=answer,
            tiers=self._tiers(config, answer),
            prediction=prediction,
            seconds=workload.prompt_tokens / prediction.prompt.value
            + workload.generated_tokens / prediction.together.value,
        )

    def _speeds(self, repack: bool) -> list[DeviceSpeed]:
        ram = self._ram_speeds[repack] if self._ram_speeds else ASSUMED
        return [ram, *(one.speed for one in self._used)]

    def _tiers(self, config: LlamaConfig, answer: MemoryEstimate) -> tuple[TierUse, ...]:
        budgets = [self._ram_budget, *(one.budget_bytes for one in self._used)]
        devices = [one.device for one in self._used]
        return tuple(tiers_of(self._spec, config, answer, devices, budgets, self._limits))

    # -- the plan --------------------------------------------------------------------------------

    def _build(self, chosen: _Candidate, options: Sequence[_Candidate], within: Sequence[int]) -> LlamaPlan:
        """`options` are what it was chosen from: they differ in how weights are held, and fit `within`."""
        plan = LlamaPlan(
            spec=self._spec,
            config=chosen.config,
            context=chosen.answer.context,
            tiers=chosen.tiers,
            prediction=chosen.prediction,
            why=(),
            workload=self._workload,
        )
        others = [one for one in options if one.config.repack != chosen.config.repack]
        alone = self._evaluate(self._alone(chosen.config)) if chosen.config.devices else chosen
        why = reasons(
            plan,
            self._budget,
            free_bytes=self._machine.ram.available_bytes,
            largest_ubatch=self._ubatches[0],
            measured=self._ram_speeds is not None,
            other=others[0].prediction if others else None,
            alone=alone.prediction if alone.fits(within) and alone.seconds < chosen.seconds else None,
            too_small=self._too_small,
        )
        return replace(plan, why=tuple(why))

    def _suggestions(self, smallest: _Candidate) -> tuple[str, ...]:
        plain = ["--repack auto"] if self._could_stream() else []
        found = suggestions(
            self._alone(smallest.config),
            self._fits_in,
            needs_bytes=smallest.tiers[RAM].needs_bytes,
            room_bytes=_ROOM_FOR_ERROR,
            limit_bytes=self._ram_limit,
            free_bytes=self._machine.ram.available_bytes,
        )
        return (*plain, *found)

    def _could_stream(self) -> bool:
        """Whether only the wish for rewritten weights keeps a part of them from staying on the disk."""
        if self._may_stream or not self._budget.disk:
            return False
        for kv_type in self._kv_types():
            config = self._config(kv_type, self._ubatches[-1], False)
            with contextlib.suppress(EngineError):
                if self._candidate(config, self._safe_limits, streams=True):
                    return True
        return False

    def _fits_in(self, config: LlamaConfig, ram_limit: int) -> bool:
        """With the smallest ubatch that its context and sequences allow, and the room it needs."""
        within = (ram_limit - _ROOM_FOR_ERROR, *self._safe_limits[1:])
        ubatch = _ubatch_sizes(config.context, config.parallel)[-1]
        with contextlib.suppress(EngineError):
            one = replace(config, ubatch=ubatch)
            return self._candidate(one, within, streams=self._may_stream) is not None
        return False


def _ubatch_sizes(context: int, parallel: int) -> tuple[int, ...]:
    """Those worth trying, the largest first."""
    sizes = [size for size in _UBATCHES if size <= context] or [context]
    # Each sequence has at least a token in a ubatch.
    return tuple(dict.fromkeys(max(size, parallel) for size in sizes))
