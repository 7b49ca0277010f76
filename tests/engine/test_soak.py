"""Random sets of valid options end in a refusal that says why, or in a run inside its budget.

20 of them, or as many as MEMFIT_SOAK says; MEMFIT_SOAK_SEED makes others, MEMFIT_SOAK_FIRST begins with a
later one. A set that failed is made again by its seed and number.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from option_sets import OptionSet, arguments, option_set

from memfit.units import MIB
from thorough import times

_COUNT = int(os.environ.get("MEMFIT_SOAK") or times(20, 100))
_SEED = int(os.environ.get("MEMFIT_SOAK_SEED", "1"))
_FIRST = int(os.environ.get("MEMFIT_SOAK_FIRST", "0"))
_SECONDS = 240  # more is a hang, on whatever machine
_REFUSED = (2, 3, 4, 5)
_MARK = "MEMFIT_TEST_SOAK"  # in the environment of all that a run starts


@pytest.mark.parametrize("number", range(_FIRST, _FIRST + _COUNT))
def test_any_options(number: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    one = option_set(_SEED, number)
    names = {"demo": "demo", "gemma": "gemma", "checkpoint": "llama"}
    model = "demo" if one.model == "demo" else str(request.getfixturevalue(names[one.model]))
    words = arguments(one, model, tmp_path)
    print(f"seed {_SEED}, number {number}: memfit {shlex.join(words)}")
    if one.saved:
        options = [word for word in words[2:] if word not in ("--hard-cap", "--raw")]
        planned = _run(["plan", model, *_of_plan(options), "--json"])
        if planned.returncode:
            _check_refusal(planned, as_json=True)
            return
        (tmp_path / "plan.json").write_text(planned.stdout, encoding="utf-8")
        plan = ["--plan", str(tmp_path / "plan.json")]
        words = [one.command, *plan, *_of_run(options), *(["--json"] * one.as_json)]
    _check(one, _run(words))


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    mark = f"{os.getpid()} {time.monotonic_ns()}"
    done = subprocess.run(
        [sys.executable, "-m", "memfit", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={**os.environ, _MARK: mark},
    )
    until = time.monotonic() + 10
    while (left := _started_by(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left, f"still running: {left}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _started_by(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


# Options of `run` and `bench` that are none of a plan's, with how many words each has.
_OF_RUN = {
    **dict.fromkeys(("-p", "--system", "--max-tokens", "--temperature", "--top-k", "--top-p"), 2),
    **dict.fromkeys(("--min-p", "--repeat-penalty", "--seed", "--stop"), 2),
    "--json": 1,
}


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    of_plan, of_run, index = [], [], 0
    while index < len(words):
        count = _OF_RUN.get(words[index], 0)
        (of_run if count else of_plan).extend(words[index : index + (count or 1)])
        index += count or 1
    return of_plan, of_run


def _of_plan(words: list[str]) -> list[str]:
    return _split(words)[0]


def _of_run(words: list[str]) -> list[str]:
    return [word for word in _split(words)[1] if word != "--json"]


def _check(one: OptionSet, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        _check_refusal(done, as_json=one.as_json)
        return
    if not one.as_json:
        print(f"SOAK {one.command} {one.model} ran, without figures")
        assert one.command == "plan" or "OVER BUDGET" not in done.stdout + done.stderr
        return
    document = json.loads(done.stdout)
    assert "error" not in document
    if one.command == "plan":
        assert document.get("fits", True) is True
        print(f"SOAK plan {one.model} fits")
        return
    assert document["within_budget"] is True, document["measured"]
    assert document["usage"]["completion_tokens"] >= 0
    for tier in document["measured"]["tiers"]:
        _check_tier(one, tier)


def _check_tier(one: OptionSet, tier: dict[str, Any]) -> None:
    error, peak = tier["error_bytes"], tier["peak_bytes"]
    print(f"SOAK {one.command} {one.model} {tier['name']} error {error / MIB:.2f} MiB of {peak / MIB:.0f}")
    assert peak <= tier["budget_bytes"]
    assert abs(error) <= max(0.02 * peak, 16 * MIB)  # as benchmarks/memory.py has it


def _check_refusal(done: subprocess.CompletedProcess[str], *, as_json: bool) -> None:
    assert done.returncode in _REFUSED, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith(("memfit: ", "Error: ")), done.stderr
    assert "memfit itself" not in lines[-1]
    print(f"SOAK refused {done.returncode}: {lines[-1]}")
    if as_json:
        error = json.loads(done.stdout)["error"]
        assert error["message"] in lines[-1]
        if done.returncode == 3:
            assert error["needed"] > error["got"] and json.loads(done.stdout)["fits"] is False
