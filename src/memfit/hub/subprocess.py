"""The parent's side of asking the network: a subprocess (`python -m memfit.hub`) does it, and its memory
ends with it.

huggingface_hub holds 20 MiB, which a run's RAM budget would otherwise lose.
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
