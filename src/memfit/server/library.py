"""The library as the server's event loop sees it: models are listed, pulled and deleted by processes of their
own (hub/library_work.py), whose memory does not count in the budget and ends with them.

Knows no API, but for how clients of Ollama write names.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from memfit.errors import UsageError, readable
from memfit.hub.name_suggestions import hub_name
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper
from memfit.server.failures import RefusedError

__all__ = ["Library", "library_name"]

_FRESH_SECONDS = 10.0  # for which a list holds; other programs download too
_MOST_PULLS = 4
_LATEST = ":latest"  # what clients add to a name without a tag
_HUB = re.compile(r"(?:https?://)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_FILE = re.compile(r"https://[^?#]+\.gguf(?:[?#].*)?", re.IGNORECASE | re.DOTALL)

_Event = tuple[str, dict[str, Any]]


def library_name(name: str) -> str:
    """MODEL as memfit has it, of hf.co/org/repo:TAG, hf:org/repo:TAG or the URL of a file.

    Raises:
        UsageError: it is something else; says what to send.
    """
    name = name.removesuffix(_LATEST)
    if name.startswith("hf:") or _FILE.fullmatch(name):
        return name
    meant = hub_name(name)
    if meant and _HUB.match(name):
        return meant
    raise UsageError(
        f"{readable(name, most=200, kept='')}: models come from the Hugging Face hub or a URL: send "
        f"hf.co/org/repo:Q4_K_M or https://…/file.gguf{f'; this one is {meant}' if meant else ''}",
        field="model",
    )


class Library:
    """On the event loop."""

    def __init__(self) -> None:
        self._listing = asyncio.Lock()
        self._models: list[dict[str, Any]] = []
        self._listed = float("-inf")  # when
        self._pulled: set[str] = set()

    async def models(self) -> list[dict[str, Any]]:
        """The whole ones, as hub/library_work.py describes them. Asked once for all who ask at a time.

        Raises:
            MemfitError: the cache cannot be read.
        """
        async with self._listing:
            if time.monotonic() - self._listed > _FRESH_SECONDS:
                self._models = await _answer("models")
                self._listed = time.monotonic()
            return self._models

    async def pull(self, model: str) -> AsyncGenerator[_Event]:
        """The events of a download (hub/library_work.py), until it is whole. Closed early, it ends, and what
        has come is kept.

        Raises:
            RefusedError: it is being pulled, or too many are.
            MemfitError: as `memfit pull`.
        """
        if model in self._pulled:
            raise RefusedError(409, "conflict_error", f"{model} is being downloaded already", field="model")
        if len(self._pulled) >= _MOST_PULLS:
            raise RefusedError(429, "rate_limit_error", f"{_MOST_PULLS} models are being downloaded already")
        self._pulled.add(model)
        try:
            async with aclosing(_work("download", model)) as events:
                async for event in events:
                    yield event
        finally:
            self._pulled.discard(model)
            self._forget()

    async def delete(self, model: str, kept: Sequence[Path]) -> bool:
        """Whether it was deleted: not where it has one of the files that are `kept`.

        Raises:
            MemfitError: as `library_work.delete`.
        """
        try:
            freed = (await _answer("delete", model, *map(str, kept)))["freed_bytes"]
            return freed is not None
        finally:
            self._forget()

    def _forget(self) -> None:
        self._listed = float("-inf")


async def _answer(question: str, *arguments: str) -> Any:
    async with aclosing(_work(question, *arguments)) as events:
        async for kind, event in events:
            if kind == "done":
                return event["answer"]
    raise AssertionError("its last event is its answer")


async def _work(question: str, *arguments: str) -> AsyncGenerator[_Event]:
    """The events of the hub's process, "done" the last. Closed early, the process is ended.

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

    helper = Helper("memfit.hub", question, *arguments, name="the library's process", own_session=True)
    threading.Thread(target=listen, name="library", daemon=True).start()
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
