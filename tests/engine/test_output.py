"""Commands with an engine whose result cannot be written: one error, or a quiet end, and nobody stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

_PLANNED = "--ram 384MiB --ctx 128 --repack off"
_RUN = f"run demo {_PLANNED} --max-tokens 8 -p Hello"
_BATCH = "batch demo --ram 384MiB --repack off --max-tokens 8 --input REQUESTS --output -"
_SECONDS = 120  # after which it hangs
_MARK = "MEMFIT_TEST_MARK"


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"{n}", "prompt": f"Count from {n}:"}) + "\n" for n in range(4))
    )
    return path


def _marked(mark: str) -> Iterator[int]:
    """Processes with our mark in their environment, also those that lost their parent."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                yield int(folder.name)
        except OSError:  # gone, or a stranger's
            continue


def _shell(command: str, requests: Path, stdout: int = subprocess.PIPE) -> tuple[int, bytes, str]:
    """A line of a shell: its exit code and what it printed. Nothing of it runs on."""
    mark = uuid.uuid4().hex
    try:
        done = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -m memfit {command.replace("REQUESTS", str(requests))}'],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=_SECONDS,
            env={**os.environ, _MARK: mark},
        )
    finally:
        left = list(_marked(mark))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    "command",
    [
        f"{_RUN} >/dev/full",
        f"{_RUN} >&-",
        f"{_BATCH} >/dev/full",
        f"plan demo {_PLANNED} --json >/dev/full",
        f"bench demo {_PLANNED} --prompt-tokens 4 --gen-tokens 2 >/dev/full",
    ],
)
def test_a_result_that_cannot_be_written(command: str, requests: Path) -> None:
    code, _, err = _shell(command, requests)
    assert (code, "Traceback" in err) == (6, False), err
    why = "it is closed" if ">&-" in command else "No space left on device"
    assert err.splitlines()[-1] == f"memfit: cannot write the result to standard output: {why}"
    assert err.count("cannot write") == 1


@pytest.mark.parametrize("command", [_RUN, _BATCH])
def test_a_reader_that_leaves(command: str, requests: Path) -> None:
    """After the first bytes, in the middle of an answer: nothing is said of it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, _, err = _shell(command, requests, stdout=writing)
    finally:
        os.close(writing)
    assert code == 141, err
    assert "Traceback" not in err and "write" not in err and "read standard" not in err


def test_neither_remarks_nor_letters_end_an_answer(requests: Path) -> None:
    """All remarks lost, nothing to read, and an encoding without the letters of the plan or the answer."""
    environment = "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii"
    code, out, err = _shell(f"{_RUN} <&- 2>/dev/full", requests)
    assert (code, err) == (0, "") and out.strip()
    done = subprocess.run(
        ["sh", "-c", f'{environment} "{sys.executable}" -m memfit {_RUN} -p "Größe: äöü"'],
        capture_output=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").strip()
    assert "# weights" in done.stderr.decode("ascii")
