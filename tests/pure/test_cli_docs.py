"""docs/cli.md says what the commands say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_docs_are_generated_from_the_commands() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "cli_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
