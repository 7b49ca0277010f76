"""Writes docs/cli.md from the commands' own help. `--check` only compares, for tests.

python scripts/cli_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from memfit.cli.main import cli

_FILE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def text() -> str:
    """The whole document."""
    context = click.Context(cli, info_name="memfit", terminal_width=100, max_content_width=100)
    pieces = [
        "# The command line\n",
        "Written by `scripts/cli_docs.py`. Every option also comes from `MEMFIT_<OPTION>`:",
        "`MEMFIT_RAM=8GiB`. Results go to stdout, everything else to stderr; what `--json` prints is in",
        "[json.md](json.md). Exit codes: 0 done · 2 wrong usage · 3 does not fit the budget · 4 the model",
        "is missing or cannot be read · 5 the engine failed · 6 the result could not be written ·",
        "130 interrupted · 141 the reader of the result left.\n",
        _block(cli.get_help(context)),
    ]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(
            command, info_name=name, parent=context, terminal_width=100, max_content_width=100
        )
        pieces += [f"## memfit {name}\n", _block(command.get_help(inner))]
    return "\n".join(pieces)


def _block(help_text: str) -> str:
    return f"```\n{help_text}\n```\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0
            if _FILE.read_text(encoding="utf-8") == text()
            else "docs/cli.md is old; run scripts/cli_docs.py"
        )
    _FILE.write_text(text(), encoding="utf-8")
