"""One loaded model: the parent's side, for every engine that has a worker. Loads within the plan's limit,
answers, measures, reports. What only one engine does, its own session adds (engines/*/session.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from memfit.closing import Closing
from memfit.engines.channel import OverBudgetError
from memfit.engines.client import WorkerProcess
from memfit.engines.protocol import LoadOptions
from memfit.engines.report import CapReport, ModelBytes, Report, TierReport
from memfit.engines.request_stream import WorkerStream
from memfit.engines.requests import Request, Speed, Status
from memfit.engines.served import Served
from memfit.engines.session import Session
from memfit.errors import DoesNotFitError, InterruptedByUser, ModelError, WorkerDiedError
from memfit.hardware.nvidia import GpuBytes
from memfit.hub.header_only import is_header_only
from memfit.memory.hard_cap import HardCap
from memfit.memory.meter import Meter
from memfit.memory.others import Shared, process_tree, ram_shared
from memfit.memory.process_memory import process_memory
from memfit.planner.plan import Plan
from memfit.units import MIB

__all__ = ["WorkerSession"]

# CUDA takes pools for prompts that no plan counts yet: more than the budget is reported, but a run that
# computes rightly is not ended for them.
_POOL_BYTES = 128 * MIB


class WorkerSession(Closing, Session):
    """A context manager around one worker. Not for several threads at once."""

    plan: Plan
    _earlier_peak_bytes = 0  # in RAM, before there was this session's worker

    def __init__(self, plan: Plan, options: LoadOptions, start: Callable[[], WorkerProcess]) -> None:
        """Load the model; memory is watched from the first byte.

        With `options.count_parent` this process counts too, as the command line's does; a notebook's own data
        is not memfit's.

        Raises:
            DoesNotFitError: the plan does not fit, or loading was about to exceed its limit.
            UsageError: no hard cap can be made here.
            ModelError: only the model's header is here.
            EngineError: the engine refused the model, or its worker died.
        """
        count_parent = options.count_parent
        self.require_loadable(plan)
        self.plan = plan
        self._options = options
        self._stream: WorkerStream | None = None  # the newest
        self._speed = Speed()
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
            self._gpus = GpuBytes(gpus) if (gpus := self._gpu_ids()) else None
            self._meter = Meter(
                self._worker.pid,
                count_parent=count_parent,
                model_files=plan.spec.paths,
                limit_bytes=plan.ram.limit_bytes,
                on_overrun=self._worker.kill,
                gpu_bytes=self._gpus,
                gpu_limits={
                    tier.name: tier.limit_bytes + _POOL_BYTES for tier in plan.tiers if tier.kind == "vram"
                },
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
                    "load", report, limit_bytes=tier.limit_bytes - self._parent_bytes, **self._load_request()
                )
        except OverBudgetError as overrun:
            raise self._does_not_fit(overrun.needs_bytes + self._parent_bytes) from None
        self._meter.counts_cache = reply["leaves_cache"]
        self._meter.settle()
        self._loaded = reply
        self.has_chat_template: bool = reply["has_chat_template"]
        self.served = Served.from_json(reply.get("served"))

    def open(self, *, expected_tokens: float = 0) -> WorkerStream:
        def keep(speed: Speed) -> None:
            self._speed = speed

        self._stream = WorkerStream(
            self._worker,
            expected_tokens=expected_tokens,
            vocabulary=self._loaded["vocabulary"],
            explaining_death=self._explaining_death,
            check=self._check,
            on_speed=keep,
        )
        return self._stream

    def _check(self, request: Request) -> None:
        """Raises UsageError where the plan has no memory for it, or the engine cannot do it."""
        if request.embed:
            self.plan.require_embeds()
        elif not request.describes:
            self.plan.require_writes()
        if request.is_constrained:
            self.plan.require_schemas()
        if request.extras:
            self.plan.require_extras(request.extras)
        if request.score:
            self.plan.require_scores()

    def status(self) -> Status:
        said = self._stream.status if self._stream else Status()
        tiers = self._meter.tiers()
        return replace(said, held_bytes=tiers["ram"][0], tiers=tiers)

    def shared(self) -> dict[str, Shared]:
        held = self._meter.tiers()
        used = self._gpus.used() if self._gpus else {}
        ours = process_tree(os.getpid() if self._options.count_parent else self._worker.pid)
        return {
            "ram": ram_shared(ours),
            **{
                tier: Shared(capacity_bytes=whole, others_bytes=max(0, all_bytes - held[tier][0]))
                for tier, (all_bytes, whole) in used.items()
                if tier in held
            },
        }

    def measure(
        self, prompt_tokens: int, generated_tokens: int, *, depth: int = 0, repetitions: int = 1
    ) -> Speed:
        self.plan.require_writes()
        replies = []
        for _ in range(repetitions):
            replies.append(
                self._ask(
                    "measure", prompt_tokens=prompt_tokens, generated_tokens=generated_tokens, depth=depth
                )
            )
            if replies[-1]["cancelled"]:
                raise InterruptedByUser
        self._speed = Speed(
            prompt_tokens=prompt_tokens,
            prompt_seconds=median(reply["prompt_seconds"] for reply in replies),
            generated_tokens=generated_tokens,
            generation_seconds=median(reply["generation_seconds"] for reply in replies),
            threads=median(reply["threads"] for reply in replies),
        )
        return self._speed

    def report(self) -> Report:
        model = self._model_bytes()
        self._meter.settle()
        ram = max(self._meter.peak_bytes, self._earlier_peak_bytes)
        peaks = {"ram": ram, **self._device_peaks()}
        report = Report(
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
        if report.is_far_off and self.plan.prediction.basis == "calibrated":
            self._doubt()
        return report

    # -- what an engine adds ------------------------------------------------------------------------

    def _load_request(self) -> dict[str, Any]:
        """What this engine's worker is told to load."""
        raise NotImplementedError

    def _gpu_ids(self) -> Mapping[str, str | None]:
        """The PCI ids of this machine's GPUs that the plan uses, by tier."""
        return {}

    def _model_bytes(self) -> ModelBytes | None:
        """The engine's own account of what the model holds, where it gives one."""
        return None

    def _device_peaks(self) -> Mapping[str, int | None]:
        """By tier, what each device held at most; None where nobody there measures it."""
        names = [tier.name for tier in self.plan.tiers if tier.kind == "vram"]
        return {name: self._meter.gpu_peak_bytes(name) for name in names}

    def _doubt(self) -> None:
        """Have the speeds that this run was predicted by measured again, with the next plan."""

    def _explain(self, error: WorkerDiedError) -> WorkerDiedError:
        """Why the worker died, where this engine knows more than how."""
        return error

    # -- details ------------------------------------------------------------------------------------

    def close(self) -> None:
        self._opened.close()

    def _ask(self, do: str, **values: Any) -> dict[str, Any]:
        with self._explaining_death():
            return self._worker.ask(do, interruptible=True, **values)

    @contextlib.contextmanager
    def _explaining_death(self) -> Iterator[None]:
        """A worker that the meter killed did not fit."""
        try:
            yield
        except WorkerDiedError as error:
            if over := self._meter.overrun:
                tolerated = 0 if over.tier == "RAM" else _POOL_BYTES
                raise DoesNotFitError(
                    tier=over.tier, needs_bytes=over.held_bytes, budget_bytes=over.limit_bytes - tolerated
                ) from None
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
