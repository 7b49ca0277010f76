"""The Python interface: `plan` and `load`. The command line is a thin user of the same two."""

from __future__ import annotations

import sys
from collections.abc import Callable

from memfit.engines.llamacpp.calibrate import Calibration
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.engines.llamacpp.session import LlamaSession
from memfit.errors import EngineError
from memfit.hardware import probe
from memfit.headers import read_model
from memfit.headers.source import resolve
from memfit.planner.plan import Plan
from memfit.planner.planner import make_plan, repack_modes, thread_count
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import measured_types

__all__ = ["load", "plan"]


def plan(
    model: str,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    say: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> Plan:
    """Plan a model for this machine; loads no weights.

    `model` is a path to a GGUF file or "demo". `count_parent` counts the calling process as memfit's
    own, as the command line does. `say` hears of one-time measurements. The plan may not fit: see
    `Plan.fits`.

    Raises:
        ModelError: the model is missing or cannot be read.
        UsageError: a budget or workload that makes no sense.
        EngineError: the engine is missing or refuses the configuration.
    """
    if sys.platform != "linux":
        raise EngineError(
            f"memfit measures memory through Linux' /proc, and this is {sys.platform}; try WSL2"
        )
    budget, workload = budget or Budget(), workload or Workload()
    spec = read_model(resolve(model), source=model)
    machine = probe()
    threads = thread_count(machine, workload)
    calibration = Calibration(cpu_model=machine.cpu.model, say=say or _say_nothing)
    baseline = calibration.baseline(count_parent=count_parent)
    modes = repack_modes(workload)
    types = measured_types(spec)
    speeds = calibration.kernel_speeds(types, repack_modes=modes, threads=threads)
    with LlamaOracle(spec, baseline, repack_modes=modes, verbose=verbose) as oracle:
        return make_plan(spec, machine, budget, workload, oracle, speeds)


def load(
    model: str | Plan,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    on_progress: Callable[[float], None] | None = None,
    verbose: bool = False,
) -> LlamaSession:
    """Load a model, or a plan made before, inside its budget.

    Raises:
        DoesNotFitError: the budget is too small; the error says by how much and what to try.
        MemfitError: as `plan` does; EngineError where loading fails.
    """
    planned = (
        model
        if isinstance(model, Plan)
        else plan(model, budget=budget, workload=workload, count_parent=count_parent, verbose=verbose)
    )
    return LlamaSession(planned, count_parent=count_parent, on_progress=on_progress, verbose=verbose)


def _say_nothing(text: str) -> None:
    del text
