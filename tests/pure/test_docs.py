"""docs/cli.md says what the commands say, docs/files.md what the files say, the README what the rooms are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["cli_docs.py", "files_docs.py"])
def test_docs_are_generated(script: str) -> None:
    done = subprocess.run(
        [sys.executable, _ROOT / "scripts" / script, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_names_every_room() -> None:
    table = (_ROOT / "README.md").read_text(encoding="utf-8").split("## The rooms", 1)[1]
    named = set(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)) - {"room", "---"}
    listed = {name for row in named for name in re.findall(r"`([\w.]+)/?`", row)}
    package = _ROOT / "src" / "memfit"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert listed == rooms | modules
