"""stdin, stdout and stderr made reliable: all three are open, and a result that cannot be written is told.

Shells, services and cron jobs give a program streams that are closed, full, left by their reader, or of an
encoding that lacks a letter.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from memfit.errors import OutputError, ReaderLeft

__all__ = ["open_streams"]

_IN, _OUT, _ERR = range(3)
_ERRORS = "memfit"  # the name of `_replace` among codecs
# What our own pictures and texts are made of, for an encoding that lacks it.
_PLAIN = {
    "█": "#",
    "▓": "=",
    "▒": "+",
    "░": ":",
    "·": ".",
    "…": "...",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "→": "->",
}


@contextlib.contextmanager
def open_streams() -> Iterator[None]:
    """For one command; streams that somebody has put in the place of the process's own stay as they are."""
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        yield
        return
    before = sys.stdin, sys.stdout, sys.stderr
    codecs.register_error(_ERRORS, _replace)
    _fill_gaps()
    if sys.stdin is None:
        sys.stdin = open(_IN, encoding="utf-8", closefd=False)  # noqa: SIM115 - no path, not ours
    result = _Result(io.FileIO(_OUT, "wb", closefd=False))
    sys.stdout = _text(result, sys.stdout)
    sys.stderr = _text(_Remarks(io.FileIO(_ERR, "wb", closefd=False)), sys.stderr, line_buffering=True)
    try:
        yield
    finally:
        with contextlib.suppress(OutputError):
            sys.stdout.flush()
        result.is_over = True
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before


class _Result(io.BufferedWriter):
    """Standard output. It fails again and again, since some swallow a failure, as `input` does.

    Not a raw file of ours: an interrupt between its write and its return would have all of it written twice.
    """

    is_over = False  # what a failure left in here goes nowhere

    def write(self, data: Any, /) -> int:
        if self.is_over:
            return len(data)
        with _as_our_error():
            return super().write(data)

    def flush(self) -> None:
        if not self.is_over:
            with _as_our_error():
                super().flush()


class _Remarks(io.BufferedWriter):
    """Standard error. A command whose remarks nobody can read still has a result."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def _as_our_error() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        why = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise OutputError(f"cannot write the result to standard output: {why}") from None


def _fill_gaps() -> None:
    """Open the closed ones of 0, 1 and 2: no file of ours must get such a number, and a stranger's text."""
    for number in (_IN, _OUT, _ERR):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number is taken. Standard output for reading, so that writing it still fails.
            os.open(os.devnull, os.O_WRONLY if number == _ERR else os.O_RDONLY)


def _text(buffer: io.BufferedWriter, before: Any, *, line_buffering: bool = False) -> io.TextIOWrapper:
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(buffer, encoding=encoding, errors=_ERRORS, line_buffering=line_buffering)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Letters that an encoding lacks: bytes of file names as they are, ours as something like them."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    if letter in _PLAIN:
        return _PLAIN[letter], error.start + 1
    return codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
