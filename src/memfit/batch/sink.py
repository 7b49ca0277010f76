"""Writes a batch's answers: to the journal, and from there each line once, in order, to the output or the
error file.

The journal is written first, and the output and the error file are copied from it. So whatever stops a run,
the journal knows what these two have to hold, and the next run makes it true. Knows nothing of files' names.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from memfit.batch.input import Input
from memfit.batch.journal import DISK_FULL, AppendFile, Record, encode_record, parse_record
from memfit.closing import Closing
from memfit.errors import OutputError, UsageError
from memfit.units import MIB

__all__ = ["Outlet", "Sink"]

_BUFFER_BYTES = MIB  # of finished lines, which a kill loses
_COPY_BYTES = MIB  # in memory at a time
_OPEN, _ANSWERED, _FAILED, _BLANK = range(4)


class Outlet(Protocol):
    """Where finished texts go: whole lines, in the order that is theirs."""

    def append(self, data: bytes) -> None:
        """Raises OSError: nothing was added."""
        ...

    def close(self) -> None: ...


class Sink(Closing):
    """Takes finished lines. A context manager; leaving it saves what was added, also after an error."""

    def __init__(
        self,
        source: Input,
        journal: AppendFile,
        answers: Outlet,
        failures: Outlet,
        *,
        ordered: bool,
        on_complete: Callable[[Mapping[str, int]], None] | None = None,
    ) -> None:
        self.done = Done(source)  # the lines that are finished, also by earlier runs
        self.answered = self.failed = 0  # how many of them
        self.complete = False  # every line is, and `on_complete` has heard of it
        self._journal, self._answers, self._failures = journal, answers, failures
        self._ordered, self._on_complete = ordered, on_complete
        self._places = _Places(source.last_number)
        self._unsaved: list[bytes] = []  # records
        self._unsaved_bytes = 0
        self._saved, self._total = 0, source.count
        self._within_flush = False
        # Lines in the journal whose text may now be copied, in the order of the file it goes to.
        self._answers_due: deque[int] = deque()
        self._failures_due: deque[int] = deque()
        self._next = 1  # the first line that an output in order waits for

    def add(
        self, number: int, *, output: Mapping[str, Any] | None = None, error: Mapping[str, Any] | None = None
    ) -> None:
        """One finished line: the JSON object for the output file, or that for the error file.

        Raises:
            OutputError: as `flush`, which is called when much is buffered.
        """
        value = output if error is None else error
        assert value is not None and (output is None or error is None), "an answer or an error"
        assert number not in self.done, f"line {number} was finished before"
        record = encode_record(number, value, is_error=error is not None)
        self._count(number, is_error=error is not None)  # first: Ctrl-C may come between the two
        self._unsaved.append(record)
        self._unsaved_bytes += len(record)
        if self._unsaved_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Save all that was added. Call it about once a second.

        One that anything but a full file ended, as Ctrl-C, may only be followed by `close`.

        Raises:
            OutputError: the disk is full or broken. What was saved before is safe; calling it again is.
        """
        assert not self._within_flush
        self._within_flush = True
        try:
            self._save()
            self._copy(self._answers_due, self._answers)
            self._copy(self._failures_due, self._failures)
            if self._saved == self._total and not self.complete:
                if self._on_complete:
                    self._on_complete({"answered": self.answered, "failed": self.failed})
                self.complete = True
        except OSError as error:
            self._within_flush = False
            raise self._explained(error) from None
        self._within_flush = False

    def close(self) -> None:
        """Flush, and let another process have the output."""
        try:
            # A flush that Ctrl-C ended is not gone on with: only the files know how far it came.
            if not self._within_flush:
                self.flush()
        finally:
            for file in (self._journal, self._answers, self._failures):
                file.close()

    def resume(self, records: Iterable[Record], output: AppendFile, errors: AppendFile | None) -> None:
        """Learn what the journal has, and bring the two files to where they have to be.

        Raises:
            UsageError: one of them holds what this job never wrote.
            MemfitError: as `flush`.
        """
        for record in records:
            if not self.done.knows(record.number):
                raise UsageError(
                    f"{self._journal.name} is damaged: it has a line {record.number}; "
                    "give another --output, or --overwrite to start over"
                )
            if record.number not in self.done:
                self._count(record.number, is_error=record.is_error)
                self._learn(record)
        self._compare(self._answers_due, output)
        if errors:
            self._compare(self._failures_due, errors)
        self.flush()

    def settle(self, *, answered: int, failed: int) -> None:
        """Of a job that is complete: nothing is left to do."""
        self.done.add_all()
        self.answered, self.failed, self.complete = answered, failed, True

    def _count(self, number: int, *, is_error: bool) -> None:
        self.done.add(number, is_error=is_error)
        if is_error:
            self.failed += 1
        else:
            self.answered += 1

    def _save(self) -> None:
        if not self._unsaved:
            return
        offset = self._journal.size
        self._journal.append(b"".join(self._unsaved))
        for data in self._unsaved:
            record = parse_record(data, offset)
            assert record is not None
            self._learn(record)
            offset += len(data)
        self._unsaved, self._unsaved_bytes = [], 0

    def _learn(self, record: Record) -> None:
        """A line is in the journal: whose text may be copied now?"""
        self._places.put(record)
        self._saved += 1
        if record.is_error:
            self._failures_due.append(record.number)
        elif not self._ordered:
            self._answers_due.append(record.number)
        while self._ordered and (self._next in self._places or self.done.is_blank(self._next)):
            if self.done.is_answered(self._next):
                self._answers_due.append(self._next)
            self._next += 1

    def _copy(self, due: deque[int], outlet: Outlet) -> None:
        while due:
            texts = list(self._texts(due))
            outlet.append(b"".join(texts))
            for _ in texts:
                due.popleft()

    def _texts(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The texts of the first lines, as many as fit in memory."""
        size = 0
        for number in numbers:
            yield (text := self._text(number))
            size += len(text)
            if size >= _COPY_BYTES:
                return

    def _text(self, number: int) -> bytes:
        return self._journal.read(*self._places.of(number)) + b"\n"

    def _compare(self, due: deque[int], file: AppendFile) -> None:
        """Take what the file has already off the list, and a torn line off the file."""
        position = 0
        while due and (text := self._text(due[0])) == file.read(position, len(text)):
            position += len(text)
            due.popleft()
        if file.has_line_end(position):
            raise UsageError(
                f"{file.name} holds what this job never wrote. Move it away and run the same command again, "
                "which writes it anew from its journal; or give another --output, or --overwrite"
            )
        file.cut(position)

    def _explained(self, error: OSError) -> OutputError:
        reason = f"cannot write {error.filename or self._journal.name}: {error.strerror or error}"
        if error.errno in DISK_FULL:
            reason = f"the disk is full: cannot write {error.filename}"
        if not self._on_complete:
            return OutputError(reason)
        lines = "1 line is" if self._saved == 1 else f"{self._saved} lines are"
        return OutputError(f"{reason}. {lines} safe; once it can be written, run the same command again")


class Done:
    """Which lines are finished: one byte a line, since there may be millions."""

    def __init__(self, source: Input) -> None:
        self._states = bytearray(source.last_number + 1)
        for number in (0, *source.blank_numbers):
            self._states[number] = _BLANK

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._states[number] != _OPEN

    def knows(self, number: int) -> bool:
        return number < len(self._states) and self._states[number] != _BLANK

    def is_answered(self, number: int) -> bool:
        return self._states[number] == _ANSWERED

    def is_blank(self, number: int) -> bool:
        return number < len(self._states) and self._states[number] == _BLANK

    def add(self, number: int, *, is_error: bool) -> None:
        self._states[number] = _FAILED if is_error else _ANSWERED

    def add_all(self) -> None:
        self._states = bytearray([_ANSWERED]) * len(self._states)


class _Places:
    """Where each line's text lies in the journal: 16 bytes a line."""

    def __init__(self, last_number: int) -> None:
        self._offsets = array("Q", bytes(8 * (last_number + 1)))  # 0: nowhere, for a header comes first
        self._lengths = array("Q", bytes(8 * (last_number + 1)))

    def __contains__(self, number: int) -> bool:
        return number < len(self._offsets) and self._offsets[number] > 0

    def put(self, record: Record) -> None:
        self._offsets[record.number], self._lengths[record.number] = record.offset, record.length

    def of(self, number: int) -> tuple[int, int]:
        return self._offsets[number], self._lengths[number]
