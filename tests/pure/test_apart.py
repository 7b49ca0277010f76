"""The solver in its own process: placement's own answers, and an end whatever happens to either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memfit.errors import EngineError
from memfit.planner.llamacpp.placement import DeviceRoom, Layer, Piece, Problem
from memfit.planner.llamacpp.solver import solve
from memfit.planner.llamacpp.solver_process import SolverProcess
from memfit.processes import helper
from memfit.processes.helper import Helper


def _problem(device_bytes: int, ram_bytes: int = 100) -> Problem:
    """Two layers of a core and a block, 10 bytes each; a core gains most from the device."""
    layer = Layer(
        core=Piece(name="core", size_bytes=10, seconds=(10.0, 1.0)),
        kv_bytes=0,
        ffn_tensors=(Piece(name="block", size_bytes=10, seconds=(2.0, 1.0)),),
    )
    devices = (
        DeviceRoom(room_bytes=ram_bytes, split_seconds=0.0),
        DeviceRoom(room_bytes=device_bytes, split_seconds=0.0),
    )
    return Problem(devices=devices, layers=(layer, layer), output=None)


def _helper(solver: SolverProcess) -> Helper:
    assert solver._helper is not None
    return solver._helper


def _run(code: str) -> tuple[str, str]:
    """stdout and stderr of a program that may import this file, in a group of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    return done.stdout, done.stderr


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a shell script in the solver's device, with the paths $problems and $answers."""

    def put(script: str) -> None:
        path = tmp_path / "solver"
        path.write_text(f"#!/bin/sh\nproblems=/dev/fd/${{4%,*}} answers=/dev/fd/${{4#*,}}\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(helper.sys, "executable", str(path))

    return put


def test_its_answers_are_the_solvers() -> None:
    """One process for all of them; None is an answer too."""
    problems = [_problem(20), _problem(5, ram_bytes=20), _problem(40)]
    with SolverProcess() as solver:
        found = [solver.solve(problem) for problem in problems[:1]]
        process = _helper(solver)
        found += [solver.solve(problem) for problem in problems[1:]]
        assert _helper(solver) is process
    assert found == [solve(problem) for problem in problems]
    assert found[0] is not None and (found[0].layer_devices, found[0].ffn_devices) == ((1, 1), ((0,), (0,)))
    assert found[1] is None


def test_it_ends_with_the_context() -> None:
    with SolverProcess() as solver:
        solver.solve(_problem(20))
        process = _helper(solver)
        assert not process.is_closed
    assert process.is_closed
    assert process.wait() == -signal.SIGKILL


def test_it_ends_with_an_error_in_the_context() -> None:
    with pytest.raises(ZeroDivisionError), SolverProcess() as solver:
        solver.solve(_problem(20))
        process = _helper(solver)
        raise ZeroDivisionError
    assert process.wait() == -signal.SIGKILL


def test_without_a_problem_there_is_no_process() -> None:
    with SolverProcess() as solver:
        pass
    assert solver._helper is None


def test_the_solvers_library_stays_out_of_the_caller() -> None:
    """Which is why it is there: that library would stay in the RAM budget."""
    code = (
        "import sys\n"
        "from test_apart import SolverProcess, _problem\n"
        "with SolverProcess() as solver:\n"
        "    assert solver.solve(_problem(20)) is not None\n"
        "print([name for name in ('highspy', 'numpy') if name in sys.modules])"
    )
    assert _run(code) == ("[]\n", "")


# --- what may happen to it ---


def test_one_that_was_killed_between_problems() -> None:
    with SolverProcess() as solver:
        solver.solve(_problem(20))
        _helper(solver).kill()
        _helper(solver).wait()
        with pytest.raises(EngineError, match="the placement solver ended before it answered"):
            solver.solve(_problem(20))


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",  # without reading the problem
        "head -c 1 <$problems >/dev/null; kill -KILL $$",
        """head -c 1 <$problems >/dev/null; printf '{"event": "done", ' >$answers""",  # in mid-answer
    ],
)
def test_one_that_ends_before_it_answers(impostor: Callable[[str], None], script: str) -> None:
    impostor(script)
    with (
        SolverProcess() as solver,
        pytest.raises(EngineError, match="the placement solver ended before it answered"),
    ):
        solver.solve(_problem(20))


def test_ctrl_c_while_it_searches_ends_it(impostor: Callable[[str], None]) -> None:
    """It has begun to read when it interrupts its parent, which waits for an answer that never comes."""
    impostor("head -c 1 <$problems >/dev/null; kill -INT $PPID; exec sleep 60")
    with pytest.raises(KeyboardInterrupt), SolverProcess() as solver:
        solver.solve(_problem(20))
    assert _helper(solver).wait() == -signal.SIGKILL


def test_a_terminals_ctrl_c_is_for_the_caller_alone() -> None:
    """It goes to the whole group of processes, here while the solver starts; nobody shows a traceback."""
    code = (
        "import os, signal, threading, time\n"
        "from test_apart import SolverProcess, _problem\n"
        "def interrupt():\n"
        "    while solver._helper is None:\n"
        "        time.sleep(0.001)\n"
        "    time.sleep(0.05)\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "try:\n"
        "    with SolverProcess() as solver:\n"
        "        threading.Thread(target=interrupt).start()\n"
        "        solver.solve(_problem(20))\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    assert _run(code) == ("stopped\n", "")
