"""This machine's GPUs, of any maker, as the engine lists them; a driver adds facts by the PCI id.

The engine counts what it can use, and in its own order: CUDA_VISIBLE_DEVICES and their like leave GPUs out,
and CUDA's order is not NVML's. So the number of a GPU is the engine's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memfit.engines.llamacpp.process import LlamaWorker
from memfit.hardware.machine import Gpu, Machine
from memfit.planner.request import Budget

__all__ = ["GPU_BACKENDS", "has_gpu_backend", "with_engine_gpus"]

GPU_BACKENDS = ("cuda", "hip", "vulkan", "sycl", "metal", "musa", "opencl", "cann")


def has_gpu_backend() -> bool:
    """Whether the engine was built for GPUs, by its libraries: no process is started."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent / "lib"
    return any(next(folder.glob(f"*ggml-{name}.*"), None) for name in GPU_BACKENDS)


def with_engine_gpus(machine: Machine, budget: Budget) -> Machine:
    """`machine` with the GPUs that the engine sees; as it was where the engine was built for none.

    Those that the budget leaves out are not looked at, and their bytes are 0.
    """
    wanted = list(budget.vram) if isinstance(budget.vram, Mapping) else None
    if wanted == [] or not has_gpu_backend():
        return machine
    with LlamaWorker() as worker:
        seen = worker.ask("gpus", wanted=wanted)["gpus"]
    known = {gpu.pci_id: gpu for gpu in machine.gpus if gpu.pci_id}
    return replace(
        machine, gpus=tuple(_gpu(index, name, seen[name], known) for index, name in enumerate(seen))
    )


def _gpu(index: int, name: str, found: Mapping[str, Any] | None, known: Mapping[str, Gpu]) -> Gpu:
    if found is None:
        return Gpu(index=index, name=name, total_bytes=0, used_bytes=0, free_bytes=0, engine_name=name)
    by_engine = Gpu(
        index=index,
        name=found["description"],
        total_bytes=found["total_bytes"],
        used_bytes=max(0, found["total_bytes"] - found["free_bytes"]),
        free_bytes=found["free_bytes"],
        pci_id=found["pci_id"],
        engine_name=name,
        is_integrated=found["is_integrated"],
    )
    there = known.get(found["pci_id"])
    if there is None:
        return by_engine
    if there.kernel_driver:  # which counts no RAM that an integrated GPU may use
        return replace(by_engine, kernel_driver=there.kernel_driver, link=there.link)
    return replace(there, index=index, engine_name=name, is_integrated=by_engine.is_integrated)
