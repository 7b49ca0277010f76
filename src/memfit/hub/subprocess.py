"""Asks the network from a process of its own, which ends: what huggingface_hub holds in memory, 20 MiB, would
otherwise be taken from a run's RAM budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memfit.errors import ModelError, WorkerDiedError
from memfit.processes.helper import ask_helper

__all__ = ["ask"]


def ask(question: str, name: str, say: Callable[[str], None] | None = None) -> Any:
    """The answer of `python -m memfit.hub QUESTION NAME`.

    Raises:
        MemfitError: as it was raised there.
    """

    def hear(_: str, event: dict[str, Any]) -> None:
        if say:
            say(event["text"])

    try:
        return ask_helper(
            "memfit.hub", question, name, name="the process that asks the network", on_event=hear
        )["answer"]
    except WorkerDiedError as death:
        raise ModelError(f"{name}: {death}") from None
