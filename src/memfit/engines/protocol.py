"""What every engine offers: it plans, it loads, and a loaded model answers requests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from memfit.engines.requests import (
    Completion,
    Idle,
    LogitsBlock,
    Message,
    Request,
    RequestResult,
    Sampling,
    Speed,
    Status,
    StreamTotals,
    TextDelta,
    TokenScore,
)
from memfit.headers.model_spec import ModelSpec
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Workload

if TYPE_CHECKING:
    from memfit.engines.report import Report
    from memfit.hub.resolve import ResolvedModel

__all__ = ["Engine", "LoadOptions", "PlanOptions", "Planner", "RequestStream", "Session"]


def _say_nothing(text: str) -> None:
    del text


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan depends on beside model and workload."""

    budget: Budget = field(default_factory=Budget)
    machine: str | None = None  # a profile's name or file; None: this machine
    many: bool = False  # the number of parallel sequences is still to be found, and may be more than one
    load_in: str | None = None  # for transformers: a precision; None: the type that is stored
    double_quant: bool = False  # for transformers, with "nf4" and "fp4"
    trust_remote_code: bool = False  # for transformers: run the model's own program
    count_parent: bool = False  # the calling process counts as memfit's own
    say: Callable[[str], None] = _say_nothing  # hears of one-time measurements
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a plan is loaded."""

    count_parent: bool = False  # as it was planned
    hard_cap: bool = False  # the kernel keeps the RAM budget: memory/hard_cap.py
    on_progress: Callable[[float], None] | None = None  # hears the share that is loaded
    verbose: bool = False  # the engine's log goes to stderr


class Planner(Protocol):
    """Plans one model as often as is wanted. A context manager."""

    only_parallel: int | None  # sequences, where their number is not to be chosen

    @property
    def spec(self) -> ModelSpec: ...

    def plan(self, workload: Workload) -> Plan:
        """The plan for a workload with the threads, repacking and grammars of the planner's own; it may not
        fit."""
        ...

    def count_tokens(self, requests: Sequence[Request]) -> list[int | None]:
        """How many tokens each request's prompt has, template included; None where it makes no prompt."""
        ...

    def __enter__(self) -> Planner: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Protocol):
    """Plans and loads models of its kind."""

    def accepts(self, model: ResolvedModel) -> bool:
        """Whether it is the one to take where nobody names an engine."""
        ...

    def planner(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> Planner:
        """Raises:
        ModelError: the model cannot be read, or does not write text.
        UsageError: an option that makes no sense here.
        EngineError: the engine is missing or refuses the model.
        """
        ...

    def load(self, plan: Plan, options: LoadOptions) -> Session:
        """Errors as `memfit.load`."""
        ...


class RequestStream(Protocol):
    """Requests that join a loaded model and leave it at any pass. They may be added from any thread."""

    totals: StreamTotals
    was_cancelled: bool

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        """Let a request wait for its turn; `sends_text` asks for its text as it comes."""
        ...

    def drop(self, number: int) -> None:
        """Forget a request. What of it lies in the KV cache stays for the next ones; no result comes, unless
        it is on its way."""
        ...

    def end(self) -> None:
        """No more requests come: `events` ends with the last result."""
        ...

    def events(self) -> Generator[RequestResult | TextDelta | LogitsBlock | Idle]:
        """Results as they are ready, and Idle about once a second without any.

        Ctrl-C ends all requests early, with finish_reason "cancelled", and sets `was_cancelled`. Closing it
        early cancels what still runs.
        """
        ...


class Session(Protocol):
    """One loaded model in a worker process."""

    has_chat_template: bool
    plan: Plan

    def open(self, *, expected_tokens: float = 0) -> RequestStream:
        """Begin to answer requests, side by side where the plan has several sequences. One stream at a time;
        `expected_tokens` is how many each request may generate, 0: unknown."""
        ...

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Continue a raw text. Raises UsageError where it does not fit the context."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answer messages through the model's chat template."""
        ...

    def stream(self, prompt: str | Sequence[Message], sampling: Sampling | None = None) -> Iterator[str]:
        """The pieces of an answer as they come."""
        ...

    def score(
        self,
        tokens: Sequence[int],
        *,
        first: int = 1,
        top: int = 0,
        on_logits: Callable[[LogitsBlock], None] | None = None,
    ) -> tuple[TokenScore, ...]:
        """How likely each token of a text is, given those before it."""
        ...

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        """Time a prompt and a generation of exactly so many tokens, without sampling: medians."""
        ...

    def status(self) -> Status:
        """How busy the model is."""
        ...

    def report(self) -> Report:
        """Predicted against measured so far."""
        ...

    def close(self) -> None:
        """End the worker."""
        ...
