"""Solves placement problems in a process of its own, so that the solver's memory ends with the planning.

The library behind solver.py would otherwise stay in the process that runs the model: some 35 MiB of
the RAM budget. `python -m memfit.planner.llamacpp.solver_process` is the other process: problems in,
placements out.
"""

from __future__ import annotations

from dataclasses import asdict

from memfit.closing import Closing
from memfit.planner.llamacpp.placement import Placement, Problem
from memfit.planner.llamacpp.solver import solve
from memfit.processes.child import Parent
from memfit.processes.helper import Helper
from memfit.strict_json import JsonReader, Length

__all__ = ["SolverProcess"]

_READER = JsonReader("the placement solver", items=Length(1 << 20))


class SolverProcess(Closing):
    """Started with the first problem. A context manager."""

    def __init__(self) -> None:
        self._helper: Helper | None = None

    def solve(self, problem: Problem) -> Placement | None:
        """As `solver.solve` does.

        Raises:
            WorkerDiedError: the process ended.
        """
        if self._helper is None:
            # A terminal's Ctrl-C is for this process, which ends it.
            self._helper = Helper(
                "memfit.planner.llamacpp.solver_process", name="the placement solver", own_session=True
            )
        self._helper.send(asdict(problem))
        reply = self._helper.receive()
        if reply is None:
            raise self._helper.obituary()
        found: Placement | None = _READER.read(Placement | None, reply["placement"])
        return found

    def close(self) -> None:
        """Safe to repeat."""
        if self._helper is not None:
            self._helper.kill()  # it holds nothing worth an orderly end
            self._helper.close()


def _serve() -> None:
    parent = Parent()
    for message in parent.messages():
        found = solve(_READER.read(Problem, message))
        parent.send("done", placement=asdict(found) if found else None)


if __name__ == "__main__":
    _serve()
