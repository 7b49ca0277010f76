"""The process that plans for pricer.py: its one argument says what model, each message what to plan.

It keeps what it learned of the model, so that every plan but the first takes a fraction of a second.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import psutil

from memfit.api import open_planner
from memfit.engines.protocol import Planner, PlanOptions
from memfit.errors import DoesNotFitError, EngineError, MemfitError, WorkerDiedError
from memfit.known_losses import with_loss
from memfit.memory.process_memory import group_bytes, process_memory
from memfit.planner.request import Budget, Workload
from memfit.processes.child import Parent

_MEASURED_SECONDS = 1.0  # measuring takes as long as a price


class _Prices:
    """Of one model."""

    def __init__(self, model: str, engine: str, identity: Mapping[str, Any]) -> None:
        self._model, self._engine, self._identity = model, engine, identity
        self._opened = ExitStack()
        self._planner: Planner | None = None
        self._fixed: tuple[Any, ...] = ()  # what a planner is opened for

    def plan(self, budget: Budget, workload: Workload) -> dict[str, Any]:
        devices = [*(budget.vram if isinstance(budget.vram, dict) else (budget.vram,)), *budget.rpc]
        fixed = (workload.threads, workload.repack, workload.grammars, *devices)
        if self._planner is None or fixed != self._fixed:
            self._forget()
            options = PlanOptions(budget=budget, many=True, count_parent=True, **self._identity)
            planner = open_planner(self._model, self._engine, options, workload)
            self._planner, self._fixed = self._opened.enter_context(planner), fixed
        try:
            planned = with_loss(self._planner.plan(workload, budget))
        except WorkerDiedError:
            self._forget()  # the next price gets another
            raise
        try:
            planned.require_fit()
        except DoesNotFitError as error:
            return error.to_json()
        return planned.to_json()

    def _forget(self) -> None:
        self._planner = None  # also where no other can be opened: a closed one answers nobody
        self._opened.close()


def main() -> int:
    parent = Parent()
    prices = _Prices(**json.loads(sys.argv[1]))
    held_bytes, measured = 0, float("-inf")
    for asked in parent.messages():
        try:
            answer = prices.plan(read_budget(asked["budget"]), Workload(**asked["workload"]))
            if time.monotonic() - measured > _MEASURED_SECONDS:
                held_bytes, measured = _held_bytes(), time.monotonic()
            parent.send("priced", answer=answer, held_bytes=held_bytes)
        except MemfitError as error:
            parent.send_error(error)
        except Exception as error:  # the edge of this process
            traceback.print_exc()
            parent.send_error(EngineError(f"{type(error).__name__}: {error}"))
    return 0


def read_budget(values: dict[str, Any]) -> Budget:
    """Of its fields, as JSON has them."""
    if isinstance(values["vram"], dict):  # numbers of GPUs, which JSON has as texts
        values["vram"] = {int(key) if key.isdigit() else key: size for key, size in values["vram"].items()}
    return Budget(**values)


def _held_bytes() -> int:
    """By this process and those that it asks."""
    processes = [process_memory()]
    for child in psutil.Process().children(recursive=True):
        try:
            processes.append(process_memory(child.pid))
        except ProcessLookupError:
            continue
    return group_bytes(processes)


if __name__ == "__main__":
    sys.exit(main())
