"""What is closed at the end of a `with` block."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Closing"]

_Kind = TypeVar("_Kind", bound="Closing")


class Closing:
    """A context manager that ends with `close`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: _Kind) -> _Kind:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
