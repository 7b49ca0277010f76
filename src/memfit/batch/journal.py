"""The journal of a batch: every finished line, on disk before anybody is told that it is finished.

Its first line says which job it belongs to; then comes one record a line, in the order in which they
finished. It may end anywhere, since its writer may be killed anywhere: what follows the last whole record
is cut off. One process at a time holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import UsageError
from memfit.hardware.folders import sync_folder
from memfit.units import MIB

__all__ = ["DISK_FULL", "AppendFile", "Journal", "Record", "encode_record", "parse_record"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_MAGIC = b'{"memfit_batch":1,'  # 1: the version of what follows
_RECORD = re.compile(rb'\{"line":([1-9][0-9]{0,17}),"(output|error)":(\{.*\})\}\n', re.DOTALL)
_HEADER_LIMIT_BYTES = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class Record:
    """Where one finished line lies in the journal; its text is one line of the output or error file."""

    number: int
    is_error: bool
    offset: int  # of its text
    length: int  # bytes


class AppendFile:
    """A file that grows by whole pieces: what fails half-way is taken back."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor
        self.size = os.fstat(descriptor).st_size  # bytes that are whole and may be relied on

    def append(self, data: bytes) -> None:
        """Write at the end, and to the disk itself.

        Raises:
            OSError: nothing was added. Its `filename` is this file.
        """
        try:
            self._write(data)
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):  # who opens the file next cuts it too
                os.ftruncate(self._descriptor, self.size)
            error.filename = self.name
            raise
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def has_line_end(self, offset: int) -> bool:
        """From there on."""
        while block := self.read(offset, MIB):
            if b"\n" in block:
                return True
            offset += len(block)
        return False

    def cut(self, size: int) -> None:
        if os.fstat(self._descriptor).st_size != size:
            os.ftruncate(self._descriptor, size)
        self.size = size

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        view, position = memoryview(data), self.size
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written


class Journal(AppendFile):
    """The records of one job, held against other processes until it is closed."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Take the journal at `path`, which may be a new one.

        Raises:
            UsageError: another process has it, or this is no journal.
            OSError: it cannot be opened.
        """
        super().__init__(str(path), _locked(path))
        self.path = path
        self.header: Mapping[str, Any] | None = None  # None: a new journal
        with ExitStack() as undo:
            undo.callback(self.close)
            if overwrite:
                self.cut(0)
            self.header = self._read_header()
            undo.pop_all()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the first line of a new journal."""
        self.cut(0)
        line = _encode_header(header)
        assert len(line) <= _HEADER_LIMIT_BYTES
        self.append(line)
        sync_folder(self.path.parent)
        self.header = header

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Drop the records, all at once: their texts are where they belong."""
        assert self.header is not None
        self.header = {**self.header, "complete": True, **counts}
        temporary = self.path.with_name(f"{self.path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        new = AppendFile(str(temporary), os.open(temporary, flags, 0o666))
        with ExitStack() as undo:
            undo.callback(temporary.unlink)
            with closing(new):
                new.append(_encode_header(self.header))
            undo.pop_all()
        os.replace(temporary, self.path)  # noqa: PTH105 - all of this module's writing is calls of os
        sync_folder(self.path.parent)

    def records(self) -> Iterator[Record]:
        """Every whole record; what comes after the last one is cut off."""
        with self.path.open("rb") as file:
            offset = len(file.readline())
            for line in file:
                record = parse_record(line, offset)
                if record is None:
                    break
                yield record
                offset += len(line)
        self.cut(offset)

    def _read_header(self) -> Mapping[str, Any] | None:
        with self.path.open("rb") as file:
            first = file.readline(_HEADER_LIMIT_BYTES)
        if not first.endswith(b"\n") and _MAGIC.startswith(first[: len(_MAGIC)]):
            return None  # its writer was killed, and had written nothing anywhere else yet
        with suppress(ValueError, RecursionError):
            header = json.loads(first) if first.startswith(_MAGIC) else None
            if isinstance(header, dict):
                return header
        raise UsageError(
            f"{self.path} is not a journal that this memfit knows; give another --output, or --overwrite"
        )


def encode_record(number: int, value: Mapping[str, Any], *, is_error: bool) -> bytes:
    kind = "error" if is_error else "output"
    return f'{{"line":{number},"{kind}":{json.dumps(value)}}}\n'.encode()


def parse_record(data: bytes, offset: int) -> Record | None:
    """The record that `data` is, which begins at `offset`; None where it is not a whole one."""
    match = _RECORD.fullmatch(data)
    if match is None or b"\0" in data:  # a disk that lost its power leaves zeros
        return None
    return Record(
        number=int(match[1]),
        is_error=match[2] == b"error",
        offset=offset + match.start(3),
        length=len(match[3]),
    )


def _encode_header(header: Mapping[str, Any]) -> bytes:
    return _MAGIC + json.dumps(header).encode().removeprefix(b"{") + b"\n"


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, for this process alone. A killed holder lets go.

    The lock is on the journal itself, so that no further file has to lie beside the output.
    """
    while True:
        with ExitStack() as undo:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{path} is in use: another memfit batch writes this output") from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    undo.pop_all()
                    return descriptor
        # It was replaced or removed between the two calls; the name means another file now.
