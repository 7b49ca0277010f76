"""A batch's input file: scanned once, then read line by line. Memory does not grow with the texts."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from memfit.batch.lines import Line, LineError
from memfit.engines.protocol import Sampling

__all__ = ["Input", "Lengths", "open_input"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the requests are, for planning; over all lines that could be read as JSON."""

    count: int
    mean_prompt_bytes: float  # UTF-8 of a prompt, or of all of a line's messages, without their template
    largest_prompt_bytes: int
    with_max_tokens: int  # lines that give their own limit; the next two are over these
    mean_max_tokens: float | None
    largest_max_tokens: int | None


class Input:
    """What one scan found, and the lines. A context manager."""

    path: Path | None  # None: standard input, kept in an unnamed file
    count: int  # requests: lines that are not blank
    last_number: int  # lines in the file
    blank_numbers: Sequence[int]
    sha256: str
    lengths: Lengths

    def items(self, skip: Container[int] = frozenset()) -> Iterator[Line | LineError]:
        """The requests in order, without those whose number is in `skip`.

        Raises:
            UsageError: the file was changed since it was scanned.
        """
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_input(
    source: str,
    defaults: Sampling,
    *,
    raw: bool = False,
    schema: Mapping[str, Any] | None = None,
    stdin: BinaryIO | None = None,
) -> Input:
    """Open and scan the file at `source`; "-" is `stdin`. The options are `parse_line`'s.

    Raises:
        UsageError: there is no such file, it cannot be read, or it holds no request.
    """
    raise NotImplementedError
