"""What every engine offers: it plans, it loads, and a loaded model answers requests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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

if TYPE_CHECKING:
    from memfit.engines.report import Report

__all__ = ["RequestStream", "Session"]


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
