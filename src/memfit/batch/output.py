"""Opens the files that sink.py writes (the output, the journal, the error file), new or where a run ended.

`OUT.jsonl` has its journal in `OUT.jsonl.journal` and, once there is an error, `OUT.errors.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from memfit.batch.input import Input, scratch_file
from memfit.batch.journal import DISK_FULL, AppendFile, Journal
from memfit.batch.sink import Sink
from memfit.errors import OutputError, ReaderLeft, UsageError
from memfit.hardware.folders import sync_folder
from memfit.strict_json import shown

__all__ = ["open_sink"]

_INSTEAD = "give another --output, or --overwrite to start over"


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
        OutputError: the disk is full or broken.
    """
    if output == "-":
        assert stream is not None and on_error is not None
        return _open_stream(source, stream, on_error, ordered=ordered)
    paths = _Paths(output=Path(output))
    header = {
        "input_sha256": source.sha256,
        "lines": source.count,
        "ordered": ordered,
        "identity": json.loads(json.dumps(identity)),  # as it will be read again: lists, text keys
    }
    try:
        paths.check(source)
        return _open_files(paths, source, header, overwrite=overwrite)
    except OSError as error:
        where = error.filename or output
        if error.errno in DISK_FULL:
            raise OutputError(f"the disk is full: cannot write {where}") from None
        raise UsageError(f"cannot write {where}: {error.strerror or error}") from None


@dataclass(frozen=True, kw_only=True)
class _Paths:
    output: Path

    @property
    def journal(self) -> Path:
        return self.output.with_name(f"{self.output.name}.journal")

    @property
    def errors(self) -> Path:
        return self.output.with_name(f"{self.output.name.removesuffix('.jsonl')}.errors.jsonl")

    def check(self, source: Input) -> None:
        if self.output.is_dir():
            raise UsageError(f"cannot write {self.output}: it is a folder")
        if not self.output.parent.is_dir():
            raise UsageError(f"cannot write {self.output}: there is no folder {self.output.parent}")
        for path in (self.output, self.journal, self.errors):
            if path.exists() and not path.is_file():
                raise UsageError(f"cannot write {path}: it is no file; for standard output write --output -")
            if source.path and path.exists() and path.samefile(source.path):
                raise UsageError(f"cannot write {path}: it is the input; give another --output")


class _LateFile:
    """A file that is made when the first line for it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file: AppendFile | None = None

    def open(self) -> None:
        self.file = _opened(self._path)

    def append(self, data: bytes) -> None:
        if self.file is None:
            self.file = _opened(self._path, os.O_EXCL)
        self.file.append(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class _Stream:
    """Standard output, or whoever listens to errors."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def append(self, data: bytes) -> None:
        try:
            self._write(data.decode())
        except BrokenPipeError:
            raise ReaderLeft from None
        except OSError as error:  # how much came through is unknown, so there is no second try
            raise OutputError(f"cannot write the answers: {error.strerror or error}") from None

    def close(self) -> None:
        pass


def _open_files(paths: _Paths, source: Input, header: Mapping[str, Any], *, overwrite: bool) -> Sink:
    ordered = header["ordered"]
    with ExitStack() as undo:
        journal = Journal(paths.journal, overwrite=overwrite)
        undo.callback(journal.close)
        errors = _LateFile(paths.errors)
        if journal.header is not None:
            _require_same(journal.header, header, paths)
            if journal.header.get("complete"):
                _require_whole(paths.output, journal.header)
                nothing = _LateFile(paths.output)  # which may be read-only by now
                sink = Sink(source, journal, nothing, errors, ordered=ordered)
                sink.settle(answered=journal.header["answered"], failed=journal.header["failed"])
                undo.pop_all()
                return sink
        else:
            _begin(journal, paths, header, overwrite=overwrite)
        output = _opened(paths.output)
        undo.callback(output.close)
        if paths.errors.exists():
            errors.open()
        undo.callback(errors.close)
        sink = Sink(
            source,
            journal,
            output,
            errors,
            ordered=ordered,
            on_complete=lambda counts: journal.finish({**counts, "output_bytes": output.size}),
        )
        sink.resume(journal.records(), output, errors.file)
        undo.pop_all()
        return sink


def _open_stream(
    source: Input, stream: TextIO, on_error: Callable[[Mapping[str, Any]], None], *, ordered: bool
) -> Sink:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    def report(text: str) -> None:
        for line in text.splitlines():
            on_error(json.loads(line))

    with scratch_file() as file:
        journal = AppendFile("a temporary file", os.dup(file.fileno()))
    return Sink(source, journal, _Stream(write), _Stream(report), ordered=ordered)


def _begin(journal: Journal, paths: _Paths, header: Mapping[str, Any], *, overwrite: bool) -> None:
    """A new job. Its journal's first line comes last: without one, nothing here is anybody's work."""
    with ExitStack() as undo:
        undo.callback(journal.path.unlink)
        for path in (paths.output, paths.errors):
            if not overwrite and path.exists() and path.stat().st_size:
                raise UsageError(
                    f"{path} is there already, and there is no journal to go on with; {_INSTEAD}"
                )
        output = _opened(paths.output)
        output.cut(0)
        output.close()
        paths.errors.unlink(missing_ok=True)
        journal.begin(header)
        undo.pop_all()


def _opened(path: Path, flags: int = 0) -> AppendFile:
    file = AppendFile(str(path), os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666))
    sync_folder(path.parent)
    return file


def _require_same(found: Mapping[str, Any], header: Mapping[str, Any], paths: _Paths) -> None:
    was, now = found.get("identity", {}), header["identity"]
    changes = []
    if any(found.get(key) != header[key] for key in ("input_sha256", "lines")):
        changes.append("the input is another one")
    if found.get("ordered") != header["ordered"]:
        changes.append(f"it was {'in order' if found.get('ordered') else 'unordered'}")
    changes += [
        f"{key} was {shown(was.get(key))}, is {shown(now.get(key))}"
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    ]
    if changes:
        raise UsageError(f"{paths.output} belongs to another job: {'; '.join(changes)}; {_INSTEAD}")


def _require_whole(output: Path, header: Mapping[str, Any]) -> None:
    """The output of a complete job is as long as it was."""
    if not output.exists():
        raise UsageError(f"the job is complete, but {output} is gone; {_INSTEAD}")
    if (size := output.stat().st_size) != header["output_bytes"]:
        raise UsageError(
            f"the job is complete, but {output} was changed since: it had {header['output_bytes']} bytes "
            f"and has {size}; {_INSTEAD}"
        )
