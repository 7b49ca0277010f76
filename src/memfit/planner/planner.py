"""Chooses how to run a model inside a RAM budget: KV type, micro-batch, repacking and load mode.

In this order of worth: an f16 KV cache over q8_0 (it changes the answers), a large micro-batch over a
small one (prompt speed), and between repacked and plain weights whatever the measured kernels say is
faster for the workload. The first configuration that fits wins. Every byte comes from the oracle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from memfit.errors import EngineError
from memfit.hardware.machine import Machine
from memfit.headers.model_spec import ModelSpec
from memfit.memory.oracle import Answer, EngineParameters, Oracle
from memfit.planner.plan import Plan, TierUse
from memfit.planner.request import RESERVE_BYTES, Budget, Workload
from memfit.planner.speed import KernelSpeed, Prediction, predict
from memfit.units import MIB, format_bytes, format_rate

__all__ = ["make_plan", "repack_modes", "thread_count"]

_DEFAULT_CONTEXT = 4096
_CONTEXT_STEP = 256  # the engine rounds up to it
_MICRO_BATCHES = (512, 256, 128, 64, 32)
_SUGGESTED_STEP = 16 * MIB
_ROOM_FOR_ERROR = 4 * MIB  # a suggested budget must hold in reality too: benchmarks/memory.py
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
        self._context = workload.context or min(_DEFAULT_CONTEXT, spec.context_length)

    def plan(self) -> Plan:
        smallest: _Candidate | None = None
        for options in self._groups(self._workload.kv_type, self._context, self._workload.parallel):
            fitting = [one for one in options if self._fits(one.answer)]
            if fitting:
                return self._build(self._fastest(fitting), fitting)
            smallest = min(
                [*options, *([smallest] if smallest else [])],
                key=lambda one: one.answer.total_bytes,
            )
        assert smallest is not None, "at least one configuration was asked for"
        return replace(self._build(smallest, [smallest]), suggestions=tuple(self._suggestions(smallest)))

    def _groups(self, kv_type: str, context: int, parallel: int) -> Iterator[list[_Candidate]]:
        """Configurations in falling order of worth; those of one group differ in repacking only."""
        kv_types = ("f16", "q8_0") if kv_type == "auto" else (kv_type,)
        for index, kv in enumerate(kv_types):
            for micro_batch in self._micro_batches(context, parallel):
                try:
                    yield [
                        self._candidate(kv, context, parallel, micro_batch, repack)
                        for repack in repack_modes(self._workload)
                    ]
                except EngineError:
                    # A quantized KV cache needs heads of a multiple of 32; f16 always works.
                    if index == 0:
                        raise
                    break

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
        return answer.total_bytes <= self._limit_bytes

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
        if self._workload.kv_type == "auto" and self._fits(chosen.answer):
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
        kv_type, context, parallel = self._workload.kv_type, self._context, self._workload.parallel
        tries: list[tuple[str, Callable[[], bool]]] = []
        if kv_type not in ("auto", "q8_0", "q4_0"):
            tries.append(("--kv-type q8_0", lambda: self._fits_with("q8_0", context, parallel)))
        if kv_type != "q4_0":
            tries.append(("--kv-type q4_0", lambda: self._fits_with("q4_0", context, parallel)))
        shorter = self._longest_context(kv_type, context, parallel)
        if shorter:
            yield f"--ctx {shorter}"
        for text, works in tries:
            if works():
                yield text
                break
        if parallel > 1 and self._fits_with(kv_type, context, 1):
            yield "--parallel 1"
        room = self._machine.ram.available_bytes
        least = smallest.answer.total_bytes + _ROOM_FOR_ERROR
        enough = min(-(-least // _SUGGESTED_STEP) * _SUGGESTED_STEP, room - room % MIB)
        if enough >= least:
            yield f"--ram {enough // MIB}MiB"
        elif not shorter:
            yield "a smaller quantization of this model"

    def _longest_context(self, kv_type: str, context: int, parallel: int) -> int | None:
        """The largest multiple of 256 below `context` that fits, or None; memory grows with it."""
        low, high = 0, (context - 1) // _CONTEXT_STEP
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits_with(kv_type, middle * _CONTEXT_STEP, parallel):
                low = middle
            else:
                high = middle - 1
        return low * _CONTEXT_STEP or None

    def _fits_with(self, kv_type: str, context: int, parallel: int) -> bool:
        with contextlib.suppress(EngineError):
            for options in self._groups(kv_type, context, parallel):
                if any(self._fits(one.answer) for one in options):
                    return True
        return False
