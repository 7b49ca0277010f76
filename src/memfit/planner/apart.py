"""Solves placement problems in a process of its own, so that the solver's memory ends with the planning.

The library behind placement.py would otherwise stay in the process that runs the model: some 35 MiB of
the RAM budget. `python -m memfit.planner.apart` is the other process: problems in, placements out.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import BinaryIO

from memfit.errors import EngineError
from memfit.planner.placement import Placement, Problem, solve

__all__ = ["SolverProcess"]


class SolverProcess:
    """Started with the first problem. A context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def solve(self, problem: Problem) -> Placement | None:
        """As `placement.solve` does.

        Raises:
            EngineError: the process ended; what it said went to stderr.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "memfit.planner.apart"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which ends it
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(problem, self._process.stdin)
            self._process.stdin.flush()
            answer: Placement | None = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise EngineError("the placement solver ended before it answered") from None
        return answer

    def __enter__(self) -> SolverProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing worth an orderly end
            self._process.communicate()


def _serve(problems: BinaryIO, placements: BinaryIO) -> None:
    while True:
        try:
            problem = pickle.load(problems)
        except (EOFError, KeyboardInterrupt):
            return
        pickle.dump(solve(problem), placements)
        placements.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
