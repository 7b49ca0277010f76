"""What every engine offers: it plans models and loads them (session.py says what a loaded one does)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from memfit.engines.requests import Request
from memfit.engines.session import Session
from memfit.headers.model_spec import ModelSpec
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Conditions, Workload

if TYPE_CHECKING:
    from memfit.hub.resolve import ResolvedModel

__all__ = ["Engine", "LoadOptions", "PlanOptions", "Planner"]


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan depends on beside model and workload."""

    budget: Budget = field(default_factory=Budget)
    conditions: Conditions = field(default_factory=Conditions)
    machine: str | None = None  # a profile's name or file; None: this machine
    many: bool = False  # the number of parallel sequences is still to be found, and may be more than one
    load_in: str | None = None  # for transformers: a precision; None: the type that is stored
    double_quant: bool = False  # for transformers, with "nf4" and "fp4"
    trust_remote_code: bool = False  # for transformers: run the model's own program
    count_parent: bool = False  # the calling process counts as memfit's own
    writes: bool = False  # a model that only embeds texts is refused
    say: Callable[[str], None] = lambda text: None  # hears of one-time measurements
    explain: bool = False  # price what single changes of the request would give
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a plan is loaded."""

    count_parent: bool = False  # as it was planned
    hard_cap: bool = False  # the kernel keeps the RAM budget: memory/hard_cap.py
    on_progress: Callable[[float], None] | None = None  # hears the share that is loaded
    verbose: bool = False  # the engine's log goes to stderr
    chat_template: str | None = None  # instead of the model's own
    finds_format: bool = False  # find out how the model writes reasoning and calls


class Planner(Protocol):
    """Plans one model as often as is wanted. A context manager."""

    only_parallel: int | None  # sequences, where their number is not to be chosen
    divides: bool  # whether sequences have equal parts of the context, whatever a workload asks

    @property
    def spec(self) -> ModelSpec: ...

    def plan(self, workload: Workload, budget: Budget | None = None) -> Plan:
        """The plan for a workload with the planner's own threads, repacking and grammars; it may not fit.
        Another `budget` than the planner's has sizes of the same devices."""

    def tokenize(self, requests: Sequence[Request]) -> list[list[int] | None]:
        """The tokens of each request's prompt, template included; None where it makes no prompt."""

    def __enter__(self) -> Planner: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Protocol):
    """Plans and loads models of its kind."""

    def accepts(self, model: ResolvedModel) -> bool:
        """Whether it is the one to take where nobody names an engine."""

    def planner(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> Planner:
        """Raises:
        ModelError: the model cannot be read, or does nothing that is done here.
        UsageError: an option that makes no sense here.
        EngineError: the engine is missing or refuses the model.
        """

    def load(self, plan: Plan, options: LoadOptions) -> Session:
        """Errors as `memfit.load`."""
