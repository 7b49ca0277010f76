"""The library as the server's event loop sees it: models are listed, pulled and deleted by processes of their
own (hub/library_work.py), and planned by others (planning_process.py), whose memory does not count in the
budget and ends with them.

Knows no API, but for how clients of Ollama write names.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memfit.errors import UsageError, readable
from memfit.hub.name_suggestions import hub_name
from memfit.planner.request import Budget, Workload
from memfit.server.asking import Event, helper_answer, helper_events
from memfit.server.failures import RefusedError

__all__ = ["LATEST", "Library", "library_name"]

_NAME = "the library's process"
_FRESH_SECONDS = 10.0  # for which a list holds; other programs download too
_MOST_PULLS = 4
_MOST_LETTERS = 8000  # of a name: a signed URL has some hundreds
LATEST = ":latest"  # what clients add to a name without a tag
_REPOSITORY = re.compile(r"hf:([^/:]+/[^/:]+)(?:[/:].*)?", re.DOTALL)
_HUB = re.compile(r"(?:https?://)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_FILE = re.compile(r"https://[^?#]+\.gguf(?:[?#].*)?", re.IGNORECASE | re.DOTALL)


def library_name(name: str) -> str:
    """MODEL as memfit has it, of hf.co/org/repo:TAG, hf:org/repo:TAG or the URL of a file.

    Raises:
        UsageError: it is something else; says what to send.
    """
    name = name.removesuffix(LATEST)
    if len(name) > _MOST_LETTERS or not name.isprintable():  # no command line takes it
        raise UsageError(f"{readable(name, most=200, kept='')}: no model has such a name", field="model")
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
        self._choosing = asyncio.Lock()
        self._planning = asyncio.Lock()
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
                self._models = await helper_answer("memfit.hub", "models", name=_NAME)
                self._listed = time.monotonic()
            return self._models

    async def choices(self, name: str) -> dict[str, Any]:
        """The quantizations that a repository on the hub holds, and smaller models of its owner, as
        hub/remote_model.py lists them. `name` is a client's, of the repository or of a model in it. One at a
        time, as plans are: each takes a process.

        Raises:
            UsageError: it names no repository.
            MemfitError: the hub has none of that name, or fails.
        """
        found = _REPOSITORY.fullmatch(library_name(name))
        if not found:
            raise UsageError(
                f"{readable(name, most=200, kept='')}: the quantizations of a repository on the hub are "
                "listed: send hf.co/org/repo",
                field="model",
            )
        async with self._choosing:
            listed: dict[str, Any] = await helper_answer("memfit.hub", "choices", found[1], name=_NAME)
            return listed

    async def plan(self, model: str, budget: Budget, workload: Workload) -> dict[str, Any]:
        """The JSON of another model's plan, also of one that is not here. One at a time, in the order of the
        questions; whoever leaves ends it.

        Raises:
            MemfitError: as `memfit.plan`.
        """
        asked = {"model": model, "budget": asdict(budget), "workload": asdict(workload)}
        module = "memfit.server.planning_process"
        async with self._planning:
            planned: dict[str, Any] = await helper_answer(
                module, json.dumps(asked), name="the process that plans"
            )
            return planned

    async def pull(self, model: str) -> AsyncGenerator[Event]:
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
            async with aclosing(helper_events("memfit.hub", "download", model, name=_NAME)) as events:
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
            freed = await helper_answer("memfit.hub", "delete", model, *map(str, kept), name=_NAME)
            return freed["freed_bytes"] is not None
        finally:
            self._forget()

    def _forget(self) -> None:
        self._listed = float("-inf")
