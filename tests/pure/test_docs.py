"""Documents and code agree: generated pages, the commands and options of the contract, the README's rooms."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from memfit import errors
from memfit.cli.main import cli

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["cli_docs.py", "files_docs.py"])
def test_docs_are_generated(script: str) -> None:
    done = subprocess.run(
        [sys.executable, _ROOT / "scripts" / script, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_contract_names_every_command_and_option() -> None:
    said = set(re.findall(r"--[a-z][a-z-]+", contract := _contract()))
    context = click.Context(cli)
    for name in cli.list_commands(context):
        assert f"`memfit {name}" in contract
        command = cli.get_command(context, name)
        assert command is not None
        options = {each for one in command.params if isinstance(one, click.Option) for each in one.opts}
        assert {one for one in options if one.startswith("--")} - said == ({"--prompt"} & options)  # its -p


def test_the_contract_names_every_exit_code() -> None:
    codes = {
        getattr(errors, name).exit_code for name in errors.__all__ if name.endswith(("Error", "Left", "User"))
    }
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", _contract(), re.MULTILINE)} == {0, *codes}


def _contract() -> str:
    return (_ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def test_the_readme_names_every_room() -> None:
    table = (_ROOT / "README.md").read_text(encoding="utf-8").split("## The rooms", 1)[1]
    named = set(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)) - {"room", "---"}
    listed = {name for row in named for name in re.findall(r"`([\w.]+)/?`", row)}
    package = _ROOT / "src" / "memfit"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert listed == rooms | modules
