"""Chooses how to run a model inside its budgets: placement, KV type, micro-batch, repacking, load mode.

In this order of worth: an f16 KV cache over q8_0 (it changes the answers), a large micro-batch over a
small one (prompt speed), and between repacked and plain weights whatever the measured kernels say is
faster for the workload. The first configuration that fits wins. Every byte comes from the oracle.
Where there are devices, offload.py places the tensors of each configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from memfit.errors import EngineError, UsageError
from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.memory.oracle import RAM, Answer, EngineParameters, Oracle
from memfit.planner.offload import Offloader, exceptions_of, sent_bytes, taken_over_bytes
from memfit.planner.placement import Placement, Problem, solve
from memfit.planner.plan import Plan, TierUse
from memfit.planner.request import KV_TYPES, RESERVE_BYTES, Budget, Workload
from memfit.planner.speed import ASSUMED, ASSUMED_DEVICE, DeviceSpeed, Prediction, predict
from memfit.units import MIB, format_bytes, format_rate

__all__ = ["make_plan", "repack_modes", "thread_count"]

_DEFAULT_CONTEXT = 4096
_CONTEXT_STEP = 256  # the engine rounds up to it
_MICRO_BATCHES = (512, 256, 128, 64, 32)
_SUGGESTED_STEP = 16 * MIB
_ROOM_FOR_ERROR = 4 * MIB  # predictions are within 2: benchmarks/memory.py
_DEVICE_ROOM = 3 * MIB // 2  # a worker cannot use the last of its budget: benchmarks/devices.py
_NEGLIGIBLE_GAIN = 0.02  # within the noise of measuring kernels


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    parameters: EngineParameters
    answer: Answer
    prediction: Prediction
    seconds: float  # for one request of the workload
    totals: tuple[int, ...]  # bytes held per place


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
) -> Plan:
    """The best plan that fits, or the smallest one there is with suggestions of what would fit.

    `speeds` are this CPU's with repacked and with plain weights; None where they could not be measured,
    as with a device's.

    Raises:
        UsageError: the budget is not a size.
        EngineError: the engine refuses the configuration that was asked for.
    """
    return _Planner(spec, machine, budget, workload, oracle, speeds, devices, solver).plan()


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
    ) -> None:
        self._spec = spec
        self._machine = machine
        self._workload = workload
        self._budget = budget
        self._oracle = oracle
        self._ram_speeds = speeds
        self._solver = solver
        budgets = [_device_budget(budget, device) for device, _ in devices]
        used = [index for index, size in enumerate(budgets) if size]
        self._devices = [devices[index][0] for index in used]
        self._device_speeds = [devices[index][1] or ASSUMED_DEVICE for index in used]
        self._budgets = [budget.ram_bytes(machine.ram), *(budgets[index] for index in used)]
        free = [machine.ram.available_bytes, *(device.free_bytes for device in self._devices)]
        self._limits = [min(pair) for pair in zip(self._budgets, free, strict=True)]
        self._leaves_room = True
        self._too_small: list[str] = []  # devices without room for anything but compute buffers
        self._candidates: dict[tuple[object, ...], _Candidate | None] = {}
        self._context = workload.context or min(_DEFAULT_CONTEXT, spec.context_length)

    def plan(self) -> Plan:
        self._leave_out_small_devices()
        for index, kv_type in enumerate(self._kv_types()):
            # What reality adds to a prediction must not break the budget; only a plan that would
            # otherwise not fit goes without that room.
            for self._leaves_room in (True, False):
                try:
                    if found := self._search(kv_type):
                        return found
                except EngineError:
                    # A quantized KV cache needs heads of a multiple of 32; f16 always works.
                    if index == 0:
                        raise
        self._leaves_room = True  # suggestions must hold in reality too
        chosen = self._smallest()
        return replace(self._build(chosen, [chosen]), suggestions=tuple(self._suggestions(chosen)))

    def _leave_out_small_devices(self) -> None:
        """A device is opened for all or none of a model, so one without room for its compute buffers
        would keep the others from being used."""
        if not self._devices:
            return
        sizes = self._micro_batches(self._context, self._workload.parallel)
        parameters = self._parameters(
            KV_TYPES[0], self._context, self._workload.parallel, sizes[-1], self._modes()[0]
        )
        base = self._oracle.ask(parameters)
        needs = base.compute_bytes + base.scratch_bytes
        kept = [
            index
            for index, device in enumerate(self._devices)
            if device.overhead_bytes + needs + self._room(index + 1) < self._limits[index + 1]
        ]
        self._too_small = [one.name for one in self._devices if one not in [self._devices[i] for i in kept]]
        self._devices = [self._devices[index] for index in kept]
        self._device_speeds = [self._device_speeds[index] for index in kept]
        self._budgets = [self._budgets[RAM], *(self._budgets[index + 1] for index in kept)]
        self._limits = [self._limits[RAM], *(self._limits[index + 1] for index in kept)]

    def _smallest(self) -> _Candidate:
        """The configuration that leaves fewest bytes in RAM for what was asked."""
        options: list[_Candidate] = []
        micro_batch = self._micro_batches(self._context, self._workload.parallel)[-1]
        for kv_type in self._kv_types():
            for repack in self._modes():
                parameters = self._parameters(
                    kv_type, self._context, self._workload.parallel, micro_batch, repack
                )
                with contextlib.suppress(EngineError):
                    if self._devices:
                        base = self._oracle.ask(parameters)
                        parameters = self._offloader(repack).least_ram(parameters, base)
                    options.append(self._evaluate(parameters))
        return min(options, key=lambda one: one.totals[RAM])

    def _search(self, kv_type: str) -> Plan | None:
        """The largest micro-batch that fits, or None."""
        sizes = self._micro_batches(self._context, self._workload.parallel)
        # The largest mostly fits; where the smallest does not, none between them does.
        for micro_batch in dict.fromkeys((sizes[0], sizes[-1])):
            if fitting := self._fitting(self._options(kv_type, micro_batch)):
                break
        else:
            return None
        for micro_batch in sizes:
            if fitting := self._fitting(self._options(kv_type, micro_batch)):
                break
        return self._build(self._fastest(fitting), fitting)

    def _kv_types(self) -> tuple[str, ...]:
        return ("f16", "q8_0") if self._workload.kv_type == "auto" else (self._workload.kv_type,)

    def _options(self, kv_type: str, micro_batch: int) -> list[_Candidate]:
        """One configuration with repacked and with plain weights, as far as both are asked for."""
        found = [
            self._candidate(
                self._parameters(kv_type, self._context, self._workload.parallel, micro_batch, repack)
            )
            for repack in self._modes()
        ]
        return [one for one in found if one is not None]

    def _modes(self) -> tuple[bool, ...]:
        """Repacked, plain or both. With devices only what is faster in RAM: each mode is a placement."""
        modes = repack_modes(self._workload)
        if len(modes) == 1 or not self._devices:
            return modes
        if self._ram_speeds is None:
            return (True,)
        smallest = self._micro_batches(self._context, self._workload.parallel)[-1]
        both = [
            self._evaluate(self._parameters("f16", self._context, self._workload.parallel, smallest, repack))
            for repack in modes
        ]
        return (self._fastest(both).parameters.repack,)

    @staticmethod
    def _micro_batches(context: int, parallel: int) -> tuple[int, ...]:
        sizes = [size for size in _MICRO_BATCHES if size <= context] or [context]
        # Each sequence has at least a token in a micro-batch.
        return tuple(dict.fromkeys(max(size, parallel) for size in sizes))

    def _parameters(
        self, kv_type: str, context: int, parallel: int, micro_batch: int, repack: bool
    ) -> EngineParameters:
        """With everything in RAM."""
        return EngineParameters(
            paths=self._spec.paths,
            context=context,
            parallel=parallel,
            kv_type=kv_type,
            micro_batch=micro_batch,
            threads=thread_count(self._machine, self._workload),
            repack=repack,
            # Rewritten weights are copies, so mapping the file as well would hold both.
            load_mode="read" if repack else "mmap",
        )

    def _candidate(self, parameters: EngineParameters) -> _Candidate | None:
        """A configuration with its tensors placed; None where no placement fits."""
        key = (parameters, self._leaves_room, *self._limits)
        if key not in self._candidates:
            placed: EngineParameters | None = parameters
            if self._devices:
                base = self._oracle.ask(parameters)
                placed = self._offloader(parameters.repack).place(parameters, base)
            self._candidates[key] = None if placed is None else self._evaluate(placed)
        return self._candidates[key]

    def _offloader(self, repack: bool) -> Offloader:
        limits = [limit - self._room(place) for place, limit in enumerate(self._limits)]
        asked = [one.name in self._budget.rpc or self._budget.vram is not None for one in self._devices]
        return Offloader(
            self._spec,
            self._workload,
            self._devices,
            limits,
            asked,
            self._speeds(repack),
            lambda placed: tuple(self._tiers(placed)),
            self._solver,
        )

    def _speeds(self, repack: bool) -> list[DeviceSpeed]:
        return [self._ram_speeds[repack] if self._ram_speeds else ASSUMED, *self._device_speeds]

    def _evaluate(self, parameters: EngineParameters) -> _Candidate:
        answer = self._oracle.ask(parameters)
        workload = self._workload
        prediction = predict(
            answer,
            self._speeds(parameters.repack),
            prompt_tokens=min(workload.prompt_tokens, answer.context),
            generated_tokens=workload.generated_tokens,
            depth=workload.depth,
        )
        return _Candidate(
            parameters=parameters,
            answer=answer,
            prediction=prediction,
            seconds=workload.prompt_tokens / prediction.prompt.value
            + workload.generated_tokens / prediction.generation.value,
            totals=tuple(self._totals(parameters)),
        )

    def _totals(self, parameters: EngineParameters) -> list[int]:
        """Bytes that must be had per place; of a device that is not opened, none."""
        return [tier.needs_bytes for tier in self._tiers(parameters)]

    def _tiers(self, parameters: EngineParameters) -> Iterator[TierUse]:
        answer = self._oracle.ask(parameters)
        sent = sent_bytes(self._spec, parameters)
        # A tensor for a remote device is read into memory, and copied once more to be sent; a local
        # GPU's pass through a few MiB.
        remote = [sizes[0] for place, sizes in sent.items() if self._devices[place - 1].is_remote]
        in_ram = 2 * max(remote, default=0)
        beside = answer.kv_cache_bytes + answer.compute_bytes + answer.scratch_bytes
        yield TierUse(
            name="ram",
            kind="ram",
            budget_bytes=self._budgets[RAM],
            limit_bytes=self._limits[RAM],
            weights_bytes=answer.weights_bytes,
            kv_cache_bytes=answer.kv_cache_bytes,
            compute_bytes=answer.compute_bytes + answer.scratch_bytes,
            # Loading ends before the KV cache and the compute buffers are made.
            overhead_bytes=answer.process_bytes + max(0, in_ram - beside),
        )
        for index, device in enumerate(self._devices):
            held = answer.devices[index] if answer.devices else None
            compute = held.compute_bytes + held.scratch_bytes if held else 0
            staging = reserved = 0
            if held and device.imagined:  # its stand-in does not take over prompts
                compute += taken_over_bytes(self._spec, parameters)
            elif held and device.lends:
                sizes = sent.get(index + 1, [0])
                staging = max(0, _receiving(sizes) - held.kv_cache_bytes - compute)
                reserved = device.overhead_bytes + sum(sizes) + sizes[0]
            yield TierUse(
                name=device.name,
                kind="vram",
                budget_bytes=self._budgets[index + 1],
                limit_bytes=self._limits[index + 1],
                weights_bytes=held.weights_bytes if held else 0,
                kv_cache_bytes=held.kv_cache_bytes if held else 0,
                compute_bytes=compute,
                overhead_bytes=device.overhead_bytes + staging if held else 0,
                reserved_bytes=reserved,
            )

    def _room(self, place: int) -> int:
        if not self._leaves_room:
            return 0
        return _DEVICE_ROOM if place else _ROOM_FOR_ERROR

    def _fitting(self, options: list[_Candidate]) -> list[_Candidate]:
        return [one for one in options if self._fits(one)]

    def _fits(self, one: _Candidate) -> bool:
        return all(
            total + self._room(place) <= limit
            for place, (total, limit) in enumerate(zip(one.totals, self._limits, strict=True))
        )

    def _fastest(self, options: list[_Candidate]) -> _Candidate:
        if self._ram_speeds is None:
            return max(options, key=lambda one: one.parameters.repack)  # llama.cpp's default
        best = min(options, key=lambda one: one.seconds)
        plain = [one for one in options if not one.parameters.repack]
        if plain and plain[0].seconds <= best.seconds * (1 + _NEGLIGIBLE_GAIN):
            return plain[0]
        return best

    # -- the plan and its reasons ----------------------------------------------------------------

    def _build(self, chosen: _Candidate, options: list[_Candidate]) -> Plan:
        return Plan(
            spec=self._spec,
            parameters=chosen.parameters,
            context=chosen.answer.context,
            tiers=tuple(self._tiers(chosen.parameters)),
            prediction=chosen.prediction,
            why=tuple(self._reasons(chosen, options)),
            workload=self._workload,
        )

    def _reasons(self, chosen: _Candidate, options: list[_Candidate]) -> Iterator[str]:
        parameters, ram = chosen.parameters, self._machine.ram
        if self._budget.ram is None:
            yield (
                f"budget: {format_bytes(ram.available_bytes)} free "
                f"less {format_bytes(RESERVE_BYTES)} reserve; --ram sets it"
            )
        elif self._budgets[RAM] > ram.available_bytes:
            yield f"only {format_bytes(ram.available_bytes)} of the budget is free now"
        if self._workload.context is None:
            yield f"context {self._context}: the default; --ctx sets it"
        if self._context > self._spec.context_length:
            yield f"the model was trained for {self._spec.context_length} tokens; beyond that it degrades"
        if chosen.answer.context != self._context:
            yield f"context {self._context} becomes {chosen.answer.context}: the engine rounds up"
        if self._workload.kv_type == "auto" and chosen.totals[RAM] <= self._limits[RAM]:
            yield (
                "KV cache f16: it fits unquantized"
                if parameters.kv_type == "f16"
                else f"KV cache {parameters.kv_type}: f16 does not fit the budget"
            )
        yield self._repack_reason(chosen, options)
        yield {
            "mmap": "load mode mmap: the file's own pages, no copy",
            "read": "load mode read: tensor by tensor, so the file is not kept in memory",
        }[parameters.load_mode]
        yield from self._device_reasons(chosen)
        largest = self._micro_batches(self._context, parameters.parallel)[0]
        yield (
            f"micro-batch {parameters.micro_batch}: "
            + ("full speed on prompts" if parameters.micro_batch >= largest else "a larger one does not fit")
        )
        yield f"{parameters.threads} threads: " + (
            "as asked" if self._workload.threads else "one per physical core"
        )

    def _device_reasons(self, chosen: _Candidate) -> Iterator[str]:
        parameters = chosen.parameters
        for name in self._too_small:
            yield f"{name} is not used: its budget holds little more than compute buffers"
        for index, device in enumerate(self._devices):
            if not parameters.devices:
                yield f"{device.name} is not used: with it the model would be slower, and RAM suffices"
            else:
                yield f"{device.name}: home of {parameters.layers[index]} layers, with their KV cache"
        if parameters.devices:
            alone = self._evaluate(replace(parameters, devices=(), layers=(), overrides=()))
            if self._fits(alone) and alone.seconds < chosen.seconds:
                yield (
                    "devices are used because they were asked for: RAM alone would do, at "
                    f"{format_rate(alone.prediction.generation.value)} generation"
                )
        if not parameters.devices:
            return
        names = ["RAM", *(device.name for device in self._devices)]
        for (place, kind), layers in exceptions_of(self._spec, parameters).items():
            yield f"{kind} of {_ranges(layers)} in {names[place]}"

    def _repack_reason(self, chosen: _Candidate, options: list[_Candidate]) -> str:
        state = "on" if chosen.parameters.repack else "off"
        if self._workload.repack != "auto":
            return f"repack {state}: as asked"
        if self._ram_speeds is None:
            return f"repack {state}: llama.cpp's default; this machine is too busy to be measured"
        if self._devices:
            return f"repack {state}: what was measured faster for what lies in RAM"
        others = [one for one in options if one.parameters.repack != chosen.parameters.repack]
        if not others:
            return f"repack {state}: the other way does not fit"
        other = others[0]
        return (
            f"repack {state}: prompt {format_rate(chosen.prediction.prompt.value)} against "
            f"{format_rate(other.prediction.prompt.value)}, generation "
            f"{format_rate(chosen.prediction.generation.value)} against "
            f"{format_rate(other.prediction.generation.value)}, by this CPU's kernels"
        )

    # -- what to do when nothing fits ------------------------------------------------------------

    def _suggestions(self, smallest: _Candidate) -> Iterator[str]:
        """Changes that the oracle says do fit, one option each."""
        base = replace(smallest.parameters, devices=(), layers=(), overrides=())
        shorter = self._longest_context(base)
        if shorter:
            yield f"--ctx {shorter}"
        for kv_type in KV_TYPES[KV_TYPES.index(base.kv_type) + 1 :]:
            if self._fits_with(replace(base, kv_type=kv_type)):
                yield f"--kv-type {kv_type}"
                break
        if base.parallel > 1 and self._fits_with(replace(base, parallel=1)):
            yield "--parallel 1"
        enough = self._enough_ram(smallest)
        if enough:
            yield f"--ram {enough // MIB}MiB"
        elif not shorter:
            yield "a smaller quantization of this model"

    def _enough_ram(self, smallest: _Candidate) -> int | None:
        """A RAM budget, in whole MiB, that is free and that the smallest configuration fits; None if none."""
        room = self._machine.ram.available_bytes // MIB * MIB
        parameters = replace(smallest.parameters, devices=(), layers=(), overrides=())
        limit = self._limits[RAM]
        try:
            for spare in (0.0, 0.02, 0.1, 0.3):
                least = int(smallest.totals[RAM] * (1 + spare)) + _ROOM_FOR_ERROR
                enough = min(-(-least // _SUGGESTED_STEP) * _SUGGESTED_STEP, room)
                self._limits[RAM] = enough
                if enough >= least and self._fits_with(parameters):
                    return enough
        finally:
            self._limits[RAM] = limit
        return None

    def _longest_context(self, base: EngineParameters) -> int | None:
        """The largest multiple of 256 below the context that fits, or None; memory grows with it."""
        low, high = 0, (base.context - 1) // _CONTEXT_STEP
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits_with(replace(base, context=middle * _CONTEXT_STEP)):
                low = middle
            else:
                high = middle - 1
        return low * _CONTEXT_STEP or None

    def _fits_with(self, parameters: EngineParameters) -> bool:
        # The smallest micro-batch that the changed context and sequences allow.
        sizes = self._micro_batches(parameters.context, parameters.parallel)
        with contextlib.suppress(EngineError):
            one = self._candidate(replace(parameters, micro_batch=sizes[-1]))
            return one is not None and self._fits(one)
        return False


def _receiving(sizes: Sequence[int]) -> int:
    """What a worker holds at most beyond the tensors themselves, while it is sent them one by one."""
    most = before = 0
    for size in sizes:
        most = max(most, before + 2 * size)
        before += size
    return most - before


def _ranges(layers: Sequence[int]) -> str:
    """ "layers 3, 7-9"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return f"layer{'s' * (len(layers) > 1)} " + ", ".join("-".join(map(str, run)) for run in runs)


def _device_budget(budget: Budget, device: Device) -> int:
    """The cap on one device; 0 where it is not to be used.

    Raises:
        UsageError: not a size, or less than the device's own runtime takes.
    """
    if device.name in budget.rpc:
        size = budget.remote_bytes(device.name, device.free_bytes)
    else:
        size = budget.gpu_bytes(int(device.name.removeprefix("gpu")), device.free_bytes)
    if 0 < size <= device.overhead_bytes:
        raise UsageError(
            f"{device.name}: the budget is {format_bytes(size)}, and its runtime alone takes "
            f"{format_bytes(device.overhead_bytes)}"
        )
    return size
