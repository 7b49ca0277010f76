"""Chooses how to run a model inside a RAM budget: KV type, micro-batch, repacking and load mode.

In this order of worth: an f16 KV cache over q8_0 (it changes the answers), a large micro-batch over a
small one (prompt speed), and between repacked and plain weights whatever the measured kernels say is
faster for the workload. The first configuration that fits wins. Every byte comes from the oracle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from memfit.errors import EngineError
from memfit.hardware.machine import Machine
from memfit.headers.model_spec import ModelSpec
from memfit.memory.oracle import Answer, EngineParameters, Oracle
from memfit.planner.plan import Plan, TierUse
from memfit.planner.request import KV_TYPES, RESERVE_BYTES, Budget, Workload
from memfit.planner.speed import KernelSpeed, Prediction, predict
from memfit.units import MIB, format_bytes, format_rate

__all__ = ["make_plan", "repack_modes", "thread_count"]

_DEFAULT_CONTEXT = 4096
_CONTEXT_STEP = 256  # the engine rounds up to it
_MICRO_BATCHES = (512, 256, 128, 64, 32)
_SUGGESTED_STEP = 16 * MIB
_ROOM_FOR_ERROR = 4 * MIB  # predictions are within 2: benchmarks/memory.py
_NEGLIGIBLE_GAIN = 0.02  # within the noise of measuring kernels


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    parameters: EngineParameters
    answer: Answer
    prediction: Prediction
    seconds: float  # for one request of the workload


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
    speeds: Mapping[bool, Mapping[str, KernelSpeed]] | None,
) -> Plan:
    """The best plan that fits, or the smallest one there is with suggestions of what would fit.

    `speeds` holds measured kernels by type, for repacked and plain weights; None where this machine
    could not be measured.

    Raises:
        UsageError: the budget is not a size.
        EngineError: the engine refuses the configuration that was asked for.
    """
    return _Planner(spec, machine, budget, workload, oracle, speeds).plan()


class _Planner:
    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        budget: Budget,
        workload: Workload,
        oracle: Oracle,
        speeds: Mapping[bool, Mapping[str, KernelSpeed]] | None,
    ) -> None:
        self._spec = spec
        self._machine = machine
        self._workload = workload
        self._budget = budget
        self._oracle = oracle
        self._speeds = speeds
        self._budget_bytes = budget.ram_bytes(machine.ram)
        self._limit_bytes = min(self._budget_bytes, machine.ram.available_bytes)
        self._room_bytes = 0
        self._context = workload.context or min(_DEFAULT_CONTEXT, spec.context_length)

    def plan(self) -> Plan:
        for index, kv_type in enumerate(self._kv_types()):
            # What reality adds to a prediction must not break the budget; only a plan that would
            # otherwise not fit goes without that room.
            for self._room_bytes in (_ROOM_FOR_ERROR, 0):
                try:
                    if found := self._search(kv_type):
                        return found
                except EngineError:
                    # A quantized KV cache needs heads of a multiple of 32; f16 always works.
                    if index == 0:
                        raise
        self._room_bytes = _ROOM_FOR_ERROR  # suggestions must hold in reality too
        chosen = self._smallest()
        return replace(self._build(chosen, [chosen]), suggestions=tuple(self._suggestions(chosen)))

    def _smallest(self) -> _Candidate:
        """The configuration of fewest bytes for what was asked."""
        options: list[_Candidate] = []
        for kv_type in self._kv_types():
            with contextlib.suppress(EngineError):
                sizes = self._micro_batches(self._context, self._workload.parallel)
                options += self._options(kv_type, sizes[-1])
        return min(options, key=lambda one: one.answer.total_bytes)

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
        return [
            self._candidate(kv_type, self._context, self._workload.parallel, micro_batch, repack)
            for repack in repack_modes(self._workload)
        ]

    @staticmethod
    def _micro_batches(context: int, parallel: int) -> tuple[int, ...]:
        sizes = [size for size in _MICRO_BATCHES if size <= context] or [context]
        # Each sequence has at least a token in a micro-batch.
        return tuple(dict.fromkeys(max(size, parallel) for size in sizes))

    def _candidate(
        self, kv_type: str, context: int, parallel: int, micro_batch: int, repack: bool
    ) -> _Candidate:
        parameters = EngineParameters(
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
        answer = self._oracle.ask(parameters)
        workload = self._workload
        prediction = predict(
            self._spec,
            self._speeds[repack] if self._speeds else None,
            nodes=answer.nodes,
            kv_bytes_per_token=answer.kv_cache_bytes / answer.context,
            prompt_tokens=min(workload.prompt_tokens, answer.context),
            generated_tokens=workload.generated_tokens,
        )
        seconds = (
            workload.prompt_tokens / prediction.prompt.value
            + workload.generated_tokens / prediction.generation.value
        )
        return _Candidate(parameters=parameters, answer=answer, prediction=prediction, seconds=seconds)

    def _fits(self, answer: Answer) -> bool:
        return answer.total_bytes + self._room_bytes <= self._limit_bytes

    def _fitting(self, options: list[_Candidate]) -> list[_Candidate]:
        return [one for one in options if self._fits(one.answer)]

    def _fastest(self, options: list[_Candidate]) -> _Candidate:
        if self._speeds is None:
            return max(options, key=lambda one: one.parameters.repack)  # llama.cpp's default
        best = min(options, key=lambda one: one.seconds)
        plain = [one for one in options if not one.parameters.repack]
        if plain and plain[0].seconds <= best.seconds * (1 + _NEGLIGIBLE_GAIN):
            return plain[0]
        return best

    # -- the plan and its reasons ----------------------------------------------------------------

    def _build(self, chosen: _Candidate, options: list[_Candidate]) -> Plan:
        answer = chosen.answer
        tier = TierUse(
            name="ram",
            kind="ram",
            budget_bytes=self._budget_bytes,
            weights_bytes=answer.weights_bytes,
            kv_cache_bytes=answer.kv_cache_bytes,
            compute_bytes=answer.compute_bytes + answer.scratch_bytes,
            overhead_bytes=answer.process_bytes,
        )
        return Plan(
            spec=self._spec,
            parameters=chosen.parameters,
            context=answer.context,
            tiers=(tier,),
            prediction=chosen.prediction,
            why=tuple(self._reasons(chosen, options)),
            limit_bytes=self._limit_bytes,
        )

    def _reasons(self, chosen: _Candidate, options: list[_Candidate]) -> Iterator[str]:
        parameters, ram = chosen.parameters, self._machine.ram
        if self._budget.ram is None:
            yield (
                f"budget: {format_bytes(ram.available_bytes)} free "
                f"less {format_bytes(RESERVE_BYTES)} reserve; --ram sets it"
            )
        elif self._budget_bytes > ram.available_bytes:
            yield f"only {format_bytes(ram.available_bytes)} of the budget is free now"
        if self._workload.context is None:
            yield f"context {self._context}: the default; --ctx sets it"
        if self._context > self._spec.context_length:
            yield f"the model was trained for {self._spec.context_length} tokens; beyond that it degrades"
        if chosen.answer.context != self._context:
            yield f"context {self._context} becomes {chosen.answer.context}: the engine rounds up"
        if self._workload.kv_type == "auto" and chosen.answer.total_bytes <= self._limit_bytes:
            yield (
                "KV cache f16: it fits unquantized"
                if parameters.kv_type == "f16"
                else f"KV cache {parameters.kv_type}: f16 does not fit the budget"
            )
        yield self._repack_reason(chosen, options)
        yield {
            "mmap": "load mode mmap: the file's own pages, no copy",
            "read": "load mode read: repacked weights are copies, so the file is not kept in memory",
        }[parameters.load_mode]
        largest = self._micro_batches(self._context, parameters.parallel)[0]
        yield (
            f"micro-batch {parameters.micro_batch}: "
            + ("full speed on prompts" if parameters.micro_batch >= largest else "a larger one does not fit")
        )
        yield f"{parameters.threads} threads: " + (
            "as asked" if self._workload.threads else "one per physical core"
        )

    def _repack_reason(self, chosen: _Candidate, options: list[_Candidate]) -> str:
        state = "on" if chosen.parameters.repack else "off"
        if self._workload.repack != "auto":
            return f"repack {state}: as asked"
        others = [one for one in options if one.parameters.repack != chosen.parameters.repack]
        if not others:
            return f"repack {state}: the other way does not fit"
        if self._speeds is None:
            return f"repack {state}: llama.cpp's default; this machine is too busy to be measured"
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
        base = smallest.parameters
        shorter = self._longest_context(base)
        if shorter:
            yield f"--ctx {shorter}"
        for kv_type in KV_TYPES[KV_TYPES.index(base.kv_type) + 1 :]:
            if self._fits_with(replace(base, kv_type=kv_type)):
                yield f"--kv-type {kv_type}"
                break
        if base.parallel > 1 and self._fits_with(replace(base, parallel=1)):
            yield "--parallel 1"
        room = self._machine.ram.available_bytes
        least = smallest.answer.total_bytes + _ROOM_FOR_ERROR
        enough = min(-(-least // _SUGGESTED_STEP) * _SUGGESTED_STEP, room - room % MIB)
        if enough >= least:
            yield f"--ram {enough // MIB}MiB"
        elif not shorter:
            yield "a smaller quantization of this model"

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
            return self._fits(self._oracle.ask(replace(parameters, micro_batch=sizes[-1])))
        return False
