"""A batch's input file: scanned once, then read line by line. Memory does not grow with the texts."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import stat
import tempfile
from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from memfit.batch.kinds import END_BYTES, require_lines, require_text
from memfit.batch.lines import LINE_LIMIT_BYTES, Line, LineError, custom_id_of, parse_line
from memfit.closing import Closing
from memfit.engines.requests import Sampling
from memfit.errors import MemfitError, UsageError
from memfit.units import MIB

__all__ = ["Input", "InputSizes", "open_input", "scratch_file"]

_DISK_FOLDER = Path("/var/tmp")  # /tmp is memory on many systems
_Parse = Callable[[int, bytes], Line]


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """How long the requests are, for planning, over all lines that could be read as JSON."""

    count: int
    mean_prompt_bytes: float  # UTF-8 of a prompt, or of all of a line's messages, without their template
    largest_prompt_bytes: int
    with_max_tokens: int  # lines that give their own limit; the next two are over these
    mean_max_tokens: float | None
    largest_max_tokens: int | None


class Input(Closing):
    """What one scan found, and the lines. A context manager."""

    def __init__(self, file: IO[bytes], path: Path | None, parse: _Parse) -> None:
        self.path = path  # None: standard input, kept in an unnamed file
        self._file, self._parse = file, parse
        file.seek(0)
        head = file.read(END_BYTES)
        require_text(head, path)
        scan = _Scan()
        self._version = _version(file)
        for number, data in _lines(file, scan.hash.update):
            scan.add(number, data)
        self._first_numbers: dict[int, int] = {}  # of lines whose custom_id an earlier line has: that line's
        if scan.count:
            first = next(self.items(), None)
            problem = str(first) if isinstance(first, LineError) else ""
            require_lines(head, _tail(file), path, objects=scan.objects, problem=problem)
        self.count = scan.count  # requests: lines that are not blank
        self.last_number = scan.last_number  # lines in the file
        self.blank_numbers: Sequence[int] = scan.blank_numbers
        self.sha256 = scan.hash.hexdigest()
        self.sizes = scan.sizes()
        self.has_schemas = scan.has_schemas  # of answers, in any line
        self._longest_number = scan.longest_number
        self._first_numbers = self._repeated(scan.suspects)

    def items(self, skip: Container[int] = frozenset()) -> Iterator[Line | LineError]:
        """The requests in order, without those whose number is in `skip`.

        Raises:
            UsageError: the file was changed since it was scanned.
        """
        for number, data in _lines(self._file):
            if _version(self._file) != self._version:
                raise UsageError(f"{self.path} was changed while it was being worked on")
            if number not in skip and not _is_blank(data):
                yield self._item(number, data)

    def sample(self, count: int) -> list[Line]:
        """The first `count` requests and the longest, without those that cannot be read."""
        first = list(islice(self.items(), count))
        last = first[-1].number if first else 0
        longest = [
            self._item(number, data)
            for number, data in _lines(self._file)
            if number == self._longest_number > last
        ]
        return [line for line in (*first, *longest) if isinstance(line, Line)]

    def close(self) -> None:
        self._file.close()

    def _item(self, number: int, data: bytes) -> Line | LineError:
        try:
            line = self._parse(number, data)
        except LineError as error:
            return error
        first = self._first_numbers.get(number)
        if first is None:
            return line
        reason = f"custom_id {json.dumps(line.custom_id)} is there twice, first in line {first}"
        return LineError(number, line.custom_id, reason)

    def _repeated(self, suspects: set[int]) -> dict[int, int]:
        first_numbers: dict[str, int] = {}
        repeated: dict[int, int] = {}
        for number, data in _lines(self._file) if suspects else ():
            value = _loaded(data)
            custom_id = None if value is None else custom_id_of(value, number)
            if custom_id is not None and hash(custom_id) in suspects:
                first = first_numbers.setdefault(custom_id, number)
                if first != number:
                    repeated[number] = first
        return repeated


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
        UsageError: there is no such file, it cannot be read, is no JSON lines, or holds no request.
        MemfitError: there is no room for what comes through a pipe.
    """
    path = None if source == "-" else Path(source)
    shown = "standard input" if path is None else str(path)
    try:
        with ExitStack() as undo:
            file = undo.enter_context(_opened(path, stdin))
            found = Input(file, path, partial(parse_line, defaults=defaults, raw=raw, schema=schema))
            if not found.count:
                raise UsageError(
                    f"{shown} holds no request; it needs one JSON object a line", field="--input"
                )
            undo.pop_all()
            return found
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror or error}", field="--input") from None


def scratch_file() -> IO[bytes]:
    """An unnamed file on a disk, which is gone when it is closed.

    Raises:
        OSError: there is no place for one.
    """
    folder = None if "TMPDIR" in os.environ or not _DISK_FOLDER.is_dir() else _DISK_FOLDER
    return tempfile.TemporaryFile(dir=folder)


class _Scan:
    """What is learned of each line without checking it; a wrong line is refused later, when it is read."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.count = self.last_number = 0
        self.objects = 0  # lines that hold a JSON object
        self.blank_numbers = array("Q")
        self.has_schemas = False
        self.suspects: set[int] = set()  # hashes of custom_ids that may be there twice
        self._seen: set[int] = set()
        self._readable = self._limited = 0  # lines
        self.longest_number = 0  # of the line with the longest prompt; 0: no prompt was seen
        self._prompt_bytes = self._largest_prompt_bytes = 0
        self._tokens = self._largest_tokens = 0

    def add(self, number: int, data: bytes) -> None:
        self.last_number = number
        if _is_blank(data):
            self.blank_numbers.append(number)
            return
        self.count += 1
        value = _loaded(data)
        if value is None:
            return
        self.objects += 1
        custom_id = custom_id_of(value, number)
        if custom_id is not None:
            key = hash(custom_id)
            (self.suspects if key in self._seen else self._seen).add(key)
        body = value.get("body", value)
        if isinstance(body, dict):
            self._measure(number, body)

    def _measure(self, number: int, body: Mapping[str, Any]) -> None:
        self._readable += 1
        wanted = body.get("response_format")
        self.has_schemas |= isinstance(wanted, dict) and wanted.get("type") != "text"
        prompt_bytes = _prompt_bytes(body)
        self._prompt_bytes += prompt_bytes
        tokens = body.get("max_completion_tokens") or body.get("max_tokens")
        if isinstance(tokens, int) and 0 < tokens < 2**63:
            self._limited += 1
            self._tokens += tokens
            self._largest_tokens = max(self._largest_tokens, tokens)
        if prompt_bytes > self._largest_prompt_bytes:
            self._largest_prompt_bytes, self.longest_number = prompt_bytes, number

    def sizes(self) -> InputSizes:
        return InputSizes(
            count=self._readable,
            mean_prompt_bytes=self._prompt_bytes / max(1, self._readable),
            largest_prompt_bytes=self._largest_prompt_bytes,
            with_max_tokens=self._limited,
            mean_max_tokens=self._tokens / self._limited if self._limited else None,
            largest_max_tokens=self._largest_tokens if self._limited else None,
        )


def _opened(path: Path | None, stdin: BinaryIO | None) -> IO[bytes]:
    """A file that can be read again: a pipe is copied first."""
    if path is None:
        assert stdin is not None
        return _copied(stdin, path)
    if path.is_dir():
        raise UsageError(f"cannot read {path}: it is a folder", field="--input")
    file = path.open("rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return _copied(file, path)


def _copied(pipe: BinaryIO, path: Path | None) -> IO[bytes]:
    try:
        with ExitStack() as undo:
            file = undo.enter_context(scratch_file())
            head = pipe.read(END_BYTES)
            require_text(head, path)  # before a disk is filled with it
            file.write(head)
            shutil.copyfileobj(pipe, file, MIB)
            file.flush()
            undo.pop_all()
            return file
    except OSError as error:
        raise MemfitError(
            f"cannot keep the input in a temporary file: {error.strerror or error}; "
            "TMPDIR names another folder for it"
        ) from None


def _lines(file: IO[bytes], on_bytes: Callable[[bytes], None] | None = None) -> Iterator[tuple[int, bytes]]:
    """Every line without its end, numbered from 1; a line that is too long is cut just beyond the limit."""
    file.seek(0)
    number = 0
    while data := file.readline(LINE_LIMIT_BYTES + 3):  # a byte too many, and the line's end
        number += 1
        if on_bytes:
            on_bytes(data)
        rest = data
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MIB)
            if on_bytes:
                on_bytes(rest)
        if number == 1:
            data = data.removeprefix(codecs.BOM_UTF8)
        yield number, data.removesuffix(b"\n").removesuffix(b"\r")


def _tail(file: IO[bytes]) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
    return file.read(END_BYTES)


def _version(file: IO[bytes]) -> tuple[int, int]:
    seen = os.fstat(file.fileno())
    return seen.st_size, seen.st_mtime_ns


def _is_blank(data: bytes) -> bool:
    return not data or (data.isspace() and len(data) <= LINE_LIMIT_BYTES)


def _loaded(data: bytes) -> dict[str, Any] | None:
    """The object of a line, read fast; `parse_line` checks it later."""
    if len(data) > LINE_LIMIT_BYTES:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _prompt_bytes(body: Mapping[str, Any]) -> int:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _text_bytes(body.get("prompt"))
    return sum(_text_bytes(message.get("content")) for message in messages if isinstance(message, dict))


def _text_bytes(content: Any) -> int:
    """UTF-8 bytes of a text, of a list of texts, or of a list of parts that have a text."""
    if isinstance(content, str):
        return len(content.encode("utf-8", "surrogatepass"))
    if isinstance(content, dict):
        return _text_bytes(content.get("text"))
    return sum(_text_bytes(each) for each in content) if isinstance(content, list) else 0
