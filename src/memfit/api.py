"""The Python interface: `plan` and `load`. The command line is a thin user of the same two."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, overload

from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.llamacpp.calibrate import Calibration
from memfit.engines.llamacpp.lookup import dummy_devices, find_devices
from memfit.engines.llamacpp.oracle import LlamaOracle, small_config
from memfit.engines.llamacpp.session import LlamaSession
from memfit.engines.protocol import Request
from memfit.engines.worker_session import WorkerSession
from memfit.errors import EngineError, WrongValueError
from memfit.hardware import probe
from memfit.hardware.disk_speed import measure_file
from memfit.hardware.machine import Machine
from memfit.hardware.profile import read_profile
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_writes
from memfit.hub.header_only import is_header_only
from memfit.hub.resolve import find_model, is_checkpoint
from memfit.memory.streaming import DEQUANTIZED
from memfit.planner.defaults import ASSUMED_DISK, thread_count
from memfit.planner.llamacpp.inputs import PlanInputs, repack_modes
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.parallel import Lengths, plan_parallel
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.profile_speed import profile_speeds
from memfit.planner.llamacpp.solver_process import SolverProcess
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import DeviceSpeed, needed_rates
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.saved_plan import require_this_machine

__all__ = ["ENGINES", "load", "plan", "plan_batch"]

ENGINES = ("auto", "llamacpp", "transformers")


def plan(
    model: str,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    machine: str | None = None,
    engine: str = "auto",
    load_in: str | None = None,
    double_quant: bool = False,
    trust_remote_code: bool = False,
    count_parent: bool = False,
    say: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> Plan:
    """Plan a model for this machine; loads no weights.

    `model` is a path to a GGUF file or to a checkpoint's directory, "demo", or a name such as
    "hf:org/repo:Q4_K_M" or "https://…/file.gguf": of a model that is not here only the header is read.
    `count_parent` counts the calling process as memfit's own, as the command line does. `machine` names a
    profile, or its JSON file, of a machine that is not this one; such a plan cannot be loaded. `say` hears of
    one-time measurements. `engine` "auto" takes transformers for a checkpoint, and llama.cpp for GGUF, which
    "transformers" dequantizes. For transformers only: `load_in` one of memory.precision.LOAD_IN, None for
    the type that is stored, or "bf16" for GGUF;
    `double_quant` with "nf4" and "fp4"; `trust_remote_code` runs the model's own program, which may do
    anything. The plan may not fit: see `Plan.fits`.

    Raises:
        ModelError: the model is missing or cannot be read.
        UsageError: a budget, workload or precision that makes no sense.
        EngineError: the engine is missing or refuses the configuration.
    """
    if engine not in ENGINES:
        raise WrongValueError("engine", f" is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if engine == "transformers" or (engine == "auto" and is_checkpoint(model, say)):
        if machine:
            raise WrongValueError("machine", ": checkpoints are planned for this machine only")
        if budget and budget.rpc:
            raise WrongValueError("rpc", ": transformers uses GPUs of this machine only")
        _require_devices(budget or Budget(), probe(), imagined=False)
        from memfit.engines.transformers.planning import plan_for_transformers

        return plan_for_transformers(
            model,
            budget=budget or Budget(),
            workload=workload or Workload(),
            load_in=load_in,
            double_quant=double_quant,
            trust_remote_code=trust_remote_code,
            count_parent=count_parent,
            say=say or _say_nothing,
        )
    if load_in or double_quant or trust_remote_code:
        raise WrongValueError(
            "load_in",
            ", --double-quant and --trust-remote-code are for transformers; with --engine "
            "transformers it dequantizes a GGUF file",
        )
    workload = workload or Workload()
    many = workload.parallel > 1
    with _planning(model, budget, workload, machine, count_parent, say, verbose, parallel=many) as one:
        return one.make(workload)


def plan_batch(
    model: str,
    sample: Sequence[Request],
    lengths: Callable[[Sequence[int | None]], Lengths],
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    sequences: int | None = None,
    count_parent: bool = False,
    say: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> LlamaPlan:
    """Plan a job of many requests: how many run side by side, and in how large a context.

    `lengths` makes of the tokens of a sample's prompts, None for such as are none, those of the whole job.
    `sequences` is how many run side by side, whatever `workload` says; None for what pays off. A request that
    is longer than what the model was trained for is left to fail alone. Everything else as in `plan`.
    """
    workload = workload or Workload()
    with _planning(model, budget, workload, None, count_parent, say, verbose, parallel=True) as one:
        found = lengths(one.oracle.count_tokens(sample))
        found = replace(found, longest=min(found.longest, one.spec.context_length))
        return plan_parallel(found, workload, one.make, sequences)


@dataclass(frozen=True, kw_only=True)
class _Planning:
    """One model, asked about as often as is wanted."""

    spec: ModelSpec
    oracle: LlamaOracle
    make: Callable[[Workload], LlamaPlan]


@contextmanager
def _planning(
    model: str,
    budget: Budget | None,
    workload: Workload | None,
    machine: str | None,
    count_parent: bool,
    say: Callable[[str], None] | None,
    verbose: bool,
    *,
    parallel: bool,
) -> Iterator[_Planning]:
    """What makes plans of a model, for workloads with the same threads and repacking as `workload`."""
    if sys.platform != "linux":
        raise EngineError(
            f"memfit measures memory through Linux' /proc, and this is {sys.platform}; try WSL2"
        )
    budget, workload = budget or Budget(), workload or Workload()
    spec = find_model(model, say)
    require_writes(spec)
    profile = read_profile(machine) if machine else None
    here = profile.to_machine() if profile else probe()
    _require_devices(budget, here, imagined=profile is not None)
    threads = thread_count(here, workload)
    calibration = Calibration(cpu_model=probe().cpu.model, say=say or _say_nothing)
    devices = dummy_devices(profile) if profile else find_devices(here, budget, calibration)
    baseline = calibration.baseline(count_parent=count_parent)
    grammar = calibration.grammar(spec) if workload.grammars else None
    modes = repack_modes(workload)
    with (
        LlamaOracle(spec, baseline, repack_modes=modes, grammar=grammar, verbose=verbose) as oracle,
        SolverProcess() as solver,
    ):
        if profile:
            ram_speed, imagined = profile_speeds(profile)
            device_speeds: list[DeviceSpeed | None] = [*imagined]
            speeds: Mapping[bool, DeviceSpeed] | None = dict.fromkeys(modes, ram_speed)
        else:
            small = oracle.ask(small_config(spec, modes[0]))
            may_dequantize = parallel and workload.repack == "auto" and not devices
            types, attention = needed_rates(small, instead=DEQUANTIZED if may_dequantize else None)
            speeds = calibration.ram_speeds(types, attention, repack_modes=modes, threads=threads)
            device_speeds = [
                calibration.device_speed(device.engine_name, types, attention) for device in devices
            ]
        lent = tuple(zip(devices, device_speeds, strict=True))

        @functools.cache
        def disk_speed() -> tuple[float, float]:
            if profile or is_header_only(spec.paths[0]):
                return ASSUMED_DISK
            return measure_file(max(spec.paths, key=lambda path: path.stat().st_size))

        def make(wanted: Workload) -> LlamaPlan:
            inputs = PlanInputs(
                spec=spec,
                machine=here,
                budget=budget,
                workload=wanted,
                speeds=speeds,
                devices=lent,
                disk_speed=disk_speed,
            )
            planned = make_plan(inputs, oracle, solver.solve)
            used = [device for device in devices if device.engine_name in planned.config.devices]
            fingerprint = take_fingerprint(
                spec,
                here,
                used,
                engine=f"llamacpp {calibration.engine_build}".strip(),
                profile=profile.name if profile else None,
                counts_parent=count_parent,
            )
            stated = (f"machine {profile.name}: {profile.origin}",) if profile else ()
            return replace(planned, fingerprint=fingerprint, why=(*stated, *planned.why))

        yield _Planning(spec=spec, oracle=oracle, make=make)


@overload
def load(
    model: LlamaPlan,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    hard_cap: bool = False,
    on_progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> LlamaSession: ...


@overload
def load(
    model: str | Plan,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    hard_cap: bool = False,
    on_progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> WorkerSession: ...


def load(
    model: str | Plan,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    hard_cap: bool = False,
    on_progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> WorkerSession:
    """Load a model, or a plan made before, inside its budget.

    A plan that was saved as JSON is read by `memfit.saved_plan.read_plan`. With `hard_cap` the kernel keeps
    the budget, by a memory cgroup around the worker, and around this process where `count_parent` counts it.

    Raises:
        DoesNotFitError: the budget is too small; the error says by how much and what to try.
        MemfitError: as `plan` does; EngineError where loading fails; UsageError: it is for another machine,
                or no hard cap can be made here.
    """
    planned = (
        model
        if isinstance(model, Plan)
        else plan(model, budget=budget, workload=workload, count_parent=count_parent, verbose=verbose)
    )
    options: dict[str, Any] = {
        "count_parent": count_parent,
        "hard_cap": hard_cap,
        "on_progress": on_progress,
        "verbose": verbose,
    }
    if isinstance(planned, TransformersPlan):
        from memfit.engines.transformers.session import TransformersSession

        return TransformersSession(planned, **options)
    assert isinstance(planned, LlamaPlan)
    require_this_machine(planned)
    return LlamaSession(planned, **options)


def _require_devices(budget: Budget, here: Machine, *, imagined: bool) -> None:
    """Raises UsageError where the budget names a device that this machine cannot have."""
    if budget.vram is not None and not here.gpus:
        raise WrongValueError(
            "vram",
            f": there is no GPU here ({here.gpu_note or 'no NVIDIA GPU was found'}); "
            "memfit hardware shows what there is, --rpc takes a GPU of another machine",
        )
    if imagined and budget.rpc:
        raise WrongValueError(
            "rpc", " names a device of this machine, --machine another machine; use one of them"
        )
    if isinstance(budget.vram, Mapping):
        for number in budget.vram:
            if number not in {gpu.index for gpu in here.gpus}:
                raise WrongValueError(
                    f"vram {number}", f": there is no GPU {number}; memfit hardware shows which there are"
                )


def _say_nothing(text: str) -> None:
    del text
