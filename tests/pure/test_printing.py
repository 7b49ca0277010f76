"""Every helper process with libraries that print to stdout, from Python and from C, at start and ever after.

What it answers is what it answers without them.
The real engines' processes are in tests/engine/test_printing_engines.py.
"""

from __future__ import annotations

import pytest

from memfit.planner.apart import SolverProcess
from memfit.planner.placement import Layer, Piece, Place, Problem, solve

pytestmark = pytest.mark.usefixtures("printing_libraries")


def test_the_placement_solver() -> None:
    layer = Layer(core=Piece(name="core", size_bytes=10, seconds=(10.0, 1.0)), kv_bytes=0, blocks=())
    places = (
        Place(name="ram", room_bytes=100, enter_seconds=0.0),
        Place(name="gpu", room_bytes=15, enter_seconds=0.0),
    )
    problem = Problem(places=places, layers=(layer, layer), output=None)
    with SolverProcess() as solver:
        assert [solver.solve(problem) for _ in range(3)] == [solve(problem)] * 3
