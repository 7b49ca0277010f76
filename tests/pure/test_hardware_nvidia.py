"""NVIDIA GPUs through a stand-in for the driver's module, with the faults that drivers have."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from memfit.hardware.machine import Gpu
from memfit.hardware.nvidia import GpuBytes, read_gpus
from memfit.units import GIB, MIB


class _NvmlError(Exception):
    pass


class _LibraryNotFoundError(_NvmlError):
    pass


class _FakeNvml:
    """One GPU. `faults` maps a function's name to the text of the error that it raises."""

    NVMLError = _NvmlError
    NVMLError_LibraryNotFound = _LibraryNotFoundError
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, **answers: Any) -> None:
        self.faults: dict[str, str] = {}
        self.open = False
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlSystemGetDriverVersion": "550.54.14",
            "nvmlSystemGetCudaDriverVersion": 12040,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByPciBusId": "handle",
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 3060",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=12 * GIB, used=GIB, free=11 * GIB),
            "nvmlDeviceGetCudaComputeCapability": (8, 6),
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:0A:00.0"),
            "nvmlDeviceGetMaxPcieLinkGeneration": 4,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetGraphicsRunningProcesses": [],
            **answers,
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*_: object) -> Any:
            if name in self.faults:
                raise _NvmlError(self.faults[name])
            if name == "nvmlInit":
                self.open = True
            elif name == "nvmlShutdown":
                assert self.open, "shut down without having been opened"
                self.open = False
                return None
            assert self.open, f"{name} was asked before nvmlInit"
            return self.answers[name]

        return call


def _read(nvml: _FakeNvml, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Gpu, ...], str | None]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    found = read_gpus()
    assert not nvml.open, "the driver must be let go of whatever happened"
    return found


def _process(pid: int, size_bytes: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=size_bytes)


def test_a_healthy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml(
        nvmlDeviceGetComputeRunningProcesses=[
            _process(7, 300 * MIB),
            _process(os.getpid(), 5 * GIB),
        ],
        nvmlDeviceGetGraphicsRunningProcesses=[_process(7, 300 * MIB), _process(8, 100 * MIB)],
    )
    assert _read(nvml, monkeypatch) == (
        (
            Gpu(
                index=0,
                name="NVIDIA GeForce RTX 3060",
                total_bytes=12 * GIB,
                used_bytes=GIB,
                free_bytes=11 * GIB,
                others_bytes=400 * MIB,
                driver="550.54.14",
                cuda="12.4",
                compute_capability="8.6",
                pci_id="0000:0a:00.0",
                link="PCIe 4.0 x16",
            ),
        ),
        None,
    )


def test_no_library_is_a_normal_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    assert read_gpus() == ((), None)


def test_no_driver_is_a_normal_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml()

    def missing() -> None:
        raise _LibraryNotFoundError("NVML Shared Library Not Found")

    nvml.nvmlInit = missing
    assert _read(nvml, monkeypatch) == ((), None)


@pytest.mark.parametrize("where", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_broken_driver_is_quoted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml()
    nvml.faults[where] = "Driver/library version mismatch"
    gpus, note = _read(nvml, monkeypatch)
    assert gpus == ()
    assert note is not None
    assert note.endswith("Driver/library version mismatch")


def test_unsupported_questions_leave_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml()
    for name in nvml.answers:
        if name.startswith("nvmlDevice") and not name.endswith(
            ("Count", "HandleByIndex", "Name", "MemoryInfo")
        ):
            nvml.faults[name] = "Not Supported"
    nvml.faults["nvmlSystemGetDriverVersion"] = "Function Not Found"
    nvml.faults["nvmlSystemGetCudaDriverVersion"] = "Function Not Found"
    (gpu,), note = _read(nvml, monkeypatch)
    assert note is None
    assert gpu.total_bytes == 12 * GIB
    assert gpu.driver == "unknown"
    assert (gpu.cuda, gpu.compute_capability, gpu.link, gpu.others_bytes) == (None,) * 4


@pytest.mark.parametrize("where", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"])
def test_a_gpu_without_readable_memory_is_left_out(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml()
    nvml.faults[where] = "GPU is lost"
    assert _read(nvml, monkeypatch) == ((), "GPU 0 cannot be used: GPU is lost")


def test_a_gpu_split_into_instances_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, note = _read(_FakeNvml(nvmlDeviceGetMigMode=(1, 1)), monkeypatch)
    assert gpus == ()
    assert note is not None
    assert "MIG" in note


def test_memory_of_others_is_unknown_if_one_process_hides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = [_process(7, 300 * MIB), _process(8, None)]
    nvml = _FakeNvml(nvmlDeviceGetComputeRunningProcesses=processes)
    (gpu,), _ = _read(nvml, monkeypatch)
    assert gpu.others_bytes is None


# --- what a process holds ---


def _bytes_of(
    pid: int, nvml: _FakeNvml, monkeypatch: pytest.MonkeyPatch, pci_id: str | None = "0000:0a:00.0"
) -> dict[str, int]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    return GpuBytes({"gpu3": pci_id})(pid)


def test_what_a_process_holds_is_the_tiers_by_its_pci_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's third GPU may be the driver's first."""
    nvml = _FakeNvml(
        nvmlDeviceGetComputeRunningProcesses=[_process(7, 300), _process(8, 100)],
        nvmlDeviceGetGraphicsRunningProcesses=[_process(7, 320)],
    )
    assert _bytes_of(7, nvml, monkeypatch) == {"gpu3": 320}
    assert _bytes_of(9, nvml, monkeypatch) == {}
    assert _bytes_of(7, nvml, monkeypatch, pci_id=None) == {}


def test_what_all_hold_is_the_tiers_by_its_pci_id(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    memory = nvml.answers["nvmlDeviceGetMemoryInfo"]
    assert GpuBytes({"gpu3": "0000:0a:00.0", "gpu4": None}).used() == {"gpu3": (memory.used, memory.total)}
    nvml.faults["nvmlDeviceGetMemoryInfo"] = "Not Supported"
    assert GpuBytes({"gpu3": "0000:0a:00.0"}).used() == {}


@pytest.mark.parametrize(
    "fault", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetComputeRunningProcesses"]
)
def test_a_driver_that_does_not_say_says_nothing(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml(nvmlDeviceGetComputeRunningProcesses=[_process(7, 300)])
    nvml.faults[fault] = "Not Supported"
    assert _bytes_of(7, nvml, monkeypatch) == {}


def test_without_the_drivers_package_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuBytes({"gpu0": "0000:0a:00.0"})(7) == {}


def test_a_process_whose_bytes_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _FakeNvml(nvmlDeviceGetComputeRunningProcesses=[_process(7, None)])
    assert _bytes_of(7, nvml, monkeypatch) == {}
