"""Writes docs/session.svg, the picture in the README: real commands with their real output, drawn by rich.

python scripts/session_svg.py        run it on a quiet machine, since the speeds are measured
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_FILE = Path(__file__).resolve().parents[1] / "docs" / "session.svg"
_COMMANDS = (
    "memfit plan demo --ram 200MiB",
    'memfit run demo --ram 384MiB --temperature 0 -p "Explain in one sentence what a GPU does."',
)
_WIDTH = 118  # columns
_UP_AND_CLEAR = "\x1b[1A\x1b[2K"  # how rich takes back the line of a finished progress bar
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # fonts from a server, which no picture may load


def _output(command: str) -> str:
    """What a command writes on a terminal, stdout and stderr as they come."""
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(_WIDTH)},
        timeout=300,
        check=True,
    )
    return "\n".join(_settled(done.stdout.decode()))


def _settled(output: str) -> list[str]:
    """The lines that stay on a terminal."""
    lines: list[str] = []
    for line in output.split("\n"):  # not at "\r", which begins the same line again
        if _UP_AND_CLEAR in line:
            lines.pop()
        lines.append(line.rpartition("\x1b[2K")[2])
    return lines


def main() -> None:
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for command in _COMMANDS:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(_output(command)))
        console.print()
    svg = console.export_svg(title="memfit", unique_id="memfit")
    _FILE.write_text(_FONT_FACE.sub("", svg), encoding="utf-8")


if __name__ == "__main__":
    main()
