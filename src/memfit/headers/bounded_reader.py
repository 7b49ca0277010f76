"""Reads forward through a GGUF file's header, and trusts no length in it.

Each length is checked before anything is allocated or read. So the limits below bound memory and time,
whatever the file claims. Knows nothing of GGUF's fields.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Protocol

from memfit.errors import HeaderError
from memfit.units import MIB

__all__ = ["BoundedReader", "Readable"]

# Real headers end within 20 MiB. A sparse file can have any size, so the file's end is no bound.
_LARGEST_HEADER_BYTES = 256 * MIB
# A vocabulary of 262,144 tokens with its merges has 0.8 million strings; walking one takes 0.1 µs.
_MOST_STRINGS = 2**22
_WINDOW_BYTES = MIB
_LENGTH = struct.Struct("<Q")


class Readable(Protocol):
    """An open file, here or on a server."""

    def seek(self, position: int, /) -> object: ...

    def read(self, count: int, /) -> bytes: ...


class BoundedReader:
    """One pass over the head of one open file.

    `field` names the part being read; the caller sets it, and every error carries it.
    """

    def __init__(
        self, path: Path, file: Readable, file_bytes: int, *, window_bytes: int = _WINDOW_BYTES
    ) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self.field = "header"
        self._file = file
        self._window_bytes = window_bytes
        self._limit = min(file_bytes, _LARGEST_HEADER_BYTES)
        self._window = b""
        self._window_start = 0  # where in the file the window begins
        self._index = 0  # where in the window the next byte is; beyond its end after a skip
        self._strings_left = _MOST_STRINGS

    @property
    def position(self) -> int:
        """Offset of the next byte in the file."""
        return self._window_start + self._index

    def error(self, problem: str) -> HeaderError:
        return HeaderError(self.path, self.field, problem)

    def peek(self, most: int) -> bytes:
        """The next bytes without passing over them: `most`, or what there is."""
        count = min(most, self._limit - self.position)
        self._fill(count)
        return self._window[self._index : self._index + count]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        self._fill(layout.size)
        values = layout.unpack_from(self._window, self._index)
        self._index += layout.size
        return values

    def text(self, *, largest_bytes: int, errors: str = "strict") -> str:
        """A string in GGUF's form, a 64-bit length and UTF-8; `errors` as in `bytes.decode`."""
        (length,) = self.unpack(_LENGTH)
        self._need(length)
        if length > largest_bytes:
            raise self.error(f"a string of {length} bytes; at most {largest_bytes} are allowed here")
        self._fill(length)
        start, self._index = self._index, self._index + length
        try:
            return str(memoryview(self._window)[start : self._index], "utf-8", errors)
        except UnicodeDecodeError as problem:
            raise self.error(f"not UTF-8 text: {problem.reason}") from None

    def skip(self, count: int) -> None:
        """Pass over `count` bytes unread."""
        self._need(count)
        self._index += count

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, hopping from length to length."""
        self._need(count * _LENGTH.size)
        if count > self._strings_left:
            raise self.error(f"{count} strings; memfit reads headers with at most {_MOST_STRINGS}")
        self._strings_left -= count
        unpack_from = _LENGTH.unpack_from
        while count:
            self._fill(_LENGTH.size)
            window, index = self._window, self._index
            last = len(window) - _LENGTH.size
            while count and index <= last:
                index += 8 + unpack_from(window, index)[0]
                count -= 1
            self._index = index
            self._need(0)

    def _need(self, count: int) -> None:
        end = self.position + count
        if end <= self._limit:
            return
        if end > self.file_bytes:
            raise self.error(
                f"truncated: needs bytes to {end}, the file ends at {self.file_bytes}; download it again"
            )
        raise self.error(f"needs bytes to {end}; no header is larger than {_LARGEST_HEADER_BYTES}")

    def _fill(self, count: int) -> None:
        """Make the next `count` bytes lie in the window."""
        if self._index + count <= len(self._window):
            return
        self._need(count)
        start = self.position
        self._window = b""  # let go of the old one before the new one is there
        self._file.seek(start)
        self._window = self._file.read(min(max(count, self._window_bytes), self._limit - start))
        self._window_start, self._index = start, 0
        if len(self._window) < count:
            raise self.error("the file became shorter while it was being read")
