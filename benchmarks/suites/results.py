"""What a suite came to: how many of its checks passed, and the names of those that did not."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 40  # failures named in the table's notes


@dataclass(frozen=True, kw_only=True)
class Result:
    suite: str
    passed: int
    total: int  # checks that ran or should have run
    failures: tuple[str, ...] = ()  # "name: first line of why"
    notes: tuple[str, ...] = ()  # figures, and what was left out

    @property
    def is_whole(self) -> bool:
        return self.passed == self.total


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question a suite asked of a server, and what was wrong with the answer, if anything."""

    name: str
    problem: str = ""


def of_checks(suite: str, checks: Iterable[Check], *notes: str) -> Result:
    done = list(checks)
    failures = tuple(f"{check.name}: {check.problem}" for check in done if check.problem)
    return Result(
        suite=suite, passed=len(done) - len(failures), total=len(done), failures=failures, notes=notes
    )


def of_junit(suite: str, report: Path, total: int, *notes: str) -> Result:
    """A pytest run's --junitxml. What ended before it wrote one, has passed nothing."""
    if not report.is_file():
        return Result(suite=suite, passed=0, total=total, failures=("no report was written",), notes=notes)
    passed, failures = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        if wrong is None:
            passed += 1
        else:
            why = next(iter((wrong.get("message") or wrong.text or "").splitlines()), "")
            module = (case.get("classname") or "").split(".")[-1]
            failures.append(f"{module}::{case.get('name')}: {wrong.tag}: {why[:160]}")
    # A test that was asked for and is not in the report counts as failed.
    return Result(suite=suite, passed=passed, total=max(total, passed), failures=tuple(failures), notes=notes)


def print_table(results: Iterable[Result], server: str) -> None:
    done = list(results)
    print(f"\n| suite against {server} | passed | of |\n| --- | --- | --- |")
    for result in done:
        print(f"| {result.suite} | {result.passed} | {result.total} |")
    for result in done:
        for note in result.notes:
            print(f"{result.suite}: {note}")
        for failure in result.failures[:_SHOWN]:
            print(f"{result.suite}: FAILED {_one_line(failure)}")
        if len(result.failures) > _SHOWN:
            print(f"{result.suite}: and {len(result.failures) - _SHOWN} more")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
