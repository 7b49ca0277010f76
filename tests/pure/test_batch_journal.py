"""A batch's answers through kills, full disks and second thoughts: each line exactly once, none half."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.batch.input import Input, open_input
from memfit.batch.journal import encode_record, parse_record
from memfit.batch.output import open_sink
from memfit.batch.sink import Sink
from memfit.engines.requests import Sampling
from memfit.errors import MemfitError, OutputError, ReaderLeft, UsageError
from thorough import times

_IDENTITY = {"model": "demo", "seed": 1}
_LINES = 9  # of them two are blank and two fail
_BLANK, _FAILING = {1, 4}, {3, 9}
_WORK = [number for number in range(1, _LINES + 1) if number not in _BLANK]


class Job:
    """An input and an output in one folder."""

    def __init__(self, folder: Path, *, ordered: bool = True) -> None:
        self.folder, self.ordered = folder, ordered
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.journal, self.errors = folder / "out.jsonl.journal", folder / "out.errors.jsonl"
        folder.mkdir(exist_ok=True)
        self.input.write_text(
            "".join(
                "\n" if number in _BLANK else json.dumps({"prompt": f"p{number}"}) + "\n"
                for number in range(1, _LINES + 1)
            )
        )

    def source(self) -> Input:
        return open_input(str(self.input), Sampling())

    def sink(self, source: Input, **changes: Any) -> Sink:
        options = {"identity": _IDENTITY, "ordered": self.ordered, **changes}
        return open_sink(str(self.output), source, **options)

    def run(self, on_saved: Callable[[int], None] = lambda _: None, *, most: int = _LINES) -> None:
        """Finish up to `most` lines, in another order than they come, and save after every second one."""
        with self.source() as source, self.sink(source) as sink:
            todo = sorted((item.number for item in source.items(sink.done)), key=lambda number: number % 4)
            for index, number in enumerate(todo[:most]):
                finish(sink, number)
                if index % 2:
                    sink.flush()
                    on_saved(number)

    def done(self) -> set[int]:
        with self.source() as source, self.sink(source) as sink:
            return {number for number in _WORK if number in sink.done}

    def answers(self) -> list[int]:
        return _numbers(self.output)

    def failures(self) -> list[int]:
        return _numbers(self.errors)

    def check_finished(self) -> None:
        """Every line once, each where it belongs; nothing else lies about, the journal is one line."""
        answered = [number for number in _WORK if number not in _FAILING]
        assert (self.answers() if self.ordered else sorted(self.answers())) == answered
        assert sorted(self.failures()) == sorted(_FAILING)
        [header] = self.journal.read_text().splitlines()
        assert json.loads(header) | {"complete": True, "answered": 5, "failed": 2} == json.loads(header)
        names = {path.name for path in (self.input, self.output, self.journal, self.errors)}
        assert {path.name for path in self.folder.iterdir()} == names


def finish(sink: Sink, number: int) -> None:
    if number in _FAILING:
        sink.add(number, error=_failure(number))
    else:
        sink.add(number, output=_answer(number))


def _answer(number: int) -> dict[str, Any]:
    return {"line": number, "text": "é\n" * (number % 3)}


def _failure(number: int) -> dict[str, Any]:
    return {"line": number, "custom_id": None, "error": {"message": "no", "type": "t"}}


def _numbers(path: Path) -> list[int]:
    """The numbers of a file's lines, each of which is whole and as it has to be."""
    data = path.read_bytes() if path.exists() else b""
    assert not data or data.endswith(b"\n")
    values = [json.loads(line) for line in data.splitlines()]
    for value in values:
        assert value == (_failure if value["line"] in _FAILING else _answer)(value["line"])
    return [value["line"] for value in values]


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, so these tests need not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=[True, False], ids=["ordered", "unordered"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(tmp_path / "job", ordered=request.param)


# --- one run ---


def test_a_run(job: Job) -> None:
    job.run()
    job.check_finished()
    if not job.ordered:
        assert job.answers() == [8, 5, 2, 6, 7]
    assert job.failures() == [9, 3]


def test_order_waits_for_earlier_lines(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.source() as source, job.sink(source) as sink:
        steps: list[tuple[int, list[int]]] = [
            (5, []),
            (7, []),
            (2, [2]),
            (3, [2, 5]),  # failed: nothing to wait for
            (6, [2, 5, 6, 7]),
            (8, [2, 5, 6, 7, 8]),
        ]
        for number, written in steps:
            finish(sink, number)
            sink.flush()
            assert job.answers() == written
        assert (sink.answered, sink.failed, sink.complete) == (5, 1, False)
        finish(sink, 9)
    assert sink.complete
    job.check_finished()


def test_nothing_is_written_before_it_is_saved(job: Job) -> None:
    with job.source() as source, job.sink(source) as sink:
        finish(sink, 2)
        assert 2 in sink.done
        assert job.output.read_bytes() == b""
        assert job.journal.read_bytes().count(b"\n") == 1


def test_much_is_saved_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.source() as source, job.sink(source) as sink:
        sink.add(2, output={"text": "x" * 2**20})
        assert job.output.stat().st_size > 2**20


def test_no_error_no_error_file(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.source() as source, job.sink(source) as sink:
        for number in _WORK:
            sink.add(number, output=_answer(number))
    assert sink.complete
    assert not job.errors.exists()


def test_only_errors(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.source() as source, job.sink(source) as sink:
        for number in _WORK:
            sink.add(number, error=_failure(number))
    assert (sink.complete, sink.answered, sink.failed) == (True, 0, len(_WORK))
    assert job.output.read_bytes() == b""
    with job.source() as source, job.sink(source) as sink:
        assert (sink.complete, sink.answered, sink.failed) == (True, 0, len(_WORK))


# --- a second run ---


def test_a_complete_job_stays_as_it_is(job: Job) -> None:
    job.run()
    before = {path: path.read_bytes() for path in job.folder.iterdir()}
    job.output.chmod(0o444)
    with job.source() as source, job.sink(source) as sink:
        assert sink.complete
        assert (sink.answered, sink.failed) == (5, 2)
        assert list(source.items(sink.done)) == []
    assert {path: path.read_bytes() for path in job.folder.iterdir()} == before


def test_an_output_that_vanished_after_completion(job: Job) -> None:
    job.run()
    job.output.write_bytes(job.output.read_bytes() + b"{}\n")
    assert "was changed since: it had" in _refused(job)
    job.output.unlink()
    assert "the job is complete, but" in _refused(job)
    with job.source() as source, job.sink(source, overwrite=True) as sink:
        assert not any(number in sink.done for number in _WORK)
    job.run()
    job.check_finished()


def test_a_run_goes_on(job: Job) -> None:
    for most in (1, 2, 3):
        job.run(most=most)
    assert len(job.done()) == 6
    job.run()
    job.check_finished()


def test_an_output_that_vanished_is_written_again(job: Job) -> None:
    job.run(most=6)
    before = job.output.read_bytes(), job.errors.read_bytes()
    job.output.unlink()
    job.errors.unlink()
    assert len(job.done()) == 6
    assert (job.output.read_bytes(), job.errors.read_bytes()) == before
    job.run()
    job.check_finished()


@pytest.mark.parametrize("tail", [b'{"line', b"\0\0\0", b'{"line":2,"output":{"line"\0:2}}\n', b"{}\n"])
def test_a_torn_journal(job: Job, tail: bytes) -> None:
    job.run(most=6)
    journal = job.journal.read_bytes()
    job.journal.write_bytes(journal + tail)
    assert len(job.done()) == 6
    assert job.journal.read_bytes() == journal
    job.run()
    job.check_finished()


def test_a_record_that_is_there_twice_counts_once(job: Job) -> None:
    job.run(most=6)
    lines = job.journal.read_bytes().splitlines(keepends=True)
    job.journal.write_bytes(b"".join([*lines, lines[1]]))
    job.run()
    job.check_finished()


@pytest.mark.parametrize("number", [1, _LINES + 1])
def test_a_record_of_no_request(job: Job, number: int) -> None:
    job.run(most=2)
    with job.journal.open("ab") as file:
        file.write(encode_record(number, {}, is_error=False))
    assert _refused(job).startswith(f"{job.journal} is damaged: it has a line {number}; give another")


def test_a_journal_cut_anywhere(job: Job) -> None:
    """What was lost with its end is done again; what the output has beyond it is refused, not doubled."""
    job.run(most=6)
    journal = job.journal.read_bytes()
    header = journal.index(b"\n") + 1
    for length in range(len(journal)):
        job.journal.write_bytes(journal[:length])
        for path in (job.output, job.errors):
            path.unlink(missing_ok=True)
        assert len(job.done()) == (journal[header:length].count(b"\n") if length >= header else 0)
    job.run()
    job.check_finished()


def test_an_output_cut_anywhere(job: Job) -> None:
    job.run(most=6)
    whole = job.output.read_bytes()
    for length in range(len(whole)):
        for tail in (b"", b"\0" * 100):
            job.output.write_bytes(whole[:length] + tail)
            job.done()
            assert job.output.read_bytes() == whole


def test_an_output_that_somebody_changed(job: Job) -> None:
    job.run(most=6)
    whole, journal = job.output.read_bytes(), job.journal.read_bytes()
    for changed in (whole + b"{}\n", whole.replace(b"text", b"TEXT", 1), b"\n" + whole):
        job.output.write_bytes(changed)
        assert f"{job.output} holds what this job never wrote" in _refused(job)
        assert (job.output.read_bytes(), job.journal.read_bytes()) == (changed, journal)
    job.output.rename(job.folder / "moved")
    assert len(job.done()) == 6
    assert job.output.read_bytes() == whole


# --- whose output it is ---


def _refused(job: Job, **changes: Any) -> str:
    with job.source() as source, pytest.raises(UsageError) as caught:
        job.sink(source, **changes)
    return str(caught.value)


def test_another_job(job: Job) -> None:
    job.run(most=2)
    before = {path: path.read_bytes() for path in job.folder.iterdir()}
    said = _refused(job, identity={"model": "other", "top_k": 3}, ordered=not job.ordered)
    was = "in order" if job.ordered else "unordered"
    assert said == (
        f'{job.output} belongs to another job: it was {was}; model was "demo", is "other"; '
        "seed was 1, is null; top_k was null, is 3; give another --output, or --overwrite to start over"
    )
    assert {path: path.read_bytes() for path in job.folder.iterdir()} == before
    with job.input.open("a") as file:
        file.write('{"prompt": "more"}\n')
    assert "belongs to another job: the input is another one; give" in _refused(job)
    with job.source() as source, job.sink(source, overwrite=True) as sink:
        assert 2 not in sink.done
    assert job.output.read_bytes() == b""
    assert not job.errors.exists()


def test_tuples_in_the_identity_are_lists(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for _ in range(2):
        with job.source() as source, job.sink(source, identity={"stop": ("a", "b"), "by": {1: 2}}) as sink:
            assert not sink.complete


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_somebody_elses_file(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path)
    (tmp_path / name).write_text("precious\n")
    said = _refused(job)
    assert said.startswith(f"{tmp_path / name} is there already, and there is no journal to go on with; give")
    assert (tmp_path / name).read_text() == "precious\n"
    assert not job.journal.exists()
    with job.source() as source, job.sink(source, overwrite=True):
        pass
    job.run()
    job.check_finished()


def test_an_empty_file_is_nobodys(job: Job) -> None:
    job.output.touch()
    job.run()
    job.check_finished()


@pytest.mark.parametrize("content", [b"precious", b"precious\n", b"\0\0", b'{"memfit_batch":2,"x":1}\n'])
def test_a_journal_that_is_none(tmp_path: Path, content: bytes) -> None:
    job = Job(tmp_path)
    job.journal.write_bytes(content)
    assert "is not a journal that this memfit knows; give another --output, or --overwrite" in _refused(job)
    assert job.journal.read_bytes() == content


def test_two_at_a_time(job: Job) -> None:
    with job.source() as source, job.sink(source) as sink:
        finish(sink, 2)
        assert "is in use: another memfit batch writes this output" in _refused(job)
        assert "is in use: another memfit batch writes this output" in _refused(job, overwrite=True)
    assert job.answers() == [2]


def test_a_journal_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a run that completes just then: the lock on the old file is worth nothing."""
    job, finished = Job(tmp_path / "job"), Job(tmp_path / "finished")
    finished.run()
    real, replaced = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not replaced:
            replaced.append(finished.journal.replace(job.journal))
            finished.output.replace(job.output)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with job.source() as source, job.sink(source) as sink:
        assert sink.complete


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    job = Job(tmp_path / "job")
    with job.source() as source:

        def refused(output: Path | str) -> str:
            with pytest.raises(UsageError) as caught:
                open_sink(str(output), source, identity={})
            return str(caught.value)

        assert refused(tmp_path) == f"cannot write {tmp_path}: it is a folder"
        assert refused("") == "cannot write .: it is a folder"
        assert refused(tmp_path / "no/out") == (
            f"cannot write {tmp_path}/no/out: there is no folder {tmp_path}/no"
        )
        assert refused(job.input).endswith("in.jsonl: it is the input; give another --output")
        link = tmp_path / "link.jsonl"
        link.symlink_to(job.input)
        assert refused(link).endswith("link.jsonl: it is the input; give another --output")
        assert refused("/dev/null") == (
            "cannot write /dev/null: it is no file; for standard output write --output -"
        )
        (tmp_path / "a.jsonl.journal").mkdir()
        assert "it is no file" in refused(tmp_path / "a.jsonl")
        assert refused(tmp_path / ("x" * 300)).endswith(": File name too long")
    assert job.input.read_text().count("prompt") == len(_WORK)


def test_the_input_under_the_error_files_name(tmp_path: Path) -> None:
    (tmp_path / "out.errors.jsonl").write_text('{"prompt": "a"}\n')
    with open_input(str(tmp_path / "out.errors.jsonl"), Sampling()) as source:
        with pytest.raises(UsageError, match="it is the input"):
            open_sink(str(tmp_path / "out.jsonl"), source, identity={})
        with open_sink(str(tmp_path / "out.txt"), source, identity={}) as sink:
            sink.add(1, error={})
    assert (tmp_path / "out.txt.errors.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.journal"])
def test_a_place_without_permission(job: Job, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: Any, *arguments: Any) -> int:
        if str(path) == str(job.folder / name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", denied)
    assert _refused(job) == f"cannot write {job.folder / name}: Permission denied"
    assert [path.name for path in job.folder.iterdir()] == ["in.jsonl"]


# --- standard output ---


@pytest.mark.parametrize("ordered", [True, False])
def test_standard_output(tmp_path: Path, ordered: bool) -> None:
    job = Job(tmp_path)
    stream, errors = io.StringIO(), list[Mapping[str, Any]]()
    with job.source() as source:
        sink = open_sink("-", source, identity={}, ordered=ordered, stream=stream, on_error=errors.append)
        with sink:
            for number in (8, 9, 3, 2, 5):
                finish(sink, number)
            sink.flush()
            seen = [json.loads(line) for line in stream.getvalue().splitlines()]
            assert seen == [_answer(number) for number in ((2, 5) if ordered else (8, 2, 5))]
            finish(sink, 7)
            finish(sink, 6)
    assert sink.complete
    assert stream.getvalue().count("\n") == 5
    assert errors == [_failure(9), _failure(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


class _Broken(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error, self.calls = error, 0

    def write(self, _: str) -> int:
        self.calls += 1
        raise self._error


def test_a_standard_output_that_breaks(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for error, wanted in (
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ReaderLeft),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
    ):
        stream = _Broken(error)
        with job.source() as source, pytest.raises(wanted):
            sink = open_sink("-", source, identity={}, stream=stream, on_error=lambda _: None)
            with sink:
                finish(sink, 2)
                sink.flush()
        assert stream.calls == 1


# --- kills ---

_CALLS = ("open", "pwrite", "fsync", "ftruncate", "replace", "unlink", "close")


def _die_at(fatal: int, moment: str) -> None:
    """Kill this process before, amid or after the call with that number, of all that change a file."""
    count = 0

    def deadly(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == fatal and moment == "amid" and name == "pwrite":
                descriptor, data, offset = arguments
                real(descriptor, data[: len(data) // 2], offset)
            if count == fatal and moment != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            this = count
            try:
                return real(*arguments, **options)
            finally:
                if this == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in _CALLS:
        setattr(os, name, deadly(getattr(os, name), name))


def _killed_run(job: Job, fatal: int, moment: str) -> tuple[bool, int]:
    """Whether a run was killed at that call, and how many lines it was told to be safe."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            real_write = os.write
            _die_at(fatal, moment)
            job.run(lambda number: real_write(writer, b"..") and None)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
        safe = len(pipe.read())
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0, safe


class _Promises:
    """What a run has shown or said must be true ever after."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shown = {path: _whole_lines(path) for path in (job.output, job.errors)}

    def check(self) -> None:
        for path, shown in self._shown.items():
            assert (path.read_bytes() if path.exists() else b"").startswith(shown)


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_a_kill_at_every_call(job: Job, moment: str) -> None:
    fatal, killed = 0, True
    while killed:
        fatal += 1
        run = Job(job.folder / str(fatal), ordered=job.ordered)
        killed, safe = _killed_run(run, fatal, moment)
        promises = _Promises(run)
        if run.journal.exists() or killed:
            assert len(run.done()) >= safe
        promises.check()
        run.run()
        promises.check()
        run.check_finished()
    assert fatal > 40  # calls of one run: the harness does count them


def test_a_kill_at_every_call_again_and_again(job: Job) -> None:
    """Each run is killed a little later than the one before, so that resuming is killed too."""
    for step in (1, 2, 3, 5, 7):
        run = Job(job.folder / str(step), ordered=job.ordered)
        fatal, killed = 0, True
        while killed:
            fatal += step
            promises = _Promises(run)
            killed, _ = _killed_run(run, fatal, "amid")
            promises.check()
        run.check_finished()


# --- a disk that is full or broken ---

Fail = Callable[[int, int, int], Callable[[], int]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fail]:
    """Let the writes and syncs from a first to a last number fail; a write leaves a half behind.

    What it returns counts the calls.
    """
    real_write, real_sync = os.pwrite, os.fsync

    def fail(first: int, last: int, code: int) -> Callable[[], int]:
        count = 0

        def fails() -> bool:
            nonlocal count
            count += 1
            return first <= count <= last

        def pwrite(descriptor: int, data: bytes, offset: int) -> int:
            if fails():
                real_write(descriptor, data[: len(data) // 2], offset)
                raise OSError(code, os.strerror(code))
            return real_write(descriptor, data, offset)

        def fsync(descriptor: int) -> None:
            if fails():
                raise OSError(code, os.strerror(code))
            real_sync(descriptor)

        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "fsync", fsync)
        return lambda: count

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("last", [10**9, 0], ids=["from then on", "once"])
def test_a_full_disk_at_every_write(job: Job, failing: Fail, last: int) -> None:
    count = failing(0, 0, 0)
    Job(job.folder / "calm", ordered=job.ordered).run()
    refusals = 0
    for first in range(1, count() + 1):
        run = Job(job.folder / str(first), ordered=job.ordered)
        failing(first, max(first, last), errno.ENOSPC)
        try:
            run.run()
        except MemfitError as error:
            refusals += 1
            assert str(error).startswith("the disk is full: cannot write ")
        for path in (run.output, run.errors):
            _numbers(path)  # no half lines
        assert not list(run.folder.glob("*.new"))
        failing(0, 0, 0)
        promises = _Promises(run)
        run.run()
        promises.check()
        run.check_finished()
    assert refusals > 10


def test_going_on_after_a_full_disk(job: Job, failing: Fail) -> None:
    for first in range(1, 30):
        run = Job(job.folder / str(first), ordered=job.ordered)
        with run.source() as source, run.sink(source) as sink:
            failing(first, first, errno.ENOSPC)
            for number in (8, 9, 2, 3, 5, 6, 7):
                finish(sink, number)
                try:
                    sink.flush()
                except MemfitError:
                    sink.flush()
        run.check_finished()


def test_what_a_full_or_broken_disk_says(tmp_path: Path, failing: Fail) -> None:
    job = Job(tmp_path)
    with job.source() as source, job.sink(source) as sink:
        finish(sink, 2)
        sink.flush()
        finish(sink, 3)
        failing(1, 1, errno.ENOSPC)
        with pytest.raises(MemfitError) as caught:
            sink.flush()
        assert caught.value.exit_code == 6
        assert str(caught.value) == (
            f"the disk is full: cannot write {job.journal}. 1 line is safe; once it can be written, "
            "run the same command again"
        )
        failing(4, 4, errno.EIO)  # the third is the folder's, which not every file system can sync
        with pytest.raises(MemfitError) as caught:
            sink.flush()
        assert str(caught.value) == (
            f"cannot write {job.errors}: Input/output error. 2 lines are safe; once it can be written, "
            "run the same command again"
        )
        failing(0, 0, 0)
    assert job.done() == {2, 3}
    assert (job.answers(), job.failures()) == ([2], [3])


def test_ctrl_c_amid_a_flush(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was half done then, the next run reads it from the files."""
    real = os.fsync
    for fatal in range(1, 12):
        run = Job(job.folder / str(fatal), ordered=job.ordered)
        count = 0

        def interrupted(descriptor: int) -> None:
            nonlocal count
            count += 1
            real(descriptor)
            if count == fatal:  # noqa: B023 - called within this turn
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        monkeypatch.setattr(os, "fsync", real)
        run.run()
        run.check_finished()


def test_ctrl_c_between_flushes_saves_what_was_finished(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt), job.source() as source, job.sink(source) as sink:
        finish(sink, 5)
        finish(sink, 2)
        raise KeyboardInterrupt
    assert job.done() == {2, 5}


def test_ctrl_c_amid_adding_the_last_line(job: Job) -> None:
    class Interrupted(list[bytes]):
        def append(self, _: bytes) -> None:
            raise KeyboardInterrupt

    job.run(most=len(_WORK) - 1)
    with pytest.raises(KeyboardInterrupt), job.source() as source, job.sink(source) as sink:
        sink._unsaved = Interrupted()
        finish(sink, next(number for number in _WORK if number not in sink.done))
    assert len(job.done()) == len(_WORK) - 1
    job.run()
    job.check_finished()


# --- any order, any cut ---


@settings(max_examples=times(25, 250))
@given(
    order=st.permutations(_WORK),
    cuts=st.lists(st.integers(0, len(_WORK)), max_size=3),
    flushes=st.sets(st.integers(0, len(_WORK))),
    ordered=st.booleans(),
)
def test_any_order_and_any_cuts(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    cuts: list[int],
    flushes: set[int],
    ordered: bool,
) -> None:
    job = Job(tmp_path_factory.mktemp("any"), ordered=ordered)
    for cut in [*sorted(cuts), len(order)]:
        with job.source() as source, job.sink(source) as sink:
            for index, number in enumerate(order[:cut]):
                if number not in sink.done:
                    finish(sink, number)
                if index in flushes:
                    sink.flush()
    job.check_finished()
    if not ordered:
        assert job.answers() == [number for number in order if number not in _FAILING]


@given(
    st.integers(1, 10**12),
    st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
    st.booleans(),
    st.integers(0, 10**12),
)
def test_a_record_knows_where_its_text_lies(
    number: int, value: dict[str, Any], is_error: bool, offset: int
) -> None:
    data = encode_record(number, value, is_error=is_error)
    record = parse_record(data, offset)
    assert record is not None
    assert (record.number, record.is_error) == (number, is_error)
    start = record.offset - offset
    assert json.loads(data[start : start + record.length]) == value
    assert all(parse_record(data[:length], offset) is None for length in range(len(data)))
