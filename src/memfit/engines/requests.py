"""What is asked of a model and what comes back, as values: requests, sampling options with their checks and
defaults, results, speeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memfit.engines.embedding import Embedding
from memfit.errors import MemfitError, UsageError, WrongValueError

__all__ = [
    "RANDOM_SEED",
    "Completion",
    "Idle",
    "LogitsBlock",
    "Message",
    "Request",
    "RequestResult",
    "Sampling",
    "Score",
    "Speed",
    "Status",
    "StreamTotals",
    "TextDelta",
    "TokenScore",
]

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
RANDOM_SEED = 2**32 - 1  # the largest; llama.cpp's word for "a random one"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are llama.cpp's. Temperature 0 is greedy."""

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = RANDOM_SEED
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seeds = f"between 0 and {RANDOM_SEED}"
        checks = {
            "max_tokens": (self.max_tokens is None or self.max_tokens > 0, "above 0"),
            "temperature": (0 <= self.temperature <= 100, "between 0 and 100"),
            "top_k": (0 <= self.top_k < 2**31, "0 or above, in 31 bits"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repeat_penalty": (0 < self.repeat_penalty <= 100, "above 0"),
            "seed": (0 <= self.seed <= RANDOM_SEED, seeds),
        }
        for name, (valid, needed) in checks.items():
            if not valid:
                got = getattr(self, name)
                raise WrongValueError(name, f" is {got}; it must be {needed}", got=got, needed=needed)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is wanted of a text's own tokens, where it is scored and not continued."""

    first: int = 1  # the first token that is scored; the first of all has nothing before it
    top: int = 0  # likeliest tokens to name at each position
    logits: bool = False  # whether all logits are handed on, block by block


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question: a text or tokens to continue or to embed, messages to answer, or tokens to score."""

    number: int = 0  # tells the results of a stream apart; unique among the requests that run
    prompt: str | tuple[int, ...] | None = None  # continued as it is; None: `messages` are answered
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer; None: any text
    score: Score | None = None  # score the prompt's tokens, generate nothing
    embed: bool = False  # make an embedding of the prompt, or a reranker's score of it or of the pair
    pair: tuple[str, str] | None = None  # a query and a document, which the model has its own way to join

    def __post_init__(self) -> None:
        if [self.prompt is not None, bool(self.messages), self.pair is not None].count(True) != 1:
            raise UsageError("a request has either a prompt or messages")
        if self.messages if self.embed else self.pair:
            raise UsageError("what is embedded is a prompt or a pair, and a pair is only embedded")
        if self.score and not isinstance(self.prompt, tuple):
            raise UsageError("what is scored is given as tokens")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "messages": [dict(one) for one in self.messages], "schema": self.schema}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """What `to_json` gave, after having been JSON."""
        prompt, sampling, score = (values[name] for name in ("prompt", "sampling", "score"))
        return cls(
            number=values["number"],
            prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
            messages=tuple(values["messages"]),
            sampling=Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
            schema=values["schema"],
            score=Score(**score) if score else None,
            embed=values["embed"],
            pair=tuple(values["pair"]) if values["pair"] else None,
        )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens processed and the seconds they took; a rate is None where nothing was timed."""

    prompt_tokens: int = 0  # those really processed: a prefix still in the KV cache is not
    prompt_seconds: float = 0.0
    generated_tokens: int = 0  # passes of one token each
    generation_seconds: float = 0.0
    threads: float | None = None  # that computed, on average over passes; None: nobody counted

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
class TokenScore:
    """One token of a scored text, given those before it."""

    logprob: float  # natural logarithm
    is_greedy: bool  # no token was likelier
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens with their logprobs, the best first


@dataclass(frozen=True, kw_only=True)
class RequestResult:
    """What came of one request."""

    number: int  # the request's
    completion: Completion | None = None
    scores: tuple[TokenScore, ...] = ()  # of a request to score, from its first token on
    error: MemfitError | None = None  # why there is nothing
    embedding: Embedding | None = None  # of a request to embed


@dataclass(frozen=True, kw_only=True)
class LogitsBlock:
    """The logits that some neighbouring tokens of a scored text were chosen from."""

    number: int
    first: int  # the first of these tokens
    logits: memoryview[Any]  # float32, [tokens, vocabulary]


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A part of an answer to come."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing came for a while: time to do what can wait."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How busy a model is."""

    waiting: int = 0  # requests
    running: int = 0
    cells_in_use: int = 0  # of the KV cache, prefixes of earlier requests included
    held_bytes: int = 0  # in RAM, by all of memfit's processes


@dataclass(frozen=True, kw_only=True)
class StreamTotals:
    """What a stream of requests has come to, so far or at its end."""

    prompt_tokens: int = 0  # computed
    shared_tokens: int = 0  # not computed, as the cache held them
    generated_tokens: int = 0
    seconds: float = 0.0  # while there was anything to do
    decode_seconds: float = 0.0  # of these, in the engine; known at the end
    passes: int = 0
    thread_passes: int = 0  # each pass once for each thread that computed it

    @property
    def threads(self) -> float | None:
        return self.thread_passes / self.passes if self.passes else None

    @property
    def speed(self) -> Speed:
        """Prompts and answers are computed in the same passes, so both rates are over the whole time."""
        return Speed(
            prompt_tokens=self.prompt_tokens,
            prompt_seconds=self.seconds,
            generated_tokens=self.generated_tokens,
            generation_seconds=self.seconds if self.generated_tokens else 0.0,
            threads=self.threads,
        )

    def __add__(self, other: StreamTotals) -> StreamTotals:
        mine, theirs = vars(self), vars(other)
        return StreamTotals(**{name: mine[name] + theirs[name] for name in mine})
