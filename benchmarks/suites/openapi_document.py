"""schemathesis over the server's own OpenAPI document: 2,000 requests that follow it or break it; no 5xx.

The document says what is strict and what is loose; asked for with `max_tokens`, it caps the tokens that a
request may want, so that cases end soon.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from environments import environment
from limits import Limits
from results import Result
from servers import Server, running

REQUIREMENT = "schemathesis==4.32.5"
DOCUMENT = "/openapi.json?max_tokens=8"
_EACH = 100  # cases of one operation in a run
_MOST_RUNS = 20
_SECONDS = 60  # of one request


def run(server: str, limits: Limits) -> list[Result]:
    program = environment("schemathesis", REQUIREMENT).parent / "schemathesis"
    with running(server, context=4096, parallel=4) as one:
        status, _ = one.ask("GET", DOCUMENT)
        if status != 200:
            why = f"GET {DOCUMENT}: {status}"
            return [Result(suite="schemathesis", passed=0, total=limits.cases, failures=(why,))]
        reports: list[dict[str, Any]] = []
        while _cases(reports) < limits.cases and len(reports) < _MOST_RUNS and one.process.poll() is None:
            reports.append(_explored(one, program, seed=len(reports) + 1))
        lives = one.is_ready()
    return [_result(reports, lives, limits.cases)]


def _explored(server: Server, program: Path, seed: int) -> dict[str, Any]:
    """One run's report. What covers each keyword of the document is the same with every seed."""
    phases = "examples,coverage,fuzzing" if seed == 1 else "fuzzing"
    with tempfile.TemporaryDirectory(prefix="memfit-suite-") as folder:
        report = Path(folder) / "report.json"
        command: list[str | Path] = [
            program,
            "run",
            f"{server.base}{DOCUMENT}",
            "--checks",
            "not_a_server_error",
        ]
        command += ["--phases", phases, "--max-examples", str(_EACH), "--seed", str(seed), "--no-color"]
        command += ["--request-timeout", str(_SECONDS), "--continue-on-failure", "--no-shrink"]
        command += ["--report-json-path", str(report)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise RuntimeError(f"schemathesis: {done.stdout[-1000:]} {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads(report.read_text())
    # How to repeat a failure is only on the screen.
    found["said"] = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("curl ")]
    return found


def _cases(reports: list[dict[str, Any]]) -> int:
    return sum(report["test_cases"]["generated"] for report in reports)


def _result(reports: list[dict[str, Any]], lives: bool, wanted: int) -> Result:
    failures = [] if lives else ["the server is gone"]
    for report in reports:
        found = [*report["failures"], *report["errors"]]
        failures += [
            f"{one.get('count', 1)} of {one.get('title')}: {one.get('operations') or one.get('message')}"
            for one in found
        ]
        failures += report["said"]
    wrong = sum(report["test_cases"]["with_failures"] + report["test_cases"]["errored"] for report in reports)
    cases, operations = _cases(reports), reports[0]["operations"]["tested"]
    if cases < wanted:
        failures.append(f"only {cases} cases were made")
    return Result(
        suite="schemathesis",
        passed=max(0, cases - wrong) if lives else 0,
        total=max(cases, wanted),
        failures=tuple(failures),
        notes=(f"{operations} operations, seeds 1 to {len(reports)}",),
    )
