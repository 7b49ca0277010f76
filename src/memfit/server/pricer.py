"""Prices other plans of the served model, by a process (pricing_process.py) that stays for a while after the
last one, where the budget has room for it: the first price takes seconds, the next ones a fraction of one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from memfit.errors import WorkerDiedError
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Workload
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper

__all__ = ["Pricer"]

_REST_SECONDS = 60.0


class Pricer:
    """Used on the event loop; one price at a time, in the order in which they are asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._turn = asyncio.Lock()
        self._helper: Helper | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._is_ended = self._asks_again = False  # what was done to the process while it is asked
        self.held_bytes = 0  # by the process, while it stays

    async def price(self, budget: Budget, workload: Workload) -> dict[str, Any]:
        """The JSON of a plan, or of why none fits. Whoever stops waiting leaves the process to finish.

        Raises:
            MemfitError: as `memfit.plan` does; WorkerDiedError where the process died, of which the next
                question starts another.
        """
        async with self._turn:
            if self._ending:
                self._ending.cancel()
            event = await self._answer({"budget": asdict(budget), "workload": asdict(workload)})
        if event["event"] == "error":
            raise rebuild_error(event)
        answer: dict[str, Any] = event["answer"]
        return answer

    def begin_again(self, plan: Plan) -> None:
        """Beside another running plan. A question that is being answered is asked anew."""
        self._plan = plan
        self._end(asks_again=True)

    def close(self) -> None:
        self._end(asks_again=False)

    def _end(self, *, asks_again: bool) -> None:
        self._is_ended, self._asks_again = True, asks_again
        if not self._turn.locked():
            self._forget()
        elif self._helper:
            self._helper.kill()  # the thread that listens still needs the rest of it

    def _forget(self) -> None:
        if self._ending:
            self._ending.cancel()
            self._ending = None
        if self._helper:
            self._helper.kill()  # it holds nothing worth an orderly end
            self._helper.close()
            self._helper = None
        self.held_bytes = 0

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        while True:
            self._is_ended = False
            work = asyncio.ensure_future(asyncio.to_thread(self._ask, asked))
            try:
                return await asyncio.shield(work)
            except WorkerDiedError:
                if not (self._is_ended and self._asks_again):
                    raise
            finally:
                await asyncio.wait((work,))
                if work.exception() or self._is_ended:
                    self._forget()
                else:
                    self._rest()

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """On a thread."""
        plan = self._plan
        if self._helper is None:
            told = {"model": plan.spec.source, "engine": plan.engine, "identity": plan.identity}
            name = "the process that plans"
            self._helper = Helper(
                "memfit.server.pricing_process", json.dumps(told), name=name, own_session=True
            )
        self._helper.send(asked)
        event = self._helper.receive()
        if event is None:
            raise self._helper.obituary()
        self.held_bytes = event.get("held_bytes", self.held_bytes)
        return event

    def _rest(self) -> None:
        """Stay for a while; where there is no room, or nothing was planned yet, not at all."""
        ram = self._plan.ram
        if not 0 < self.held_bytes <= ram.limit_bytes - ram.total_bytes:
            self._forget()
            return
        self._ending = asyncio.get_running_loop().call_later(_REST_SECONDS, self._forget)
