"""Probes NVIDIA GPUs through NVML, their driver's library; drm.py has those of other makers.

A machine without a driver is normal. A driver that is there and fails leaves a note in its own words.
A GPU's index is NVML's, by PCI address. Which GPUs CUDA_VISIBLE_DEVICES leaves is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.hardware.machine import Gpu

__all__ = ["GpuBytes", "GpuMoment", "GpuWatch", "read_gpus"]

_Nvml = Any  # the pynvml module, which has no types


def read_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that can be used, and why others cannot, where the driver says something."""
    try:
        import pynvml
    except ImportError:
        return (), None
    try:
        pynvml.nvmlInit()
        try:
            return _devices(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound:
        return (), None
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver does not answer: {error}"


class GpuBytes:
    """What a process holds on some GPUs. Their driver stays open, to be asked many times a second."""

    def __init__(self, pci_ids: Mapping[str, str | None]) -> None:
        """`pci_ids` by tier ("gpu0"); a GPU without one, or of another maker, is not looked at."""
        self._handles: dict[str, Any] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # the package or the driver is missing, each with errors of its own
            return
        self._nvml = pynvml
        for tier, pci_id in pci_ids.items():
            if pci_id and (handle := _optional(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId, pci_id)):
                self._handles[tier] = handle

    def used(self) -> dict[str, tuple[int, int]]:
        """By tier, bytes that all programs hold, and what there is."""
        found = {}
        for tier, handle in self._handles.items():
            if memory := _optional(self._nvml, self._nvml.nvmlDeviceGetMemoryInfo, handle):
                found[tier] = (memory.used, memory.total)
        return found

    def __call__(self, pid: int) -> dict[str, int]:
        """Bytes by tier; without those whose driver does not say."""
        found = {}
        for tier, handle in self._handles.items():
            # One of the lists is enough: a worker computes.
            lists = [_optional(self._nvml, query, handle) for query in _queries(self._nvml)]
            if (held := _by_process(lists).get(pid)) is not None:
                found[tier] = held
        return found


@dataclass(frozen=True, kw_only=True)
class GpuMoment:
    """A GPU as it is now; None where its driver does not say."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    processes: Mapping[int, int | None] | None = None  # bytes by process id
    temperature_celsius: int | None = None
    power_watts: float | None = None


class GpuWatch:
    """All NVIDIA GPUs, again and again. Their driver stays open."""

    def __init__(self) -> None:
        self._nvml: _Nvml | None = None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # as in GpuBytes
            return
        self._nvml = pynvml

    def look(self) -> tuple[GpuMoment, ...]:
        return tuple(self._moments(self._nvml)) if self._nvml else ()

    def _moments(self, nvml: _Nvml) -> Iterator[GpuMoment]:
        for index in range(_optional(nvml, nvml.nvmlDeviceGetCount) or 0):
            handle = _optional(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
            memory = handle and _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
            if not memory:
                continue
            lists = [_optional(nvml, query, handle) for query in _queries(nvml)]
            milliwatts = _optional(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
            yield GpuMoment(
                index=index,
                name=_optional(nvml, nvml.nvmlDeviceGetName, handle) or f"GPU {index}",
                total_bytes=memory.total,
                used_bytes=memory.used,
                processes=None if None in lists else _by_process(lists),
                temperature_celsius=_optional(
                    nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
                ),
                power_watts=None if milliwatts is None else milliwatts / 1000,
            )


def _devices(nvml: _Nvml) -> tuple[tuple[Gpu, ...], str | None]:
    driver = _optional(nvml, nvml.nvmlSystemGetDriverVersion) or "unknown"
    version = _optional(nvml, nvml.nvmlSystemGetCudaDriverVersion)  # 12040 is 12.4
    cuda = version and f"{version // 1000}.{version % 1000 // 10}"
    gpus, notes = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_partitioned(nvml, handle):
                notes.append(f"GPU {index} is split into MIG instances, which memfit cannot use")
                continue
            gpus.append(_device(nvml, index, handle, driver=driver, cuda=cuda))
        except nvml.NVMLError as error:
            # Also a GPU without memory of its own, which shares the machine's RAM.
            notes.append(f"GPU {index} cannot be used: {error}")
    return tuple(gpus), "; ".join(notes) or None


def _device(nvml: _Nvml, index: int, handle: Any, *, driver: str, cuda: str | None) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability = _optional(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=memory.total,
        used_bytes=memory.used,
        free_bytes=memory.free,
        others_bytes=_others_bytes(nvml, handle),
        driver=driver,
        cuda=cuda,
        compute_capability=capability and f"{capability[0]}.{capability[1]}",
        pci_id=_pci_id(nvml, handle),
        link=_link(nvml, handle),
    )


def _pci_id(nvml: _Nvml, handle: Any) -> str | None:
    """As the engine writes it: NVML's domain has 8 digits, and capital letters."""
    pci = _optional(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    return pci and str(pci.busId).lower()[-len("0000:01:00.0") :]


def _link(nvml: _Nvml, handle: Any) -> str | None:
    generation = _optional(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
    width = _optional(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
    return f"PCIe {generation}.0 x{width}" if generation and width else None


def _others_bytes(nvml: _Nvml, handle: Any) -> int | None:
    """Summed over the processes that the driver lists; a container's driver may list fewer."""
    lists = [_optional(nvml, query, handle) for query in _queries(nvml)]
    if None in lists:
        return None
    others = [size for pid, size in _by_process(lists).items() if pid != os.getpid()]
    known = [size for size in others if size is not None]
    return sum(known) if len(known) == len(others) else None


def _queries(nvml: _Nvml) -> tuple[Any, Any]:
    return nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses


def _by_process(lists: Sequence[Any]) -> dict[int, int | None]:
    """Bytes; None where the driver hides them."""
    held: dict[int, int | None] = {}
    for processes in lists:
        for process in processes or ():
            # One process may be in both lists, with the same bytes.
            size, known = process.usedGpuMemory, held.get(process.pid, 0)
            held[process.pid] = None if size is None or known is None else max(size, known)
    return held


def _is_partitioned(nvml: _Nvml, handle: Any) -> bool:
    modes = _optional(nvml, nvml.nvmlDeviceGetMigMode, handle)  # (current, pending)
    return modes is not None and modes[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _optional(nvml: _Nvml, query: Callable[..., Any], *arguments: Any) -> Any:
    """A query that older drivers and some GPUs do not answer."""
    try:
        return query(*arguments)
    except nvml.NVMLError:
        return None
