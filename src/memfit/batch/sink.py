"""Where a batch's answers go: each line's exactly once, in order, through any interruption."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, TextIO

from memfit.batch.input import Input

__all__ = ["Sink", "open_sink"]


class Sink:
    """Takes finished lines. A context manager; leaving it saves what was added, also after an error."""

    done: Container[int]  # numbers of the lines that are finished, also by earlier runs
    answered: int  # how many
    failed: int
    complete: bool  # every line is done, and the journal is closed for good

    def add(
        self,
        number: int,
        *,
        output: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """One finished line: the JSON object for the output file, or that for the error file.

        Raises:
            MemfitError: as `flush`, which is called when much is buffered.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Save all that was added. Call it about once a second.

        Raises:
            MemfitError: the disk is full or broken. What was saved before is safe; calling it again is.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Flush, and let another process have the output."""
        raise NotImplementedError

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_sink(
    output: str,
    source: Input,
    *,
    identity: Mapping[str, Any],
    ordered: bool = True,
    overwrite: bool = False,
    stream: TextIO | None = None,
    on_error: Callable[[Mapping[str, Any]], None] | None = None,
) -> Sink:
    """Open the output file, or go on with it where an earlier run of the same job ended.

    `identity` is what else the answers depend on (JSON values): the model, the options. "-" writes to
    `stream` and keeps nothing for later; failed lines then go to `on_error` and not to a file.

    Raises:
        UsageError: the output belongs to another job, is in use, or cannot be written.
        MemfitError: the disk is full or broken.
    """
    raise NotImplementedError
