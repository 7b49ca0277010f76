"""Finds the devices that a budget names, with the bytes reserved on each for its runtime and context; makes
dummy devices of a profile's GPUs.

A GPU's runtime and context are measured by calibrate.py; a profile's GPU gets a constant. A device behind
RPC tells what its server holds.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.gpus import with_engine_gpus
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.errors import EngineError, WorkerDiedError
from memfit.hardware.machine import DUMMY, Device, Machine
from memfit.hardware.profile import Profile
from memfit.memory.rpc_memory import LATER_BYTES, decode_rpc_memory
from memfit.planner.request import Budget, require_devices
from memfit.units import MIB

__all__ = ["dummy_devices", "find_devices"]

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_SERVER_BYTES = 8 * MIB  # llama.cpp's own rpc-server, which does not say: benchmarks/devices.py
_CUDA_RUNTIME_BYTES = 300 * MIB  # of a profile's GPU: context and kernels; a real one is measured


def find_devices(machine: Machine, budget: Budget, calibration: LlamaCalibration) -> list[Device]:
    """The GPUs that the engine lists and the budget allows, then the remote devices that it names.

    Raises:
        UsageError: a GPU that is not there.
        EngineError: a remote device does not answer, or the engine was built without the GPU's backend.
    """
    machine = with_engine_gpus(machine, budget)
    require_devices(budget, machine, is_dummy=False)
    return [*_gpus(machine, budget, calibration), *(_remote(endpoint) for endpoint in budget.rpc)]


def dummy_devices(profile: Profile) -> list[Device]:
    """A profile's GPUs, as dummy devices: devices.py knows them by the colon in their names."""
    return [
        Device(
            name=f"gpu{index}",
            engine_name=f"{DUMMY}{'cuda' if gpu.compute_capability else 'gpu'}{index}",
            description=gpu.name,
            total_bytes=gpu.total_bytes,
            free_bytes=gpu.total_bytes - gpu.reserved_bytes,
            overhead_bytes=_CUDA_RUNTIME_BYTES,
            is_memfit_server=False,
        )
        for index, gpu in enumerate(profile.gpus)
    ]


def _gpus(machine: Machine, budget: Budget, calibration: LlamaCalibration) -> Sequence[Device]:
    wanted = [gpu for gpu in machine.gpus if budget.gpu_bytes(gpu)]
    if not wanted:
        return []
    if not all(gpu.engine_name for gpu in wanted):
        if budget.vram is None:
            return []  # nobody asked for one
        raise EngineError(
            "the engine was built without GPU support; memfit doctor gives the command that mends it"
        )
    return [
        Device(
            name=f"gpu{gpu.index}",
            engine_name=gpu.engine_name or "",
            description=gpu.name,
            total_bytes=gpu.total_bytes,
            free_bytes=gpu.free_bytes,
            overhead_bytes=calibration.gpu_runtime_bytes(gpu),
            is_memfit_server=False,
            is_integrated=gpu.is_integrated,
        )
        for gpu in wanted
    ]


def _remote(endpoint: str) -> Device:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"--rpc {endpoint}: nothing answers there ({error.strerror or error}); "
            f"start it with: memfit rpc-server --host {host} --port {port}"
        ) from None
    with LlamaWorker() as worker:
        too_late = threading.Event()  # set before the killing, which the answer's reader may notice first

        def give_up() -> None:
            too_late.set()
            worker.kill()

        alarm = threading.Timer(_ANSWER_SECONDS, give_up)
        alarm.start()
        try:
            free, total = worker.ask("device_memory", names=[endpoint])["devices"][endpoint]
        except WorkerDiedError as error:
            raise EngineError(
                f"--rpc {endpoint}: no answer within {_ANSWER_SECONDS:.0f} s; a worker serves one client at "
                "a time, so another one may be using it"
                if too_late.is_set()
                else f"--rpc {endpoint}: what answers there is no worker of this version: {error}"
            ) from None
        finally:
            alarm.cancel()
    memory = decode_rpc_memory(free, total)
    return Device(
        name=endpoint,
        engine_name=endpoint,
        description="memfit rpc-server" if memory else "RPC server",
        total_bytes=memory.budget_bytes if memory else total,
        free_bytes=memory.budget_bytes if memory else free,
        overhead_bytes=memory.peak_bytes + LATER_BYTES if memory else _SERVER_BYTES,
        threads=memory.threads if memory else 0,
        is_memfit_server=memory is not None,
    )
