"""The Python interface: `plan` and `load`. It chooses the engine and hands on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace

from memfit.engines.protocol import Engine, LoadOptions, Planner, PlanOptions
from memfit.engines.worker_session import WorkerSession
from memfit.errors import EngineError, WrongValueError
from memfit.hub.resolve import ResolvedModel, resolve
from memfit.known_losses import with_loss
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Conditions, Workload
from memfit.saved_plan import require_this_machine

__all__ = ["ENGINES", "load", "open_planner", "plan"]

_ENGINES = ("llamacpp", "transformers")
ENGINES = ("auto", *_ENGINES)


def plan(
    model: str | ResolvedModel,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    conditions: Conditions | None = None,
    machine: str | None = None,
    engine: str = "auto",
    load_in: str | None = None,
    double_quant: bool = False,
    trust_remote_code: bool = False,
    count_parent: bool = False,
    explain: bool = False,
    writes: bool = False,
    say: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> Plan:
    """Plan a model for this machine; loads no weights.

    `model` is a path to a GGUF file or to a checkpoint's directory, "demo", or a name such as
    "hf:org/repo:Q4_K_M" or "https://…/file.gguf": of a model that is not here only the header is read.
    `engine` "auto" takes transformers for a checkpoint, and llama.cpp for GGUF, which "transformers"
    dequantizes. Encoders and rerankers are planned to embed, unless `writes` refuses them. The other options
    are those of `PlanOptions`. A plan for another `machine` cannot be loaded.
    The plan may not fit: see `Plan.fits`.

    Raises:
        ModelError: the model is missing or cannot be read.
        UsageError: a budget, workload or precision that makes no sense.
        EngineError: the engine is missing or refuses the configuration.
    """
    options = PlanOptions(
        budget=budget or Budget(),
        conditions=conditions or Conditions(),
        machine=machine,
        load_in=load_in,
        double_quant=double_quant,
        trust_remote_code=trust_remote_code,
        count_parent=count_parent,
        explain=explain,
        writes=writes,
        verbose=verbose,
    )
    workload = workload or Workload()
    with open_planner(model, engine, replace(options, say=say) if say else options, workload) as planner:
        return with_loss(planner.plan(workload))


def load(
    model: str | Plan,
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    count_parent: bool = False,
    hard_cap: bool = False,
    on_progress: Callable[[float], None] | None = None,
    verbose: bool = False,
    chat_template: str | None = None,
    finds_format: bool = False,
) -> WorkerSession:
    """Load a model, or a plan made before, inside its budget.

    A plan that was saved as JSON is read by `memfit.saved_plan.read_plan`. The options are those of
    `LoadOptions`.

    Raises:
        DoesNotFitError: the budget is too small; the error says by how much and what to try.
        MemfitError: as `plan` does; EngineError where loading fails; UsageError: it is for another machine,
                or no hard cap can be made here.
    """
    if not isinstance(model, Plan):
        model = plan(model, budget=budget, workload=workload, count_parent=count_parent, verbose=verbose)
    require_this_machine(model)
    options = LoadOptions(
        count_parent=count_parent,
        hard_cap=hard_cap,
        on_progress=on_progress,
        verbose=verbose,
        chat_template=chat_template,
        finds_format=finds_format,
    )
    session = _engine(model.engine).load(model, options)
    assert isinstance(session, WorkerSession)
    return session


def open_planner(
    model: str | ResolvedModel, engine: str, options: PlanOptions, workload: Workload
) -> Planner:
    """What plans a model with the threads, repacking and grammars of a workload. A context manager; errors as
    in `plan`."""
    if engine not in ENGINES:
        raise WrongValueError("engine", f" is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if sys.platform != "linux":
        raise EngineError(
            f"memfit measures memory through Linux' /proc, and this is {sys.platform}; try WSL2"
        )
    resolved = model if isinstance(model, ResolvedModel) else resolve(model, options.say)
    names = _ENGINES if engine == "auto" else (engine,)
    chosen = next((one for one in map(_engine, names) if one.accepts(resolved)), _engine(names[0]))
    return chosen.planner(resolved, options, workload)


def _engine(name: str) -> Engine:
    """Imported when it is used: what it holds counts in a run."""
    found: Engine = importlib.import_module(f"memfit.engines.{name}.engine").ENGINE
    return found
