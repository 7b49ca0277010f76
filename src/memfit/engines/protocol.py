"""What every engine offers: few methods, values in and values out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from memfit.errors import MemfitError, UsageError, WrongValueError

if TYPE_CHECKING:
    from memfit.engines.report import Report

__all__ = [
    "Batch",
    "BatchSession",
    "BatchTotals",
    "Completion",
    "Idle",
    "Message",
    "Request",
    "RequestResult",
    "Sampling",
    "Session",
    "Speed",
    "TextDelta",
]

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are llama.cpp's. Temperature 0 is greedy."""

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = _LARGEST_SEED  # llama.cpp's word for "a random one"
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seeds = f"between 0 and {_LARGEST_SEED}"
        checks = {
            "max_tokens": (self.max_tokens is None or self.max_tokens > 0, "above 0"),
            "temperature": (0 <= self.temperature <= 100, "between 0 and 100"),
            "top_k": (0 <= self.top_k < 2**31, "0 or above, in 31 bits"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repeat_penalty": (0 < self.repeat_penalty <= 100, "above 0"),
            "seed": (0 <= self.seed <= _LARGEST_SEED, seeds),
        }
        for name, (valid, needed) in checks.items():
            if not valid:
                got = getattr(self, name)
                raise WrongValueError(name, f" is {got}; it must be {needed}", got=got, needed=needed)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One of many questions that are answered together: a raw text to continue, or messages."""

    number: int  # tells the answers apart; unique among those that run
    prompt: str | None = None  # continued as it is; None: `messages` are answered
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer; None: any text

    def __post_init__(self) -> None:
        if (self.prompt is None) != bool(self.messages):
            raise UsageError("a request has either a prompt or messages")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens processed and the seconds they took; a rate is None where nothing was timed."""

    prompt_tokens: int  # those really processed: a prefix still in the KV cache is not
    prompt_seconds: float
    generated_tokens: int  # passes of one token each
    generation_seconds: float

    @property
    def prompt_tokens_per_second(self) -> float | None:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else None

    @property
    def generation_tokens_per_second(self) -> float | None:
        return self.generated_tokens / self.generation_seconds if self.generation_seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer."""

    text: str
    finish_reason: str  # "stop": the model ended or a stop string came; "length"; "cancelled"
    prompt_tokens: int
    completion_tokens: int
    speed: Speed


@dataclass(frozen=True, kw_only=True)
class RequestResult:
    """What came of one of many requests."""

    number: int  # the request's
    completion: Completion | None  # its speed is that of all together, so far
    error: MemfitError | None = None  # why there is no completion


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A part of an answer to come."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing came for a while: time to do what can wait."""


@dataclass(frozen=True, kw_only=True)
class BatchTotals:
    """What a batch has come to, so far or at its end."""

    prompt_tokens: int = 0  # computed
    shared_tokens: int = 0  # not computed, as the cache held them
    generated_tokens: int = 0
    seconds: float = 0.0  # while there was anything to do
    decode_seconds: float = 0.0  # of these, in the engine; known at the end
    passes: int = 0

    def __add__(self, other: BatchTotals) -> BatchTotals:
        mine, theirs = vars(self), vars(other)
        return BatchTotals(**{name: mine[name] + theirs[name] for name in mine})


class Batch(Protocol):
    """Requests that one session answers side by side. They may be added at any time, from any thread."""

    totals: BatchTotals
    was_cancelled: bool

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        """Let a request wait for its turn; `sends_text` asks for its text as it comes."""
        ...

    def drop(self, number: int) -> None:
        """Forget a request; it is not answered unless its answer is already on its way."""
        ...

    def end(self) -> None:
        """No more requests come: `events` ends with the last answer."""
        ...

    def events(self) -> Generator[RequestResult | TextDelta | Idle]:
        """Answers as they are ready, and Idle about once a second without any.

        Ctrl-C ends them early and sets `was_cancelled`. Closed early, it cancels what still runs.
        """
        ...


class Session(Protocol):
    """One loaded model in a worker process."""

    has_chat_template: bool

    def generate(
        self,
        prompt: str,
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
        """RequestResult messages through the model's chat template."""
        ...

    def stream(self, prompt: str | Sequence[Message], sampling: Sampling | None = None) -> Iterator[str]:
        """The pieces of an answer as they come."""
        ...

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        """Time a prompt and a generation of exactly so many tokens, without sampling: medians."""
        ...

    def report(self) -> Report:
        """Predicted against measured so far."""
        ...

    def close(self) -> None:
        """End the worker."""
        ...


class BatchSession(Session, Protocol):
    """One that answers many requests side by side."""

    def batch(self, *, expected_tokens: float = 0) -> Batch:
        """Begin to answer many requests; `expected_tokens` is how many each may generate, 0: unknown."""
        ...
