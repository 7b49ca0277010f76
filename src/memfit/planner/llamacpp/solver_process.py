"""Solves placement problems in a process of its own, so that the solver's memory ends with the planning.

The library behind solver.py would otherwise stay in the process that runs the model: some 35 MiB of
the RAM budget. `python -m memfit.planner.llamacpp.solver_process` is the other process: problems in,
placements out.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memfit.closing import Closing
from memfit.planner.llamacpp.placement import DeviceRoom, Layer, Piece, Placement, Problem
from memfit.planner.llamacpp.solver import solve
from memfit.processes.child import Parent
from memfit.processes.helper import Helper

__all__ = ["SolverProcess"]


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
        found = reply["placement"]
        return _placement(found) if found else None

    def close(self) -> None:
        """Safe to repeat."""
        if self._helper is not None:
            self._helper.kill()  # it holds nothing worth an orderly end
            self._helper.close()


def _placement(values: dict[str, Any]) -> Placement:
    layer_devices, ffn_devices, used = (
        values.pop(name) for name in ("layer_devices", "ffn_devices", "used_bytes")
    )
    return Placement(
        layer_devices=tuple(layer_devices),
        ffn_devices=tuple(map(tuple, ffn_devices)),
        used_bytes=tuple(used),
        **values,
    )


def _problem(values: dict[str, Any]) -> Problem:
    layers = (
        Layer(
            core=_piece(one["core"]),
            kv_bytes=one["kv_bytes"],
            ffn_tensors=tuple(map(_piece, one["ffn_tensors"])),
        )
        for one in values["layers"]
    )
    return Problem(
        devices=tuple(DeviceRoom(**one) for one in values["devices"]),
        layers=tuple(layers),
        output=_piece(values["output"]) if values["output"] else None,
        kv_in_ram=values["kv_in_ram"],
    )


def _piece(values: dict[str, Any]) -> Piece:
    return Piece(**{**values, "seconds": tuple(values["seconds"])})


def _serve() -> None:
    parent = Parent()
    for message in parent.messages():
        found = solve(_problem(message))
        parent.send("done", placement=asdict(found) if found else None)


if __name__ == "__main__":
    _serve()
