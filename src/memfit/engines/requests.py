"""What is asked of a model and what comes back, as values: requests, sampling options with their checks and
defaults, results, speeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from memfit.engines.embedding import Embedding
from memfit.errors import MemfitError, UsageError, WrongValueError

__all__ = [
    "RANDOM_SEED",
    "Begun",
    "ChosenToken",
    "Completion",
    "Idle",
    "LogitsBlock",
    "Message",
    "Progress",
    "PromptText",
    "Request",
    "RequestResult",
    "Sampling",
    "Score",
    "Speed",
    "Status",
    "StreamTotals",
    "TemplateOptions",
    "TextDelta",
    "TokenScore",
]

# {"role": "system" | "user" | "assistant" | "tool", "content": text}, and as templates know them "name",
# "tool_calls" (OpenAI's, with arguments as objects), "tool_call_id" and "reasoning_content".
Message = Mapping[str, Any]
_MOST_BREAKERS = 16  # for each of them llama.cpp writes every token of the vocabulary
_MOST_BIASED = 1024  # texts, which have to be tokenized before anything else goes on
RANDOM_SEED = 2**32 - 1  # the largest; llama.cpp's word for "a random one"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are llama.cpp's. Temperature 0 is greedy."""

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0  # below 0: off
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0  # 1 and 2 choose by surprise, instead of all above but temperature
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64  # tokens that penalties look back; -1: all
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int | str, float], ...] = ()  # tokens, or texts whose tokens are all meant
    ignore_eos: bool = False  # go on where the model would end
    seed: int = RANDOM_SEED
    stop: tuple[str, ...] = ()

    @property
    def is_random_seed(self) -> bool:
        return self.seed == RANDOM_SEED

    def __post_init__(self) -> None:
        seeds = f"between 0 and {RANDOM_SEED}"
        checks = {
            "max_tokens": (self.max_tokens is None or self.max_tokens > 0, "above 0"),
            "temperature": (0 <= self.temperature <= 100, "between 0 and 100"),
            "top_k": (0 <= self.top_k < 2**31, "0 or above, in 31 bits"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "typical_p": (0 < self.typical_p <= 1, "above 0 and at most 1"),
            "top_n_sigma": (self.top_n_sigma <= 100, "at most 100"),
            "xtc_probability": (0 <= self.xtc_probability <= 1, "between 0 and 1"),
            "xtc_threshold": (0 <= self.xtc_threshold <= 1, "between 0 and 1"),
            "dynatemp_range": (0 <= self.dynatemp_range <= 100, "between 0 and 100"),
            "dynatemp_exponent": (0 <= self.dynatemp_exponent <= 100, "between 0 and 100"),
            "mirostat": (self.mirostat in (0, 1, 2), "0, 1 or 2"),
            "mirostat_tau": (0 <= self.mirostat_tau <= 100, "between 0 and 100"),
            "mirostat_eta": (0 <= self.mirostat_eta <= 100, "between 0 and 100"),
            "repeat_penalty": (0 < self.repeat_penalty <= 100, "above 0"),
            "frequency_penalty": (abs(self.frequency_penalty) <= 100, "between -100 and 100"),
            "presence_penalty": (abs(self.presence_penalty) <= 100, "between -100 and 100"),
            "repeat_last_n": (-1 <= self.repeat_last_n < 2**31, "-1 or above, in 31 bits"),
            "dry_multiplier": (0 <= self.dry_multiplier <= 100, "between 0 and 100"),
            "dry_base": (0 <= self.dry_base <= 100, "between 0 and 100"),
            "dry_allowed_length": (0 <= self.dry_allowed_length < 2**31, "0 or above, in 31 bits"),
            "dry_penalty_last_n": (-1 <= self.dry_penalty_last_n < 2**31, "-1 or above, in 31 bits"),
            "seed": (0 <= self.seed <= RANDOM_SEED, seeds),
        }
        for name, (valid, needed) in checks.items():
            if not valid:
                got = getattr(self, name)
                raise WrongValueError(name, f" is {got}; it must be {needed}", got=got, needed=needed)
        biased = [token for token, _ in self.logit_bias if isinstance(token, str)]
        for name, texts, most in (
            ("dry_sequence_breakers", self.dry_sequence_breakers, _MOST_BREAKERS),
            ("logit_bias", biased, _MOST_BIASED),
        ):
            if len(texts) > most:
                said = f" has {len(texts)} texts; at most {most} are taken"
                raise WrongValueError(name, said, got=len(texts), needed=most)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is wanted of a text's own tokens, where it is scored and not continued."""

    first: int = 1  # the first token that is scored; the first of all has nothing before it
    top: int = 0  # likeliest tokens to name at each position
    logits: bool = False  # whether all logits are handed on, block by block


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """What a chat template is given beside the messages."""

    tools: tuple[Mapping[str, Any], ...] = ()  # in OpenAI's form
    values: Mapping[str, Any] = field(default_factory=dict)  # its own, "enable_thinking" for example
    adds_generation_prompt: bool = True
    continues: bool = False  # the last message is the assistant's, and its text is continued


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question: a text or tokens to continue or to embed, messages to answer, or tokens to score."""

    number: int = 0  # tells the results of a stream apart; unique among the requests that run
    # Continued as it is, texts among tokens being tokenized; None: `messages` are answered.
    prompt: str | tuple[int | str, ...] | None = None
    messages: tuple[Message, ...] = ()
    template: TemplateOptions = field(default_factory=TemplateOptions)
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer; None: any text
    grammar: str | None = None  # what the answer follows instead, in llama.cpp's GBNF or llguidance's Lark
    score: Score | None = None  # score the prompt's tokens, generate nothing
    describes: bool = False  # say what the prompt is, compute nothing
    adds_special: bool | None = None  # tokens that begin a text; None: as the vocabulary has it
    shows_markers: bool = False  # whether control tokens that an answer is read by are part of its text
    names_tokens: bool = False  # whether text comes with its tokens
    logprobs: int | None = None  # likeliest tokens that are named with each token; None: no probabilities
    probabilities_after: bool = False  # these are of what sampling leaves over, else of the model
    tells_beginning: bool = False  # whether Begun is told
    tells_progress: bool = False  # whether Progress is told while the prompt is computed
    embed: bool = False  # make an embedding of the prompt, or a reranker's score of it or of the pair
    pair: tuple[str, str] | None = None  # a query and a document, which the model has its own way to join

    def __post_init__(self) -> None:
        if [self.prompt is not None, bool(self.messages), self.pair is not None].count(True) != 1:
            raise UsageError("a request has either a prompt or messages")
        if self.messages if self.embed else self.pair:
            raise UsageError("what is embedded is a prompt or a pair, and a pair is only embedded")
        if self.score and not isinstance(self.prompt, tuple):
            raise UsageError("what is scored is given as tokens")
        if self.schema is not None and self.grammar is not None:
            raise UsageError("an answer follows either a JSON schema or a grammar")

    @property
    def extras(self) -> list[str]:
        """Of what it asks, the fields that not every engine honours."""
        own = [name for name in ("names_tokens", "logprobs") if getattr(self, name) not in (False, None)]
        plain = Sampling()
        return own + [
            name
            for name, value in vars(self.sampling).items()
            if name not in _EVERYWHERE and value != getattr(plain, name)
        ]

    @property
    def is_constrained(self) -> bool:
        return self.schema is not None or self.grammar is not None

    def to_json(self) -> dict[str, Any]:
        """Only what is not as it is by itself: most of a request is not."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        values = {name: value for name, value in own.items() if value != _DEFAULTS[name]}
        for name in ("template", "sampling", "score"):
            if name in values:
                values[name] = asdict(values[name])
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """What `to_json` gave, after having been JSON."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        parts: dict[str, Any] = {"template": TemplateOptions, "sampling": Sampling, "score": Score}
        for name, kind in parts.items():
            if name in given:
                given[name] = kind(**{key: _tupled(value) for key, value in given[name].items()})
        return cls(**given)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


# What every engine samples by.
_EVERYWHERE = frozenset(
    ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
)
_DEFAULTS = {
    one.name: one.default_factory() if one.default_factory is not MISSING else one.default
    for one in fields(Request)
}


@dataclass(frozen=True, kw_only=True, slots=True)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer."""

    text: str
    finish_reason: str  # "stop": the model ended or a stop string came; "length"; "cancelled"
    prompt_tokens: int
    completion_tokens: int
    speed: Speed
    stop: str | None = None  # the stop string that ended it


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """One token of a scored text, given those before it."""

    logprob: float  # natural logarithm
    is_greedy: bool  # no token was likelier
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens with their logprobs, the best first


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestResult:
    """What came of one request."""

    number: int  # the request's
    completion: Completion | None = None
    scores: tuple[TokenScore, ...] = ()  # of a request to score, from its first token on
    prompt: PromptText | None = None  # of a request that asks only for that
    error: MemfitError | None = None  # why there is nothing
    embedding: Embedding | None = None  # of a request to embed


@dataclass(frozen=True, kw_only=True)
class LogitsBlock:
    """The logits that some neighbouring tokens of a scored text were chosen from."""

    number: int
    first: int  # the first of these tokens
    logits: memoryview[Any]  # float32, [tokens, vocabulary]


@dataclass(frozen=True, kw_only=True)
class PromptText:
    """A prompt as the model reads it."""

    text: str  # special tokens included
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...]  # each token's part of the text


@dataclass(frozen=True, kw_only=True)
class ChosenToken:
    """One token of an answer."""

    token: int
    piece: bytes
    logprob: float | None = None  # natural logarithm; None: not asked
    top: tuple[tuple[int, bytes, float], ...] = ()  # the likeliest tokens, their pieces and logprobs


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A request is accepted: its prompt is read, and waits for its turn or is computed."""

    number: int
    prompt_tokens: int
    ending: str  # the end of its prompt's text, where a template made it


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A part of an answer to come."""

    number: int
    text: str
    tokens: tuple[ChosenToken, ...] = ()  # that it was made of, where they are named


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request's prompt is computed."""

    number: int
    total: int  # tokens of the prompt
    shared: int  # that the cache held
    processed: int  # these included
    seconds: float  # since its first pass began


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing came for a while: time to do what can wait."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How busy a model is."""

    waiting: int = 0  # requests
    running: int = 0
    cells_in_use: int = 0  # of the KV cache, prefixes of earlier requests included
    generated_tokens: int = 0  # so far, by answers that still run too; 0 where the engine tells at their ends
    held_bytes: int = 0  # in RAM, by all of memfit's processes
    tiers: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # bytes held in each, and at most


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
