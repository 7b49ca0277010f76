"""One loaded model: the parent's side, for every engine that has a worker. Loads within the plan's limit,
answers, measures, reports. What only one engine does, its own session adds (engines/*/session.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

from memfit.engines.client import OverBudget, WorkerProcess
from memfit.engines.protocol import LoadOptions
from memfit.engines.report import CapReport, ModelBytes, Report, TierReport
from memfit.engines.request_stream import WorkerStream
from memfit.engines.requests import (
    Completion,
    Idle,
    LogitsBlock,
    Message,
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
from memfit.errors import DoesNotFitError, InterruptedByUser, ModelError, UsageError, WorkerDiedError
from memfit.hub.header_only import is_header_only
from memfit.memory.hard_cap import HardCap
from memfit.memory.meter import Meter
from memfit.memory.process_memory import process_memory
from memfit.planner.plan import Plan

__all__ = ["WorkerSession"]

_Session = TypeVar("_Session", bound="WorkerSession")


class WorkerSession:
    """A context manager around one worker. Not for several threads at once."""

    plan: Plan
    _earlier_peak_bytes = 0  # in RAM, before there was this session's worker

    def __init__(
        self,
        plan: Plan,
        options: LoadOptions,
        start: Callable[[], WorkerProcess],
        *,
        gpu_bytes: Callable[[int], Mapping[str, int]] | None = None,
    ) -> None:
        """Load the model; memory is watched from the first byte.

        With `options.count_parent` this process counts too, as the command line's does; a notebook's own data
        is not memfit's. `gpu_bytes` says what a process holds on each GPU; None where there is none.

        Raises:
            DoesNotFitError: the plan does not fit, or loading was about to exceed its limit.
            UsageError: no hard cap can be made here.
            ModelError: only the model's header is here.
            EngineError: the engine refused the model, or its worker died.
        """
        count_parent = options.count_parent
        self.require_loadable(plan)
        self.plan = plan
        self._stream: WorkerStream | None = None  # the newest
        self._speed = Speed(prompt_tokens=0, prompt_seconds=0, generated_tokens=0, generation_seconds=0)
        # The worker watches itself, and a group counts what is allocated in it: not what we hold already.
        self._parent_bytes = process_memory().anonymous_bytes if count_parent else 0
        self._cap: HardCap | None = None
        with contextlib.ExitStack() as opened:  # closed where anything here fails
            if options.hard_cap:
                self._cap = HardCap(plan.ram.limit_bytes - self._parent_bytes, holds_us=count_parent)
                opened.callback(self._cap.close)
            self._worker = start()
            opened.callback(self._worker.close)
            if self._cap:
                self._cap.enter(self._worker.pid)
            self._meter = Meter(
                self._worker.pid,
                count_parent=count_parent,
                model_files=plan.spec.paths,
                limit_bytes=plan.ram.limit_bytes,
                on_overrun=self._worker.kill,
                gpu_bytes=gpu_bytes,
            )
            opened.callback(self._meter.stop)
            self._load(options.on_progress)
            self._opened = opened.pop_all()

    @staticmethod
    def require_loadable(plan: Plan) -> None:
        """Raises DoesNotFitError, or ModelError where only the model's header is here."""
        plan.require_fit()
        if any(map(is_header_only, plan.spec.paths)):
            raise ModelError(
                f"{plan.spec.source} is planned by its header only; to download it: "
                f"memfit pull {plan.spec.source}"
            )

    @property
    def worker_pid(self) -> int:
        return self._worker.pid

    def _load(self, on_progress: Callable[[float], None] | None) -> None:
        tier = self.plan.ram
        started = False

        def report(_: str, event: dict[str, Any]) -> None:
            nonlocal started
            if not started:  # the first event: libraries are loaded, weights are not
                self._meter.start()
                started = True
            if on_progress:
                on_progress(event["fraction"])

        try:
            with self._explaining_death():
                reply = self._worker.ask(
                    "load",
                    report,
                    limit_bytes=tier.limit_bytes - self._parent_bytes,
                    **self._load_request(),
                )
        except OverBudget as overrun:
            raise self._does_not_fit(overrun.needs_bytes + self._parent_bytes) from None
        self._meter.settle()
        self._loaded = reply
        self.has_chat_template: bool = reply["has_chat_template"]

    def open(self, *, expected_tokens: float = 0) -> WorkerStream:
        """Begin to answer requests, side by side where the plan has several sequences.

        What earlier requests left in the KV cache is not processed again. A stream that is open already is
        closed, and its requests are cancelled.
        """

        def keep(totals: StreamTotals) -> None:
            self._speed = totals.speed

        self._stream = WorkerStream(
            self._worker,
            expected_tokens=expected_tokens,
            vocabulary=self._loaded["vocabulary"],
            explaining_death=self._explaining_death,
            check=self._check,
            on_totals=keep,
        )
        return self._stream

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
        raw = isinstance(prompt, str)
        asked = Request(
            prompt=str(prompt) if raw else None,
            messages=() if raw else tuple(prompt),  # type: ignore[arg-type]
            sampling=sampling or Sampling(),
        )
        with contextlib.closing(self._events(asked, sends_text=True)) as events:
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

    def _events(
        self, request: Request, *, sends_text: bool = False
    ) -> Generator[RequestResult | TextDelta | LogitsBlock | Idle]:
        """Of one request alone. Raises what it failed with."""
        stream = self.open()
        stream.add(request, sends_text=sends_text)
        stream.end()
        with contextlib.closing(stream.events()) as events:
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
        self._speed = completion.speed
        return completion

    def _check(self, request: Request) -> None:
        """Raises UsageError where the plan has no memory for it."""
        if request.schema is not None:
            self.plan.require_schemas()

    def status(self) -> Status:
        """As the worker last said, with what all processes hold now."""
        said = self._stream.status if self._stream else Status()
        return replace(said, held_bytes=self._meter.sample())

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        """Time a prompt and a generation of exactly so many tokens, each after `depth` tokens in the cache.

        Decoding alone, without sampling, as llama-bench measures it; medians of the repetitions.

        Raises:
            InterruptedByUser: Ctrl-C.
        """
        replies = []
        for _ in range(repetitions):
            replies.append(
                self._ask(
                    "measure",
                    prompt_tokens=prompt_tokens,
                    generated_tokens=generated_tokens,
                    depth=depth,
                )
            )
            if replies[-1]["cancelled"]:
                raise InterruptedByUser
        self._speed = Speed(
            prompt_tokens=prompt_tokens,
            prompt_seconds=median(reply["prompt_seconds"] for reply in replies),
            generated_tokens=generated_tokens,
            generation_seconds=median(reply["generation_seconds"] for reply in replies),
        )
        return self._speed

    def report(self) -> Report:
        """Predicted against measured so far; the speeds are those of the last request."""
        return self._report()

    def _report(self, *, model: ModelBytes | None = None) -> Report:
        self._meter.settle()
        ram = max(self._meter.peak_bytes, self._earlier_peak_bytes)
        peaks = {"ram": ram, **self._device_peaks()}
        return Report(
            plan=self.plan,
            tiers=tuple(
                TierReport(
                    name=tier.name,
                    kind=tier.kind,
                    budget_bytes=tier.budget_bytes,
                    predicted_bytes=tier.total_bytes,
                    peak_bytes=peaks.get(tier.name),
                )
                for tier in self.plan.tiers
            ),
            speed=self._speed,
            load_seconds=self._loaded["load_seconds"],
            disk_read_bytes=self._meter.disk_read_bytes,
            swapped_bytes=self._meter.swapped_bytes,
            locked_bytes=self._loaded["locked_bytes"],
            cap=CapReport(limit_bytes=self._cap.limit_bytes, peak_bytes=self._cap.peak_bytes)
            if self._cap
            else None,
            model=model,
        )

    # -- what an engine adds ------------------------------------------------------------------------

    def _load_request(self) -> dict[str, Any]:
        """What this engine's worker is told to load."""
        raise NotImplementedError

    def _device_peaks(self) -> Mapping[str, int | None]:
        """By tier, what each device held at most; None where nobody there measures it."""
        return {tier.name: 0 for tier in self.plan.tiers if tier.kind == "vram"}

    def _explain(self, error: WorkerDiedError) -> WorkerDiedError:
        """Why the worker died, where this engine knows more than how."""
        return error

    # -- details ------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the worker. Safe to repeat."""
        self._opened.close()

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self,
        do: str,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        **values: Any,
    ) -> dict[str, Any]:
        with self._explaining_death():
            return self._worker.ask(do, on_event, interruptible=True, **values)

    @contextlib.contextmanager
    def _explaining_death(self) -> Iterator[None]:
        """A worker that the meter killed did not fit."""
        try:
            yield
        except WorkerDiedError as error:
            if self._meter.overrun_bytes is not None:
                raise self._does_not_fit(self._meter.overrun_bytes) from None
            if self._cap and self._cap.has_killed:
                raise self._does_not_fit(
                    self._cap.limit_bytes + self._parent_bytes,
                    found="while running: the kernel ended the worker at the hard cap",
                ) from None
            raise self._explain(error) from None

    def _does_not_fit(self, needs_bytes: int, found: str = "") -> DoesNotFitError:
        return DoesNotFitError(
            tier="RAM", needs_bytes=needs_bytes, budget_bytes=self.plan.ram.limit_bytes, found=found
        )
