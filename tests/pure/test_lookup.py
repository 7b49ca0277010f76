"""Devices as the budget allows them, against an engine whose answers the test decides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import make_gpu, make_machine

from memfit.engines.llamacpp import gpus, lookup
from memfit.engines.llamacpp.lookup import dummy_devices, find_devices
from memfit.errors import EngineError, UsageError, WorkerDiedError
from memfit.hardware.machine import Device, Gpu
from memfit.hardware.profile import read_profile
from memfit.memory.rpc_memory import RpcMemory, encode_rpc_memory
from memfit.planner.request import Budget
from memfit.units import GIB, MIB


class _Engine:
    """A worker that knows these devices; None dies of the question, unless it hangs until it is killed."""

    memory: dict[str, tuple[int, int]] | None
    hangs: bool

    def __init__(self) -> None:
        self._killed = threading.Event()
        self._killer = threading.current_thread()

    def kill(self) -> None:
        self._killer = threading.current_thread()
        self._killed.set()

    def ask(
        self, do: str, *, names: list[str] | None = None, wanted: list[int | str] | None = None
    ) -> dict[str, Any]:
        assert do == "device_memory" if names else do == "gpus"
        known = type(self).memory
        if type(self).hangs:
            assert self._killed.wait(timeout=10), "nobody ended it"
            self._killer.join(timeout=10)  # a process takes longer to end than its killer to go on
            raise WorkerDiedError("the engine's worker died")
        if known is None:
            raise WorkerDiedError("the engine's worker died")
        if names:
            return {"devices": {name: known[name] for name in names}}
        gpus = [name for name in known if ":" not in name]
        return {
            "gpus": {
                name: {
                    "description": f"A {name}",
                    "free_bytes": known[name][0],
                    "total_bytes": known[name][1],
                    "pci_id": f"0000:0{index}:00.0" if name.startswith("CUDA") else None,
                    "is_integrated": name == "Vulkan1",
                }
                if wanted is None or index in wanted or name in wanted
                else None
                for index, name in enumerate(gpus)
            }
        }

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Calibration:
    def gpu_runtime_bytes(self, gpu: Gpu) -> int:
        return {"CUDA0": 300, "CUDA1": 400, "Vulkan0": 500}[gpu.engine_name or ""]


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    _Engine.memory = {}
    _Engine.hangs = False
    monkeypatch.setattr(lookup, "LlamaWorker", _Engine)
    monkeypatch.setattr(gpus, "LlamaWorker", _Engine)
    monkeypatch.setattr(gpus, "has_gpu_backend", lambda: bool(_Engine.memory))


def _find(budget: Budget, *known: int) -> list[Device]:
    """`known` are the PCI buses of those that the driver knows, in its order; a bus number tells the size."""
    listed = [
        replace(make_gpu(index, (8 + bus) * GIB, pci_id=f"0000:0{bus}:00.0"), engine_name=None)
        for index, bus in enumerate(known)
    ]
    return find_devices(make_machine(gpus=tuple(listed)), budget, _Calibration())  # type: ignore[arg-type]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Somebody who listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# --- GPUs of this machine ---


def test_every_gpu_is_found_with_its_runtime() -> None:
    """In the engine's order, with the driver's facts of the one on the same bus."""
    _Engine.memory = {"CUDA0": (1, 2), "CUDA1": (1, 2)}
    first, second = _find(Budget(), 1, 0)
    assert (first.name, first.engine_name, first.overhead_bytes) == ("gpu0", "CUDA0", 300)
    assert (second.name, second.engine_name, second.overhead_bytes) == ("gpu1", "CUDA1", 400)
    assert (first.total_bytes, second.total_bytes, second.free_bytes) == (8 * GIB, 9 * GIB, 9 * GIB)
    assert (second.is_memfit_server, second.is_remote) == (False, False)


def test_a_gpu_of_another_maker() -> None:
    """No driver that memfit asks knows it: the engine's own figures count."""
    _Engine.memory = {"Vulkan0": (5 * GIB, 6 * GIB)}
    (found,) = _find(Budget())
    assert (found.name, found.engine_name, found.description) == ("gpu0", "Vulkan0", "A Vulkan0")
    assert (found.free_bytes, found.total_bytes, found.overhead_bytes) == (5 * GIB, 6 * GIB, 500)


def test_linux_adds_its_facts_to_a_gpu_whose_memory_the_engine_knows_better() -> None:
    """An integrated one may use more RAM than the kernel's driver has set apart."""
    _Engine.memory = {"CUDA0": (5 * GIB, 6 * GIB)}  # its PCI id is 0000:00:00.0
    known = replace(make_gpu(3, GIB, pci_id="0000:00:00.0"), kernel_driver="amdgpu", link="PCIe 4.0 x16")
    (found,) = gpus.with_engine_gpus(make_machine(gpus=(known,)), Budget()).gpus
    assert (found.index, found.total_bytes, found.name) == (0, 6 * GIB, "A CUDA0")
    assert (found.kernel_driver, found.link) == ("amdgpu", "PCIe 4.0 x16")


def test_an_integrated_gpu() -> None:
    _Engine.memory = {"Vulkan0": (5 * GIB, 6 * GIB), "Vulkan1": (5 * GIB, 6 * GIB)}
    found = gpus.with_engine_gpus(make_machine(), Budget()).gpus
    assert [one.is_integrated for one in found] == [False, True]


def test_a_gpu_that_the_budget_leaves_out_is_not_looked_at() -> None:
    _Engine.memory = {"CUDA0": (1, 2), "CUDA1": (1, 2)}
    for key in (1, "CUDA1"):
        assert [one.name for one in _find(Budget(vram={key: "1GiB"}), 0, 1)] == ["gpu1"]
    (left_out, _) = gpus.with_engine_gpus(make_machine(), Budget(vram={1: "1GiB"})).gpus
    assert (left_out.name, left_out.total_bytes) == ("CUDA0", 0)


def test_no_gpu_asks_no_engine() -> None:
    _Engine.memory = None
    assert _find(Budget()) == []
    assert _find(Budget(vram={})) == []
    with pytest.raises(UsageError, match="--vram: there is no GPU here"):
        _find(Budget(vram="1GiB"))


def test_an_engine_without_gpu_support() -> None:
    assert _find(Budget(), 0) == []  # nobody asked for it
    with pytest.raises(EngineError, match="built without GPU support"):
        _find(Budget(vram="1GiB"), 0)


def test_a_gpu_that_the_engine_does_not_see() -> None:
    """CUDA_VISIBLE_DEVICES leaves out the driver's second."""
    _Engine.memory = {"CUDA0": (1, 2)}
    assert [one.name for one in _find(Budget(vram="1GiB"), 0, 1)] == ["gpu0"]
    with pytest.raises(UsageError, match="--vram 1: there is no GPU 1"):
        _find(Budget(vram={1: "1GiB"}), 0, 1)


# --- remote ones ---


def test_a_memfit_rpc_server(endpoint: str) -> None:
    """Of 6 GiB it holds 40 MiB idle, and 1.25 more once it computes."""
    _Engine.memory = {
        endpoint: encode_rpc_memory(RpcMemory(budget_bytes=6 * GIB, peak_bytes=40 * MIB, threads=8))
    }
    (device,) = _find(Budget(rpc={endpoint: None}))
    assert (device.name, device.engine_name) == (endpoint, endpoint)
    assert (device.free_bytes, device.total_bytes) == (6 * GIB, 6 * GIB)
    assert device.overhead_bytes == 41.25 * MIB
    assert (device.is_memfit_server, device.is_remote, device.threads) == (True, True, 8)


def test_another_rpc_server_says_only_what_is_free(endpoint: str) -> None:
    _Engine.memory = {endpoint: (5 * GIB, 8 * GIB)}
    (device,) = _find(Budget(rpc={endpoint: None}))
    assert (device.free_bytes, device.total_bytes, device.overhead_bytes) == (5 * GIB, 8 * GIB, 8 * MIB)
    assert (device.is_memfit_server, device.is_remote) == (False, True)


def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, so nobody else takes it; not listening
        port = unused.getsockname()[1]
        with pytest.raises(EngineError) as caught:
            _find(Budget(rpc={f"127.0.0.1:{port}": None}))
    assert str(caught.value) == (
        f"--rpc 127.0.0.1:{port}: nothing answers there (Connection refused); "
        f"start it with: memfit rpc-server --host 127.0.0.1 --port {port}"
    )


def test_something_else_answers(endpoint: str) -> None:
    _Engine.memory = None
    with pytest.raises(EngineError, match=f"--rpc {endpoint}: what answers there is no worker"):
        _find(Budget(rpc={endpoint: None}))


def test_a_worker_that_serves_another_client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _Engine.hangs = True
    monkeypatch.setattr(lookup, "_ANSWER_SECONDS", 0.05)
    with pytest.raises(EngineError) as caught:
        _find(Budget(rpc={endpoint: None}))
    assert str(caught.value) == (
        f"--rpc {endpoint}: no answer within 0 s; a worker serves one client at a time, "
        "so another one may be using it"
    )


@pytest.mark.parametrize("answers", [True, False])
def test_nothing_is_left_to_end_a_worker_that_answered(
    endpoint: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its process, or another that got its number, would be killed later on."""
    _Engine.memory = {endpoint: (GIB, GIB)} if answers else None
    timers: list[threading.Timer] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            timers.append(self)
            super().start()

    monkeypatch.setattr(lookup.threading, "Timer", Timer)
    if answers:
        _find(Budget(rpc={endpoint: None}))
    else:
        with pytest.raises(EngineError, match="what answers there is no worker"):
            _find(Budget(rpc={endpoint: None}))
    (timer,) = timers
    timer.join(timeout=5)
    assert not timer.is_alive()


def test_gpus_come_before_remote_devices(endpoint: str) -> None:
    _Engine.memory = {"CUDA0": (1, 2), endpoint: (GIB, GIB)}
    assert [one.name for one in _find(Budget(rpc={endpoint: None}), 0)] == ["gpu0", endpoint]


# --- a profile's ---


def test_the_gpus_of_a_profile_are_dummy_devices() -> None:
    (device,) = dummy_devices(read_profile("colab-t4"))
    assert (device.name, device.engine_name, device.description) == ("gpu0", "profile:cuda0", "Tesla T4")
    assert (device.total_bytes, device.free_bytes) == (16106127360, 16106127360 - 469762048)
    assert (device.overhead_bytes, device.is_memfit_server) == (300 * MIB, False)
    assert not device.is_remote
    assert dummy_devices(read_profile("pi-8gb")) == []
