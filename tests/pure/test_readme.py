"""The README's file tree names every file that is kept, and no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def _tree() -> set[str]:
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## The files", 1)[1].split("```")[1]
    folder, found = "", set()
    for line in block.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" ") and name.endswith("/"):
            folder = name
        elif folder != "tests/":  # these are named by folder
            found.add(folder + name if line.startswith(" ") else name)
    return found


def test_the_file_tree_is_true() -> None:
    if not (_ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of files to compare with")
    files = subprocess.run(
        ["git", "ls-files"], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    kept = {
        name
        for name in files
        if not name.startswith("tests/")
        and name != ".gitignore"
        and (not name.endswith("__init__.py") or name == "src/memfit/__init__.py")
    }
    assert _tree() == kept
