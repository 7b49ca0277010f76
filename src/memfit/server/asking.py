"""A helper process that is asked once, heard on the event loop: the loop stays free, and leaving ends it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper

__all__ = ["Event", "helper_answer", "helper_events"]

Event = tuple[str, dict[str, Any]]  # what kind it is, and what it says


async def helper_answer(module: str, *arguments: str, name: str) -> Any:
    """What the last event says. Errors as `helper_events`."""
    async with aclosing(helper_events(module, *arguments, name=name)) as events:
        async for kind, event in events:
            if kind == "done":
                return event["answer"]
    raise AssertionError("its last event is its answer")


async def helper_events(module: str, *arguments: str, name: str) -> AsyncGenerator[Event]:
    """The events of `python -m module`, "done" the last; `name` is what errors call it. Closed early, the
    process is ended.

    Raises:
        MemfitError: as it was raised there, or the process died.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()

    def tell(said: dict[str, Any] | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(heard.put_nowait, said)

    def listen() -> None:
        with helper:
            while (event := helper.receive()) is not None:
                tell(event)
            tell(helper.obituary())

    helper = Helper(module, *arguments, name=name, own_session=True)
    threading.Thread(target=listen, name=f"hears {module}", daemon=True).start()
    try:
        while True:
            event = await heard.get()
            if isinstance(event, Exception):
                raise event
            kind = event.pop("event")
            if kind == "error":
                raise rebuild_error(event)
            yield kind, event
            if kind == "done":
                return
    finally:
        helper.kill()  # the thread that listens closes it
