"""Documents and code agree: generated pages, the commands and options of the contract, the README's rooms.
The README in two languages: prose is not compared, all that stays the same in a translation is."""

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
_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`|<code dir=\"ltr\">(.+?)</code>")


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
    table = _readme("README.md").split("## The rooms", 1)[1]
    named = set(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)) - {"room", "---"}
    listed = {name for row in named for name in re.findall(r"`([\w.]+)/?`", row)}
    package = _ROOT / "src" / "memfit"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert listed == rooms | modules


def test_both_readmes_have_the_same_code_blocks() -> None:
    assert _BLOCK.findall(_readme("README.md")) == _BLOCK.findall(_readme("README.ar.md"))


def test_both_readmes_have_the_same_headings_by_level() -> None:
    english, arabic = (
        re.findall(r"^(#+) ", _prose(name), re.MULTILINE) for name in ("README.md", "README.ar.md")
    )
    assert english == arabic


def test_both_readmes_link_to_the_same_targets_and_to_each_other() -> None:
    english, arabic = (
        sorted(re.findall(r"\]\(([^)]+)\)", _prose(name))) for name in ("README.md", "README.ar.md")
    )
    english.remove("README.ar.md")
    arabic.remove("README.md")
    assert english == arabic
    for target in english:
        assert (_ROOT / target).exists(), target


def test_both_readmes_name_the_same_commands_options_and_files() -> None:
    english, arabic = (
        {one or other for one, other in _SPAN.findall(_prose(name))} for name in ("README.md", "README.ar.md")
    )
    assert english - arabic == set()
    # The Arabic one also explains what comments in the blocks say in English.
    assert [span for span in arabic if span not in _readme("README.md")] == []


def test_code_reads_left_to_right_in_the_arabic_readme() -> None:
    text = _readme("README.ar.md")
    wrapped = re.findall(r"^<div dir=\"ltr\">\n\n(```.*?^```)\n\n</div>$", text, re.MULTILINE | re.DOTALL)
    assert wrapped == _BLOCK.findall(text)
    # A hyphen, dot or slash at a span's end has no direction: without one of its own, `cli/` shows as /cli.
    plain = [one for one, _ in _SPAN.findall(_prose("README.ar.md")) if one]
    assert [span for span in plain if not re.fullmatch(r"[A-Za-z0-9](.*[A-Za-z0-9])?", span)] == []


def _readme(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _prose(name: str) -> str:
    return _BLOCK.sub("", _readme(name))
