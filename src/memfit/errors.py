"""Every error that memfit raises on purpose, and the exit code that each one becomes.

    MemfitError
    ├── UsageError            2   the request makes no sense: a bad size, a prompt longer than the context
    │   ├── WrongValueError       a single value of it; each edge has its own name for the value
    │   └── ContextExceededError  a prompt is longer than what is left for it
    ├── DoesNotFitError       3   the budget is too small; says needed, short and what to try
    ├── ModelError            4   the model cannot be had
    │   ├── ModelNotFoundError    there is nothing at that place
    │   └── HeaderError           there is something, and its header is damaged or not understood
    ├── EngineError           5   the engine failed
    │   ├── EngineMissingError    not installed, or not the build that memfit was written for
    │   └── WorkerDiedError       the worker process ended: killed, out of memory, or aborted
    ├── OutputError           6   the result cannot be written: the disk is full, the output closed
    │   └── ReaderLeft      141   whoever read our output has left, and nothing is said
    └── InterruptedByUser   130   Ctrl-C

A message says what, where, got, needed and what to try. Only the command line's edge catches these.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from memfit.units import format_bytes

__all__ = [
    "ContextExceededError",
    "DoesNotFitError",
    "EngineError",
    "EngineMissingError",
    "HeaderError",
    "InterruptedByUser",
    "MemfitError",
    "ModelError",
    "ModelNotFoundError",
    "OutputError",
    "ReaderLeft",
    "UsageError",
    "WorkerDiedError",
    "WrongValueError",
    "option_name",
    "readable",
]

# The command line's options that are not called as the values are.
_OPTIONS = {"context": "--ctx", "generated_tokens": "--gen-tokens", "cpu_moe_layers": "--n-cpu-moe"}


def readable(text: str, *, most: int = 2000, kept: str = "\n\t") -> str:
    """A stranger's text fit for a terminal: no control characters but those `kept`, and not endless."""
    shown = "".join(
        letter if letter.isprintable() or letter in kept else "\N{REPLACEMENT CHARACTER}"
        for letter in text[:most]
    )
    return shown + " …" if len(text) > most else shown


class MemfitError(Exception):
    """The root: any error whose message is meant for the user.

    For programs, `field` is the option, the place or the part of a file that it is about, `got` what was
    there, and `needed` what would do: numbers where they are some, bytes of memory. None: not known.
    """

    exit_code = 5
    field: str | None = None
    got: Any = None
    needed: Any = None

    def __init__(
        self, message: str, *, field: str | None = None, got: Any = None, needed: Any = None
    ) -> None:
        super().__init__(message)
        self.field, self.got, self.needed = field, got, needed

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints instead of a result."""
        return {
            "error": {
                "message": readable(str(self)),
                "field": self.field,
                # JSON has no infinity, and no "not a number".
                "got": self.got if not isinstance(self.got, float) or isfinite(self.got) else str(self.got),
                "needed": self.needed,
            }
        }


class UsageError(MemfitError):
    """The request itself is wrong; nothing was started."""

    exit_code = 2


class WrongValueError(UsageError):
    """A value of a budget, a workload or a request that nothing can be done with.

    `name` is the value's own: "max_tokens", or "vram 1" where there are several. Each edge has its own name
    for it. The message has the command line's, `--max-tokens`; `as_field` makes the message of another edge.
    """

    def __init__(
        self, name: str, said: str, *, got: Any = None, needed: Any = None, field: str | None = None
    ) -> None:
        """`said` follows the name, with its colon or blank: " is 0; it must be above 0"."""
        field = field or option_name(name)
        super().__init__(field + said, field=field, got=got, needed=needed)
        self.name, self.said = name, said

    def as_field(self, field: str) -> WrongValueError:
        return WrongValueError(self.name, self.said, got=self.got, needed=self.needed, field=field)


class ContextExceededError(UsageError):
    """A prompt of `got` tokens, where at most `needed` find room."""


def option_name(name: str) -> str:
    """What the command line calls a value: `--max-tokens` for "max_tokens", `--vram 1` for "vram 1"."""
    word, *rest = name.split(" ", 1)
    return " ".join([_OPTIONS.get(word) or f"--{word.replace('_', '-')}", *rest])


class DoesNotFitError(MemfitError):
    """The budget is smaller than what the model needs.

    `needs_bytes` and `budget_bytes` are totals of one tier; `suggestions` are options that do fit. Where it
    was `found` later than by planning, at least so much is needed. `plan` is the JSON of the plan that is
    refused.
    """

    exit_code = 3

    def __init__(
        self,
        *,
        tier: str,
        needs_bytes: int,
        budget_bytes: int,
        suggestions: tuple[str, ...] = (),
        found: str = "",
    ) -> None:
        self.tier = tier
        self.needs_bytes = needs_bytes
        self.budget_bytes = budget_bytes
        self.short_bytes = needs_bytes - budget_bytes
        self.suggestions = suggestions
        text = (
            f"does not fit in {tier}: needs {format_bytes(needs_bytes)}, "
            f"budget {format_bytes(budget_bytes)}, short {format_bytes(self.short_bytes)}"
        )
        if found:
            text += f"; found {found}"
        if suggestions:
            text += f"; try {' or '.join(suggestions)}"
        super().__init__(text, field=tier, got=budget_bytes, needed=needs_bytes)
        self.plan: Mapping[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """The refused plan, where there is one, with the shortness and the error."""
        return {
            **self.plan,
            "fits": False,
            "needs_bytes": self.needs_bytes,
            "budget_bytes": self.budget_bytes,
            "short_bytes": self.short_bytes,
            "try": list(self.suggestions),
            **super().to_json(),
        }


class ModelError(MemfitError):
    """The model is missing or cannot be read."""

    exit_code = 4


class ModelNotFoundError(ModelError):
    """Nothing is at the place that was named."""


class HeaderError(ModelError):
    """A model file's header is damaged, or holds something this version does not know.

    `path` is the file and `field` the part of it that was being read.
    """

    def __init__(self, path: object, field: str, problem: str) -> None:
        super().__init__(f"cannot read {path}: {field}: {problem}", field=field)
        self.path = path

    def to_json(self) -> dict[str, Any]:
        document = super().to_json()
        document["error"]["path"] = str(self.path)
        return document


class EngineError(MemfitError):
    """The engine failed while loading or running."""

    exit_code = 5


class EngineMissingError(EngineError):
    """The engine is not installed, or is another build than the one memfit knows."""


class WorkerDiedError(EngineError):
    """The worker process ended before it answered."""


class OutputError(MemfitError):
    """There is a result, and it cannot be written to where it was to go."""

    exit_code = 6


class ReaderLeft(OutputError):  # noqa: N818 - not a fault
    """Whoever read standard output has left, as `head` does."""

    exit_code = 141  # as a shell counts a program that SIGPIPE ended

    def __init__(self) -> None:
        super().__init__("whoever read standard output has left")


class InterruptedByUser(MemfitError):  # noqa: N818 - not a fault
    """The user pressed Ctrl-C."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted")
