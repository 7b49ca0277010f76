"""Asks the network from a process of its own, which ends: what huggingface_hub holds in memory, 20 MiB, would
otherwise be taken from a run's RAM budget.

Back comes one JSON object a line: {"say": text}, and last {"answer": value} or {"error": class, "text": …}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from memfit import errors
from memfit.errors import HeaderError, MemfitError, ModelError

__all__ = ["ask"]


def ask(question: str, name: str, say: Callable[[str], None] | None = None) -> Any:
    """The answer of `python -m memfit.headers.remote QUESTION NAME`.

    Raises:
        MemfitError: as it was raised there.
    """
    command = [sys.executable, "-m", "memfit.headers.remote", question, name]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if "answer" in event:
                return event["answer"]
            if "error" in event:
                raise _rebuilt(event["error"], event["text"])
            if say:
                say(event["say"])
    raise ModelError(f"{name}: reading its header ended early, with code {process.returncode}")


def _rebuilt(kind: str, text: str) -> MemfitError:
    found = getattr(errors, kind)
    # Its parts are in the text already.
    error: MemfitError = ModelError(text) if issubclass(found, HeaderError) else found(text)
    return error
