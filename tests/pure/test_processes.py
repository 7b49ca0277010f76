"""Helper processes: what goes through the channel, who ends whom, and how a death is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfit import errors
from memfit.engines.channel import OverBudgetError
from memfit.engines.client import WorkerProcess
from memfit.errors import (
    DoesNotFitError,
    EngineError,
    HeaderError,
    MemfitError,
    UsageError,
    WorkerDiedError,
    WrongValueError,
)
from memfit.processes import helper
from memfit.processes.carried_errors import carry_error, rebuild_error
from memfit.processes.death import cause_of_death, last_words
from memfit.processes.helper import Helper, python_module

_HERE = str(Path(__file__).parent)
_SECONDS = 30.0  # after which something hangs


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find echo_worker."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (_HERE, os.environ.get("PYTHONPATH")))))


def _worker() -> WorkerProcess:
    return WorkerProcess("echo_worker", {})


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with _worker() as started:
        yield started


def _is_gone(pid: int) -> bool:
    """Nothing runs there: a zombie that nobody collects does not count."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _eventually(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


# --- what goes through ---


def test_large_messages_both_ways(worker: WorkerProcess) -> None:
    """More than a pipe holds, and letters of all kinds, lone surrogates too."""
    text = "über \N{BLACK CHESS QUEEN} \udcff\n" * 100_000
    assert worker.ask("echo", text=text) == {"text": text}


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_no_module_is_looked_for_in_the_current_folder(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the user's, or in a folder that somebody else made, is not run for what Python has."""
    for name in ("queue", "json", "runpy", "memfit"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not to be run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(helper, "python_module", lambda module: python_module(module, version))
    with _worker() as worker:
        assert worker.ask("echo", text="x") == {"text": "x"}


def test_a_child_of_the_helper_has_none_of_its_pipes(worker: WorkerProcess) -> None:
    """Else it would keep them open, and nobody would hear that the helper has ended."""
    assert {one for one in worker.ask("descriptors")["numbers"] if one > 2} <= {3}  # the folder it lists


def test_standard_descriptors_that_are_closed() -> None:
    """As a service may start a program: the pipes must not take their numbers."""
    code = (
        "import os\n"
        "for number in range(3): os.close(number)\n"
        "from memfit.engines.client import WorkerProcess\n"
        "with WorkerProcess('echo_worker', {}) as worker:\n"
        "    found = worker.ask('echo', text='here')\n"
        "os._exit(0 if found == {'text': 'here'} else 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=_SECONDS).returncode == 0


def test_a_signal_in_the_middle_of_sending_a_message(worker: WorkerProcess) -> None:
    """Its handler sends another one, which must not land inside the first."""
    before = signal.signal(signal.SIGALRM, lambda *_: worker.cancel())
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
    try:
        for size in (10, 1_000_000, 3_000_000):
            assert len(worker.ask("echo", text="x" * size)["text"]) == size
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_just_before_a_message_is_sent() -> None:
    class Interrupted(list[bytes]):
        def append(self, message: bytes) -> None:
            super().append(message)
            if len(self) == 1:
                helper.send({"do": "cancel"})

    with Helper("echo_worker", name="the helper") as helper:
        helper._unsent = Interrupted()
        helper.send({"do": "echo", "text": "here"})
        answer = helper.receive(_SECONDS)
        helper.kill()
    assert answer == {"event": "done", "text": "here"}


def test_more_descriptors_than_select_knows(worker: WorkerProcess) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"at most {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with contextlib.ExitStack() as opened:
        for _ in range(1030):
            opened.enter_context(Path(os.devnull).open("rb"))
        with _worker() as late, late.converse("open") as conversation:
            next(conversation)
            assert late.has_message(_SECONDS)


# --- errors ---


@pytest.mark.parametrize("name", [one for one in errors.__all__ if isinstance(getattr(errors, one), type)])
def test_every_error_arrives_as_what_it_was(name: str) -> None:
    kind = getattr(errors, name)
    if kind is DoesNotFitError:
        error: MemfitError = DoesNotFitError(tier="RAM", needs_bytes=9, budget_bytes=4, suggestions=("--x",))
    elif kind is HeaderError:
        error = HeaderError("/a/b", "counts", "truncated")
    elif kind is WrongValueError:
        error = WrongValueError("vram 1", ": not a size", got="x", needed="SIZE")
    elif kind.__init__ in (MemfitError.__init__, UsageError.__init__):
        error = kind("what, where")
    else:
        error = kind()
    arrived = rebuild_error(carry_error(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (kind, str(error), vars(error))


def test_errors_of_a_worker(worker: WorkerProcess) -> None:
    """The engine's own quotes its log; after each the worker listens."""
    with pytest.raises(HeaderError, match=r"x\.gguf: tensor 3") as header:
        worker.ask("fail", how="header")
    assert header.value.field == "tensor 3"
    with pytest.raises(DoesNotFitError) as fit:
        worker.ask("fail", how="fit")
    assert (fit.value.short_bytes, fit.value.suggestions) == (1, ("--ctx 512",))
    with pytest.raises(EngineError, match=r"decode failed; its last words: .*a first line / a second one$"):
        worker.ask("fail", how="engine")
    with pytest.raises(OverBudgetError) as over:
        worker.ask("fail", how="over budget")
    assert over.value.needs_bytes == 5
    assert worker.ask("echo", text="") == {"text": ""}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("exit", "it exited with code 7; its last words: a first line / a second one"),
        ("abort", "it died of SIGABRT"),
        ("crash", "it exited with code 1; its last words: KeyError: 'weights'"),
    ],
)
def test_an_obituary(worker: WorkerProcess, how: str, words: str) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        worker.ask("fail", how=how)
    assert str(caught.value).startswith(f"the engine's worker ended during 'fail': {words}")
    with pytest.raises(WorkerDiedError):
        worker.ask("echo")


def test_a_module_that_is_not_there() -> None:
    with Helper("memfit.no_such_module", name="the helper") as helper:
        assert helper.receive() is None
        assert "the helper ended before it answered: it exited with code 1" in str(helper.obituary())
        assert "No module named" in helper.last_words()


def test_causes_of_death() -> None:
    assert cause_of_death(3) == "exited with code 3"
    assert cause_of_death(-40) == "died of signal 40"  # real-time, without a name
    assert cause_of_death(-signal.SIGUSR1, {signal.SIGUSR1: "was told to"}) == "was told to"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (b"", ""),
        (b"one\n\n  two\nthree\nfour\n", "two / three / four"),
        (
            b'Traceback (most recent call last):\n  File "x.py", line 293, in read\nValueError: no text\n',
            "ValueError: no text",
        ),
        (  # of several lines, and by a name that says nothing
            b'  File "x.py", line 3, in read\n    go()\n    ~~^^\nmemfit.Stopped: too long\nby 3\n',
            "memfit.Stopped: too long / by 3",
        ),
        (
            b'Traceback (most recent call last):\n  File "x.py", line 3, in read\nValueError: a\n1\n2\n3\n',
            "ValueError: a / 2 / 3",
        ),
        (
            b"293, in _read_text\n    refuse()\nmemfit.errors.HeaderError: bad\n",
            "memfit.errors.HeaderError: bad",
        ),
        (b"\x1b[31mred\xff", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_last_words(log: bytes, words: str) -> None:
    assert last_words(log) == words


# --- who ends whom ---


def test_leaving_an_answer_early_lets_the_next_one_begin(worker: WorkerProcess) -> None:
    with worker.converse("open") as conversation:
        assert next(conversation) == ("text", {"text": "word "})
    assert worker.ask("echo", text="next") == {"text": "next"}
    left_open = worker.converse("open")
    next(left_open)
    assert worker.ask("echo", text="next") == {"text": "next"}
    assert list(left_open) == []


def test_an_error_of_the_listener_ends_the_answer(worker: WorkerProcess) -> None:
    def listen(_kind: str, _event: dict[str, object]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        worker.ask("open", listen)
    assert worker.ask("echo", text="next") == {"text": "next"}


def test_what_cannot_be_cancelled_ends_with_the_worker(worker: WorkerProcess) -> None:
    with worker.converse("load") as conversation:
        next(conversation)
    with pytest.raises(WorkerDiedError, match="was killed"):
        worker.ask("echo")


def test_closing_twice_and_while_an_answer_comes(worker: WorkerProcess) -> None:
    conversation = worker.converse("open")
    next(conversation)
    worker.close()
    worker.close()
    conversation.close()
    assert worker.is_closed and worker.wait() == 0


def test_a_helper_that_keeps_silent() -> None:
    with Helper("memfit.planner.llamacpp.solver_process", name="a solver that has no problem") as helper:
        with pytest.raises(TimeoutError):
            helper.receive(0.05)
        helper.kill()


_EXIT = """
import sys
from memfit.engines.client import WorkerProcess
worker = WorkerProcess("echo_worker", {})
print(worker.pid, flush=True)
def pieces():
    with worker.converse("open") as conversation:
        yield from conversation
open_one = pieces()
next(open_one)
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "del worker", "raise ZeroDivisionError", "worker.kill()"])
def test_an_interpreter_that_ends_with_an_open_generator(end: str) -> None:
    """It neither hangs nor starts a thread, and nothing is left of the worker."""
    done = subprocess.run(
        [sys.executable, "-c", _EXIT + end], capture_output=True, text=True, timeout=_SECONDS
    )
    wanted = {"sys.exit(3)": 3, "raise ZeroDivisionError": 1}.get(end, 0)
    assert done.returncode == wanted, done.stderr
    assert "ignored" not in done.stderr and ("Traceback" in done.stderr) is (wanted == 1)
    assert _is_gone(int(done.stdout))


_PARENT = """
import os, sys
from memfit.engines.client import WorkerProcess
from memfit.processes.helper import Helper
workers = [WorkerProcess("echo_worker", {}) for _ in range(2)]
print(*[worker.pid for worker in workers], flush=True)
workers[0].ask("echo", text="started")
os.write(1, b".")
workers[1].ask("open")
"""


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_a_parent_that_is_killed_leaves_no_child(seconds: float) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if seconds:  # else while the workers still import
            parent.stdout.read(1)
            time.sleep(seconds)
        parent.kill()
    assert len(pids) == 2
    assert _eventually(lambda: all(map(_is_gone, pids)))
