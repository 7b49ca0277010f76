"""Runs the generated tests of an API's official client, from its source distribution, against a server.

They check shapes only: what comes back is of the client's types. Two at a time, so that requests wait little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import environment, sources
from results import Result, of_junit

_SECONDS = 1800


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of a client's tests, which have a bar of their own."""

    name: str
    path: str  # below tests/api_resources
    total: int  # as collected from this version
    wanted: str = ""  # pytest's -k


@dataclass(frozen=True, kw_only=True)
class Client:
    requirement: str  # name==version
    needs: tuple[str, ...]  # what its tests import beside
    plugins: tuple[str, ...] = ()


def run_part(client: Client, part: Part, address: str) -> Result:
    name = client.requirement.split("==")[0]
    python = environment(name, client.requirement, *client.needs)
    folder = sources(client.requirement)
    with tempfile.TemporaryDirectory(prefix="memfit-suite-") as temporary:
        report = Path(temporary) / "report.xml"
        command: Sequence[str | Path] = [
            *(python, "-m", "pytest", f"tests/api_resources/{part.path}", f"--junitxml={report}"),
            *("-q", "-n", "2", "-p", "no:cacheprovider", "-o", "addopts="),
            *(word for plugin in client.plugins for word in ("-p", plugin)),
            *(("-k", part.wanted) if part.wanted else ()),
        ]
        variables = os.environ | {"TEST_API_BASE_URL": address, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, timeout=_SECONDS, check=False
        )
        if not report.is_file():
            print(done.stdout.decode()[-2000:], done.stderr.decode()[-2000:], file=sys.stderr)
        return of_junit(part.name, report, part.total)
