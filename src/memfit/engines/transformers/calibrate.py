"""Measures what transformers and its libraries take and how fast they are here, once for each kind of model.

A checkpoint of the same modules and next to no weights is run as a real one is run; what the processes hold
then, its own bytes aside, is what they hold with the real one. Kept in a cache file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memfit import __version__
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineError, EngineMissingError
from memfit.hardware.folders import cache_folder, read_cached, write_cached
from memfit.hardware.machine import Cpu
from memfit.memory.checkpoint import TransformersParameters
from memfit.memory.process import ProcessMemory, group_bytes
from memfit.planner.checkpoint import Runtime
from memfit.units import MIB

__all__ = ["Calibration", "require_libraries"]

_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")
_QUANTIZING, _READING_GGUF = "bitsandbytes", "gguf"
# What kernels for larger matrices keep beyond those for the small ones: up to 12 MiB in
# benchmarks/transformers_engine.py.
_LARGER_BYTES = 8 * MIB
_FORMAT = 4  # of what is cached
# A program of its own: the caller's process may hold anything. Named, not imported: it lies above here.
_REHEARSAL = (sys.executable, "-m", "memfit.cli.rehearse_checkpoint")


def require_libraries(*, quantizes: bool, reads_gguf: bool = False) -> None:
    """Raises EngineMissingError where something that the engine needs is not installed."""
    for name in (*_LIBRARIES, *[_QUANTIZING] * quantizes, *[_READING_GGUF] * reads_gguf):
        if not _version(name):
            raise EngineMissingError(
                f"checkpoints need {name}, which is not installed; torch first, in the build for your "
                "machine (https://pytorch.org), then: pip install 'memfit[transformers]'"
            )


def _version(name: str) -> str:
    """Nothing where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


class Calibration:
    """This machine's figures; each is measured when first asked for."""

    def __init__(self, say: Callable[[str], None], path: Path | None = None) -> None:
        self._say = say
        self._path = path or cache_folder() / "transformers.json"

    def runtime(
        self,
        parameters: TransformersParameters,
        cpu: Cpu,
        *,
        disk_bytes_per_second: float,
        count_parent: bool,
    ) -> Runtime:
        """Raises EngineMissingError, or EngineError where the small model cannot be run."""
        quantizes = parameters.load_in in ("int8", "nf4", "fp4")
        require_libraries(quantizes=quantizes)
        versions = [_version(name) for name in (*_LIBRARIES, _QUANTIZING)]
        key_of_all = " ".join([__version__, str(_FORMAT), cpu.model, platform.python_version(), *versions])
        values = read_cached(self._path, key_of_all)
        plain = "bf16" if quantizes else parameters.load_in
        speeds: dict[str, Any] = values.setdefault("speeds", {})
        for name in {parameters.load_in, plain}:
            key = f"{name} {parameters.threads}"
            if key not in speeds:
                self._say(f"measuring how fast torch multiplies here in {name}, once")
                with TransformersWorker(load_in=name, threads=parameters.threads) as worker:
                    found = worker.ask("kernels", precisions=[name], threads=parameters.threads)
                speeds[key] = found["speeds"][name]
                write_cached(self._path, key_of_all, values)
        memory: dict[str, Any] = values.setdefault("memory", {})
        key = f"{parameters.precision} {parameters.threads} {_identity(parameters.folder)}"
        if key not in memory:
            self._say("measuring what transformers itself needs for this kind of model, once")
            memory[key] = _rehearse(parameters)
            write_cached(self._path, key_of_all, values)
        found = memory[key]
        processes = [ProcessMemory(**found["worker"])]
        if count_parent:
            processes.append(ProcessMemory(**found["parent"]))
        rates = {name: speeds[f"{name} {parameters.threads}"] for name in {parameters.load_in, plain}}
        process_bytes = group_bytes(processes) - found["model_bytes"] + _LARGER_BYTES
        return Runtime(
            process_bytes=process_bytes,
            loading_process_bytes=process_bytes - found["first_pass_bytes"],
            starting_bytes=found["starting_bytes"] + _LARGER_BYTES,
            packs_4bit="avx512_bf16" in cpu.instruction_sets,
            layer_seconds=found["layer_seconds"],
            elements_per_second={name: one["elements_per_second"] for name, one in rates.items()},
            operations_per_second={name: one["operations_per_second"] for name, one in rates.items()},
            disk_bytes_per_second=disk_bytes_per_second,
        )


def _identity(folder: Path) -> str:
    """Of what decides the libraries' memory: the kind of model, and its tokenizer."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        with contextlib.suppress(OSError):
            digest.update(f"{name} {(folder / name).stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _rehearse(parameters: TransformersParameters) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        with TransformersWorker(load_in="bf16", threads=parameters.threads) as worker:
            worker.ask(
                "write_small_checkpoint",
                source=str(parameters.folder),
                folder=folder,
                trust_remote_code=parameters.trust_remote_code,
            )
        small = replace(
            parameters,
            folder=Path(folder),
            paths=(Path(folder) / "model.safetensors",),
            context=1024,
            micro_batch=512,
            device_map=(("", "cpu"),),
        )
        request = json.dumps(small.to_json())
        done = subprocess.run([*_REHEARSAL, request], capture_output=True, text=True)
    if done.returncode != 0:
        raise EngineError(f"transformers cannot run a small model: {done.stderr.strip()[-800:]}")
    return dict(json.loads(done.stdout))
