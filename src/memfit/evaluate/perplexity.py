"""Perplexity of a text, and how far one model's predictions are from another's.

    perplexity = exp(mean of -logprob)      KL = sum over tokens t of p(t) * (log p(t) - log q(t))

p is the reference's, q the model's, at each scored place; both in nats. Counted as llama-perplexity does:
tokens with p below e^-16 are left out, which with 262,144 of them and a small loss makes 1 %; and the
text in chunks of as many tokens as the context, each scored from its middle on, so that each scored token has
half a context before it; a model whose texts begin with a token of its own finds it first in every chunk.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

from memfit.engines.protocol import Planner
from memfit.engines.requests import LogitsBlock, Request
from memfit.engines.session import Session
from memfit.engines.worker_session import WorkerSession
from memfit.errors import OutputError, UsageError
from memfit.known_losses import keep_loss
from memfit.planner.plan import Plan
from memfit.planner.request import Workload
from memfit.units import GIB, MIB

__all__ = [
    "Chunk",
    "Divergence",
    "Load",
    "Perplexity",
    "Tokens",
    "divergences",
    "perplexity",
    "read_tokens",
    "scoring_plan",
]

_LOGITS_BYTES = (256 * MIB, 64 * MIB)  # of one pass: where they fit, and else
_STORED_BYTES = 4 * GIB  # of the reference's predictions, on the disk
_PASS = 512  # tokens
_LEAST_LOGPROB = -16.0  # of a token that counts in KL

Chunk = tuple[int, ...]
Load = Callable[[Plan], WorkerSession]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    value: float
    error: float  # standard error of the value
    tokens: int  # that were scored


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL from the reference's predictions, in nats a token."""

    mean: float
    error: float  # standard error of the mean
    median: float
    percentile_99: float
    maximum: float
    same_top: float  # share of places where both find the same token the likeliest


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text in chunks."""

    chunks: tuple[Chunk, ...]
    context: int

    @property
    def first(self) -> int:
        """The first token of a chunk that is scored."""
        return self.context // 2 + 1

    @property
    def places(self) -> int:
        """Scored tokens of a chunk."""
        return self.context - self.first


def scoring_plan(planner: Planner, workload: Workload) -> Plan:
    """A plan with memory for logits of many tokens a pass, if all of the model stays in memory beside them:
    half a context in one pass is what others compute, and shorter passes round otherwise. It may not fit."""
    assert workload.context
    scored = min(_PASS, max(16, workload.context // 2))
    row_bytes = 4 * max(1, planner.spec.vocabulary)
    sizes = {min(scored, max(16, size // row_bytes)) for size in _LOGITS_BYTES}
    for outputs in sorted(sizes, reverse=True):
        plan = planner.plan(replace(workload, outputs=outputs))
        if plan.fits and not plan.streamed_bytes:
            break
    return plan


def read_tokens(planner: Planner, text: str, *, context: int, most: int | None) -> Tokens:
    """At most `most` chunks of a text.

    Raises:
        UsageError: it is shorter than one chunk, or the model has no tokenizer.
    """
    tokens, one, other = planner.tokenize([Request(prompt=given) for given in (text, "a", "5")])
    if tokens is None:
        raise UsageError("the model has no tokenizer that would read the text")
    begin = one[:1] if one and other and one[:1] == other[:1] else []
    chunks = [tokens[start : start + context] for start in range(0, len(tokens) - context + 1, context)][
        :most
    ]
    if not chunks:
        raise UsageError(
            f"the text has {len(tokens)} tokens, and a chunk {context}; try a longer text or a smaller --ctx",
            field="--text",
            got=len(tokens),
            needed=context,
        )
    return Tokens(chunks=tuple((*begin, *chunk[len(begin) :]) for chunk in chunks), context=context)


def perplexity(
    session: Session, tokens: Tokens, on_chunk: Callable[[int, float], None] = lambda *_: None
) -> Perplexity:
    """`on_chunk` hears how many chunks are done, and the perplexity so far."""
    logprobs: list[float] = []
    for done, chunk in enumerate(tokens.chunks, start=1):
        logprobs += _scored(session, chunk, tokens)
        on_chunk(done, _perplexity(logprobs).value)
    return _perplexity(logprobs)


def divergences(
    load: Load,
    reference: Plan,
    plans: Sequence[Plan],
    tokens: Tokens,
    on_chunk: Callable[[int, float], None] = lambda *_: None,
) -> tuple[Perplexity, list[tuple[Perplexity, Divergence]]]:
    """Of the `reference`; and of each planned model, with how far it is from the reference. `on_chunk` hears
    how many chunks are done, of all models together, and of the mean KL so far.

    What a quantization loses against its source is kept for plans of it (known_losses.py).

    One model is loaded at a time. What the reference predicts is kept in a temporary file, for as many chunks
    as that may hold; then the others are asked about the same.

    Raises:
        OutputError: the disk has no room for that file.
    """
    group = max(1, _STORED_BYTES // (4 * tokens.places * reference.spec.vocabulary))
    base: list[float] = []
    scored: list[list[float]] = [[] for _ in plans]
    distances = [_Distances() for _ in plans]
    done = 0
    for start in range(0, len(tokens.chunks), group):
        chunks = tokens.chunks[start : start + group]
        with tempfile.TemporaryFile(prefix="memfit-reference-") as file:
            predicted = _Predictions(file, tokens)
            with load(reference) as session:
                for index, chunk in enumerate(chunks):
                    base += _scored(session, chunk, tokens, partial(predicted.keep, index))
            for plan, logprobs, distance in zip(plans, scored, distances, strict=True):
                with load(plan) as session:
                    for index, chunk in enumerate(chunks):
                        logprobs += _scored(session, chunk, tokens, partial(distance.add, predicted, index))
                        done += 1
                        on_chunk(done, distance.mean)
    found = [
        (_perplexity(logprobs), distance.summary())
        for logprobs, distance in zip(scored, distances, strict=True)
    ]
    for plan, (score, lost) in zip(plans, found, strict=True):
        keep_loss(plan, reference, mean_kl=lost.mean, error=lost.error, tokens=score.tokens)
    return _perplexity(base), found


class _Predictions:
    """Log probabilities of every token at every scored place of some chunks, float32, in a file."""

    def __init__(self, file: IO[bytes], tokens: Tokens) -> None:
        self._file, self._tokens = file, tokens

    def keep(self, chunk: int, block: LogitsBlock) -> None:
        self._seek(chunk, block)
        try:
            self._file.write(_log_softmax(block).tobytes())
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: no room for the reference's predictions: {error.strerror}; fewer "
                "--chunks take less, and TMPDIR names another folder"
            ) from None

    def read(self, chunk: int, block: LogitsBlock) -> Any:
        """Those that were kept at a block's places: [places, vocabulary]."""
        import numpy as np

        self._seek(chunk, block)
        shape = _shape(block)
        return np.frombuffer(self._file.read(4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)

    def _seek(self, chunk: int, block: LogitsBlock) -> None:
        place = chunk * self._tokens.places + block.first - self._tokens.first
        self._file.seek(4 * place * _shape(block)[1])


class _Distances:
    def __init__(self) -> None:
        self._found: list[float] = []
        self._same = 0

    def add(self, predicted: _Predictions, chunk: int, block: LogitsBlock) -> None:
        import numpy as np

        wanted, found = predicted.read(chunk, block), _log_softmax(block)
        lost = np.exp(wanted) * (wanted - found)
        self._found += lost.sum(1, dtype=np.float64, where=wanted > _LEAST_LOGPROB).tolist()
        self._same += int((wanted.argmax(1) == found.argmax(1)).sum())

    @property
    def mean(self) -> float:
        return sum(self._found) / len(self._found)

    def summary(self) -> Divergence:
        import numpy as np

        found = np.array(self._found)
        return Divergence(
            mean=float(found.mean()),
            error=float(found.std() / math.sqrt(max(1, len(found) - 1))),
            median=float(np.median(found)),
            percentile_99=float(np.percentile(found, 99)),
            maximum=float(found.max()),
            same_top=self._same / len(found),
        )


def _scored(
    session: Session, chunk: Chunk, tokens: Tokens, on_logits: Callable[[LogitsBlock], None] | None = None
) -> list[float]:
    """The log probability of each scored token."""
    return [one.logprob for one in session.score(chunk, first=tokens.first, on_logits=on_logits)]


def _perplexity(logprobs: Sequence[float]) -> Perplexity:
    count = len(logprobs)
    mean = -math.fsum(logprobs) / count
    variance = math.fsum((-one - mean) ** 2 for one in logprobs) / count
    value = math.exp(mean)
    return Perplexity(value=value, error=value * math.sqrt(variance / max(1, count - 1)), tokens=count)


def _shape(block: LogitsBlock) -> tuple[int, int]:
    assert block.logits.shape
    places, vocabulary = block.logits.shape
    return places, vocabulary


def _log_softmax(block: LogitsBlock) -> Any:
    import numpy as np

    rows = np.asarray(block.logits)
    rows = rows - rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
