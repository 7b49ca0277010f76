"""One loaded model, and the streams of requests that it answers: what both engines' sessions are.

Everything is a request on a stream. `generate`, `chat`, `stream` and `score` are one request on a stream of
their own, `embed` and `rank` one for each text, written once here; a batch or a server adds many to one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from memfit.engines.embedding import Embedding
from memfit.engines.requests import (
    Begun,
    Completion,
    Idle,
    LogitsBlock,
    Message,
    Progress,
    Request,
    RequestResult,
    Sampling,
    Score,
    Speed,
    Status,
    StreamTotals,
    TextDelta,
    TokenScore,
)
from memfit.errors import InterruptedByUser, UsageError
from memfit.planner.plan import Plan

if TYPE_CHECKING:
    from memfit.engines.report import Report
    from memfit.engines.served import Served
    from memfit.memory.others import Shared

__all__ = ["RequestStream", "Session", "StreamEvent"]

StreamEvent = RequestResult | Begun | Progress | TextDelta | LogitsBlock | Idle


class RequestStream(Protocol):
    """Requests that join a loaded model and leave it at any pass. They may be added from any thread."""

    totals: StreamTotals
    was_cancelled: bool

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        """Let a request wait for its turn; `sends_text` asks for its text as it comes."""

    def drop(self, number: int) -> None:
        """Forget a request. What of it lies in the KV cache stays for the next ones; no result comes, unless
        it is on its way."""

    def end(self) -> None:
        """No more requests come: `events` ends with the last result."""

    def events(self) -> Generator[StreamEvent]:
        """Results as they are ready, and Idle about once a second without any.

        Ctrl-C ends all requests early, with finish_reason "cancelled", and sets `was_cancelled`. Closing it
        early cancels what still runs.
        """


class Session(Protocol):
    """One loaded model in a worker process."""

    plan: Plan
    has_chat_template: bool
    served: Served

    @abstractmethod
    def open(self, *, expected_tokens: float = 0) -> RequestStream:
        """Begin to answer requests, side by side where the plan has several sequences.

        What earlier requests left in the KV cache is not processed again. One stream is open at a time: an
        older one is closed, and its requests are cancelled. `expected_tokens` is how many each request may
        generate; 0: unknown.
        """

    @abstractmethod
    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        """Time a prompt and a generation of exactly so many tokens, each after `depth` tokens in the cache.

        Decoding alone, without sampling, as llama-bench measures it; medians of the repetitions.

        Raises:
            InterruptedByUser: Ctrl-C.
        """

    @abstractmethod
    def status(self) -> Status:
        """How busy the model is, and what is held now."""

    def shared(self) -> Mapping[str, Shared]:
        """By tier of this machine, what there is and what other programs hold; without those that nobody
        measures. Looks closely, so not for each request."""
        return {}

    @abstractmethod
    def report(self) -> Report:
        """Predicted against measured so far; the speeds are those of the last request."""

    @abstractmethod
    def close(self) -> None:
        """End the worker. Safe to repeat."""

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Continue a raw text or tokens, without the chat template. Schemas, errors, Ctrl-C as in `chat`."""
        asked = prompt if isinstance(prompt, str) else tuple(prompt)
        return self._complete(Request(prompt=asked, sampling=sampling or Sampling(), schema=schema), on_text)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answer messages through the model's own chat template; `on_text` hears the text as it comes.

        With a JSON `schema` the answer is JSON that satisfies it, unless it is cut by its length; the plan
        must have memory for that (Workload.grammars).

        What the KV cache already holds of them is not processed again. Ctrl-C ends the answer early
        with finish_reason "cancelled"; a second one is raised.

        Raises:
            UsageError: the prompt is empty or longer than the context, there is no chat template, or the
                schema has something that cannot be enforced.
            ModelError: the chat template failed or was stopped.
            EngineError: the engine failed.
        """
        asked = Request(messages=tuple(messages), sampling=sampling or Sampling(), schema=schema)
        return self._complete(asked, on_text)

    def stream(self, prompt: str | Sequence[Message], sampling: Sampling | None = None) -> Iterator[str]:
        """The pieces of an answer as they come: to a raw text (str) or to messages.

        Leaving the loop early ends the generation. Errors as in `chat`.
        """
        asked: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": tuple(prompt)}
        request = Request(**asked, sampling=sampling or Sampling())
        with closing(self._events(request, sends_text=True)) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    yield event.text

    def score(
        self,
        tokens: Sequence[int],
        *,
        first: int = 1,
        top: int = 0,
        on_logits: Callable[[LogitsBlock], None] | None = None,
    ) -> tuple[TokenScore, ...]:
        """How likely each of the `tokens` is, from the `first` on, given those before it; with the `top`
        likeliest instead. `on_logits` is handed all logits, block by block.

        Raises:
            UsageError: there are fewer than two tokens, or more than the context holds.
            InterruptedByUser: Ctrl-C.
        """
        if not 0 < first < len(tokens):
            raise UsageError(
                f"the first token to score is {first} of {len(tokens)}; it must have one before it"
            )
        wanted = Score(first=first, top=top, logits=on_logits is not None)
        for event in self._events(Request(prompt=tuple(tokens), score=wanted)):
            if isinstance(event, LogitsBlock) and on_logits:
                on_logits(event)
            elif isinstance(event, RequestResult):
                if event.completion:  # it has no scores
                    raise InterruptedByUser
                return event.scores
        raise AssertionError("a stream ends with its request's result")

    def embed(self, texts: Sequence[str | Sequence[int]]) -> list[Embedding]:
        """The embedding of each text, or of its tokens, as it comes out of the model; the plan must be for
        that (Workload.embeds). As many as fit are computed at once.

        Raises:
            UsageError: a text is empty, or longer than the model reads.
            EngineError: the engine failed.
            InterruptedByUser: Ctrl-C.
        """
        return self._embed(
            Request(number=number, prompt=text if isinstance(text, str) else tuple(text), embed=True)
            for number, text in enumerate(texts)
        )

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers a query, where the model is a reranker. Errors as in `embed`."""
        pairs = (
            Request(number=number, pair=(query, document), embed=True)
            for number, document in enumerate(documents)
        )
        return [one.score for one in self._embed(pairs)]

    def _embed(self, requests: Iterable[Request]) -> list[Embedding]:
        """In order."""
        stream = self.open()
        found: dict[int, Embedding] = {}
        for request in requests:
            stream.add(request)
        stream.end()
        with closing(stream.events()) as events:
            for event in events:
                if isinstance(event, RequestResult):
                    if event.error:
                        raise event.error
                    if event.embedding is None:
                        raise InterruptedByUser
                    found[event.number] = event.embedding
        return [found[number] for number in sorted(found)]

    def _events(self, request: Request, *, sends_text: bool = False) -> Generator[StreamEvent]:
        """Of one request alone. Raises what it failed with."""
        stream = self.open()
        stream.add(request, sends_text=sends_text)
        stream.end()
        with closing(stream.events()) as events:
            for event in events:
                if isinstance(event, RequestResult) and event.error:
                    raise event.error
                yield event

    def _complete(self, request: Request, on_text: Callable[[str], None] | None) -> Completion:
        completion: Completion | None = None
        for event in self._events(request, sends_text=on_text is not None):
            if isinstance(event, TextDelta) and on_text:
                on_text(event.text)
            elif isinstance(event, RequestResult):
                completion = event.completion
        assert completion, "a stream ends with its request's result"
        return completion
