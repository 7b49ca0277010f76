"""Why a schema is refused, and where in it."""

from __future__ import annotations

__all__ = ["Refusal", "escaped"]


class Refusal(Exception):  # noqa: N818 - what check.py makes a message of
    """`pointer` is a JSON pointer into the schema, from "#"."""

    def __init__(self, pointer: str, why: str) -> None:
        super().__init__(f"{pointer}: {why}")
        self.pointer, self.why = pointer, why


def escaped(key: str) -> str:
    """A key as JSON pointers write it."""
    return key.replace("~", "~0").replace("/", "~1")
