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
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from memfit import __version__
from memfit.engines.calibration import CachedFigures, run_small_model
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import EngineMissingError
from memfit.hardware.folders import cache_folder
from memfit.hardware.machine import Cpu, Gpu
from memfit.headers.hf_config import HfConfig
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import LOAD_IN, STORED
from memfit.memory.process_memory import ProcessMemory, group_bytes
from memfit.planner.transformers.runtime import GpuRuntime, Processes, Runtime, emulates_bf16
from memfit.units import MIB

__all__ = ["cached_figures", "engine_build", "measure_processes", "measure_runtime", "require_libraries"]

_LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")
_QUANTIZING = "bitsandbytes"
# What kernels for larger matrices keep beyond those for the small ones: up to 12 MiB in
# benchmarks/transformers_engine.py.
_LARGER_BYTES = 8 * MIB
_FORMAT = 8  # of what is cached


def require_libraries(*more: str) -> None:
    """Raises EngineMissingError where a package that the engine needs, or one of `more`, is not installed."""
    for name in (*_LIBRARIES, *more):
        if not _version(name):
            raise EngineMissingError(
                f"checkpoints need {name}, which is not installed; torch first, in the build for your "
                "machine (https://pytorch.org), then: pip install 'memfit[transformers]'"
            )


def engine_build() -> str:
    """The engine with its libraries' versions, as plans say it."""
    return f"transformers of {_versions()}"


def _versions() -> str:
    return " ".join(_version(name) for name in (*_LIBRARIES, _QUANTIZING))


def _version(name: str) -> str:
    """Nothing where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def cached_figures(cpu_model: str, say: Callable[[str], None]) -> CachedFigures:
    """What was measured here before."""
    key = " ".join([__version__, str(_FORMAT), cpu_model, platform.python_version(), _versions()])
    return CachedFigures(cache_folder() / "transformers.json", key, say)


def measure_runtime(
    config: TransformersConfig,
    hf_config: HfConfig,
    cpu: Cpu,
    *,
    forms: Sequence[str] = (),
    say: Callable[[str], None],
    gpus: Sequence[tuple[Gpu, int]] = (),
    disk_bytes_per_second: tuple[float, float],
    count_parent: bool,
) -> Runtime:
    """This machine's figures, on the CPU or on `gpus`, each with its budget in bytes. `forms` are those of
    packed weights, whose speed is wanted too.

    Raises:
        EngineMissingError: a library is not installed.
        EngineError: the small model cannot be run, or torch cannot use a GPU.
    """
    require_libraries(*config.precision.packages)
    cached = cached_figures(cpu.model, say)
    where = _where(config, gpus)
    shape = tuple(-(-size // 64) * 64 for size in (hf_config.intermediate_size, hf_config.hidden_size))
    speeds = {
        name: cached.once(
            f"{name} {shape} {where}",
            f"how fast torch multiplies here in {name}",
            partial(_measure_speed, name, shape, config.threads, gpus),
        )
        for name in dict.fromkeys((config.load_in, config.precision.plain_type, *forms))
        if name != STORED
    }
    found = _measured(config, cached, gpus)
    return Runtime(
        **vars(_processes(found, count_parent=count_parent)),
        packs_4bit="avx512_bf16" in cpu.instruction_sets and not gpus,
        layer_seconds=found["layer_seconds"],
        elements_per_second={name: one["elements_per_second"] for name, one in speeds.items()},
        operations_per_second={name: one["operations_per_second"] for name, one in speeds.items()},
        link_bytes_per_second=speeds[config.precision.plain_type]["link_bytes_per_second"],
        disk_bytes_per_second=disk_bytes_per_second,
        basis="provisional" if any(one["is_provisional"] for one in speeds.values()) else "calibrated",
        gpus=tuple(_gpu_runtime(gpu, budget, found["gpu_process_bytes"]) for gpu, budget in gpus),
    )


def measure_processes(
    config: TransformersConfig, cpu: Cpu, *, say: Callable[[str], None], count_parent: bool
) -> Processes:
    """Memory only, on the CPU. Errors as in `measure_runtime`."""
    require_libraries(*config.precision.packages)
    return _processes(_measured(config, cached_figures(cpu.model, say), ()), count_parent=count_parent)


def _where(config: TransformersConfig, gpus: Sequence[tuple[Gpu, int]]) -> str:
    return f"on {gpus[0][0].name} {gpus[0][0].driver}" if gpus else f"{config.threads} threads"


def _measured(
    config: TransformersConfig, cached: CachedFigures, gpus: Sequence[tuple[Gpu, int]]
) -> dict[str, Any]:
    found: dict[str, Any] = cached.once(
        f"{config.precision.name} {_identity(config.folder)} {_where(config, gpus)}",
        "what transformers itself needs for this kind of model",
        partial(_try_small_checkpoint, config, gpus),
    )
    return found


def _processes(found: dict[str, Any], *, count_parent: bool) -> Processes:
    counted = ("worker", "parent") if count_parent else ("worker",)
    process_bytes = group_bytes([ProcessMemory(**found[one]) for one in counted])
    process_bytes += _LARGER_BYTES - found["model_bytes"]
    return Processes(
        process_bytes=process_bytes,
        loading_process_bytes=process_bytes - found["first_pass_bytes"],
        starting_bytes=found["starting_bytes"] + _LARGER_BYTES,
    )


def _gpu_runtime(gpu: Gpu, budget: int, process_bytes: int) -> GpuRuntime:
    limit = min(budget, gpu.free_bytes)
    return GpuRuntime(
        number=gpu.index,
        budget_bytes=budget,
        limit_bytes=limit,
        process_bytes=process_bytes,
        emulates_bf16=emulates_bf16(gpu),
    )


def _measure_speed(
    name: str, shape: tuple[int, ...], threads: int, gpus: Sequence[tuple[Gpu, int]]
) -> dict[str, Any]:
    numbers = [gpu.index for gpu, _ in gpus]
    load_in = name if name in LOAD_IN else "bf16"
    with TransformersWorker(load_in=load_in, threads=threads, gpus=numbers) as worker:
        return worker.ask("kernels", precision=name, shape=shape, threads=threads, gpu=bool(gpus))


def _identity(folder: Path) -> str:
    """Of what decides the libraries' memory: the kind of model, and its tokenizer."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        with contextlib.suppress(OSError):
            digest.update(f"{name} {(folder / name).stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _try_small_checkpoint(config: TransformersConfig, gpus: Sequence[tuple[Gpu, int]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        with TransformersWorker(load_in="bf16", threads=config.threads) as worker:
            worker.ask(
                "write_small_checkpoint",
                source=str(config.folder),
                folder=folder,
                trust_remote_code=config.trust_remote_code,
            )
        small = replace(
            config,
            folder=Path(folder),
            paths=(Path(folder) / "model.safetensors",),
            context=1024,
            ubatch=512,
            device_map=(("", "cpu"),),
            gpus=tuple(gpu.index for gpu, _ in gpus[:1]),
            gguf=None,  # the small model is a checkpoint already
        )
        what = "transformers cannot run a small model"
        return run_small_model("transformers", json.dumps(small.to_json()), what)
