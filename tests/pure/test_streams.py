"""Standard streams that are full, closed, left by their reader, or of an encoding without our letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import text, tiny_model

_COMMANDS = ("--help", "models --json", "hardware", "doctor", "inspect MODEL", "inspect MODEL --json")
_NAME = "Größe · 模型"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    path.write_bytes(tiny_model(**{"general.name": text(_NAME)}).encode())
    return path


def _shell(
    command: str, model: Path | None = None, *, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A line of a shell, where `memfit` is ours."""
    path = "" if model is None else str(model)
    return subprocess.run(
        ["sh", "-c", f'memfit() {{ "{sys.executable}" -m memfit "$@"; }}; {command.replace("MODEL", path)}'],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize(
    ("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_a_result_that_cannot_be_written(model: Path, command: str, where: str, why: str) -> None:
    done = _shell(f"memfit {command} {where}", model)
    assert done.stderr.decode() == f"memfit: cannot write the result to standard output: {why}\n"
    assert done.returncode == 6


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_reader_that_has_left(model: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = _shell(f"memfit {command}", model, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("command", "code"), [("inspect MODEL --json", 0), ("inspect nonsense", 4), ("no", 2)]
)
def test_remarks_that_nobody_can_read(model: Path, command: str, code: int, where: str) -> None:
    done = _shell(f"memfit {command} {where}", model)
    assert (done.returncode, done.stderr) == (code, b"")
    assert done.stdout == _shell(f"memfit {command}", model).stdout


def test_standard_input_that_is_closed_or_only_written_to() -> None:
    assert _shell("memfit --version <&-").returncode == 0
    for where in ("<&-", "0>/dev/null"):
        done = _shell(f"memfit run demo {where}")
        assert done.returncode == 2
        assert done.stderr.startswith((b"memfit: the prompt is empty", b"memfit: standard input cannot be"))


def test_nothing_is_open() -> None:
    assert _shell("memfit --version <&- >&- 2>&-").returncode == 6


def test_no_file_of_ours_gets_the_number_of_a_closed_stream() -> None:
    code = (
        "import os\n"
        "from memfit.cli.streams import open_streams\n"
        "with open_streams():\n"
        "    os._exit(os.open(os.devnull, os.O_RDONLY))"
    )
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" <&- >&- 2>&-', code], timeout=60)
    assert done.returncode > 2


_ENCODINGS = (
    ("ascii", {"PYTHONIOENCODING": "ascii"}),
    ("ascii", {"PYTHONIOENCODING": "ascii:strict"}),
    ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}),
    ("latin-1", {"PYTHONIOENCODING": "latin-1"}),
)


@pytest.mark.parametrize(("encoding", "environment"), _ENCODINGS)
@pytest.mark.parametrize("command", ["inspect MODEL", "doctor"])
def test_letters_that_an_encoding_lacks(
    model: Path, command: str, encoding: str, environment: dict[str, str]
) -> None:
    done = _shell(f"memfit {command}", model, **environment)
    assert (done.returncode in (0, 5), b"Traceback" in done.stderr) == (True, False), done.stderr
    shown = done.stdout.decode(encoding)
    if command == "inspect MODEL":
        assert ("Größe" if encoding == "latin-1" else r"Gr\xf6\xdfe . \u6a21") in shown


def test_json_is_the_same_in_every_encoding(model: Path) -> None:
    found = [_shell("memfit inspect MODEL --json", model, **environment) for _, environment in _ENCODINGS]
    assert {json.loads(done.stdout)["name"] for done in found} == {_NAME}


def test_file_names_keep_their_bytes(tmp_path: Path) -> None:
    """A script must be able to open what it is told, whatever the locale."""
    code = (
        "import os, sys\n"
        "from memfit.cli.streams import open_streams\n"
        "with open_streams():\n"
        "    print(os.fsdecode(b'caf\\xe9 \\xff'), '█▓')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.stdout, done.stderr) == (b"caf\xe9 \xff #=\n", b"")


def test_a_failure_that_somebody_swallowed_is_told_in_the_end() -> None:
    code = (
        "import sys\n"
        "from memfit.cli import main\n"
        "def command(*_, **__):\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            print('a result', flush=True)\n"
        "        except main.OutputError:\n"
        "            pass\n"
        "main.cli.main = command\n"
        "main.main([])"
    )
    done = _shell(f'"{sys.executable}" -c "$CODE" >/dev/full', CODE=code)
    assert (done.returncode, done.stderr.count(b"No space left on device")) == (6, 1)
