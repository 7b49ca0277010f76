"""Every helper process with libraries that print to stdout, from Python and from C, at start and ever after.

What it answers is what it answers without them. The real engines' processes are in
tests/engine/test_printing_engines.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gguf_files import tiny_model

from hub_server import HubServer
from memfit.cli import doctor
from memfit.errors import ModelNotFoundError
from memfit.hub.resolve import resolve
from memfit.planner.llamacpp.placement import DeviceRoom, Layer, Piece, Problem
from memfit.planner.llamacpp.solver import solve
from memfit.planner.llamacpp.solver_process import SolverProcess

pytestmark = pytest.mark.usefixtures("printing_libraries")


def test_the_placement_solver() -> None:
    layer = Layer(core=Piece(name="core", size_bytes=10, seconds=(10.0, 1.0)), kv_bytes=0, ffn_tensors=())
    devices = (
        DeviceRoom(room_bytes=100, split_seconds=0.0),
        DeviceRoom(room_bytes=15, split_seconds=0.0),
    )
    problem = Problem(devices=devices, layers=(layer, layer), output=None)
    with SolverProcess() as solver:
        assert [solver.solve(problem) for _ in range(3)] == [solve(problem)] * 3


def test_the_process_that_asks_the_network(hub: HubServer) -> None:
    address = hub.add_file("org/tiny.gguf", tiny_model().encode())
    said: list[str] = []
    assert resolve(address, said.append).read_spec().vocabulary == 3
    assert said == [f"reading the header of {address}"]
    with pytest.raises(ModelNotFoundError, match="nothing is at"):
        resolve(f"{hub.url}/files/none.gguf")


def test_the_doctors_question(tmp_path: Path) -> None:
    """To a library that is a printing one itself."""
    has = {"avx2", "fma"}
    code = '#include <stdio.h>\nvoid ggml_cpu_init(void) { puts("avx512 avx512"); fflush(stdout); }\n'
    for name in doctor._KERNELS:
        code += f"int ggml_cpu_has_{name}(void) {{ return {int(name in has)}; }}\n"
    source, library = tmp_path / "ggml-cpu.c", tmp_path / "libggml-cpu.so"
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    assert set(doctor._built_kernels(library)) == has
