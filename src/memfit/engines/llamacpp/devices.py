"""The engine's devices by name: local GPUs, remote ones behind RPC, and dummy devices in the place of either.

All of it lives in the worker, since the engine aborts when a remote device does not answer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from memfit.engines.llamacpp.c_functions import DeviceProperties
from memfit.engines.llamacpp.dummy_device import GPU_TYPE, DummyDevice
from memfit.engines.llamacpp.library import Library
from memfit.errors import EngineError

__all__ = ["Devices"]

_CPU, _INTEGRATED = 0, 2  # ggml_backend_dev_type


class Devices:
    """Finds each device once; the engine keeps them until the process ends."""

    def __init__(self, library: Library, *, dummies: bool) -> None:
        """With `dummies`, each device behind RPC and each one of a profile is a dummy device."""
        self._library = library
        self._dummies = dummies
        self._dummy_devices: dict[str, DummyDevice] = {}

    def find(self, names: Sequence[str]) -> list[int]:
        """Addresses of devices, in order.

        Raises:
            EngineError: the engine was built without it.
        """
        found: list[int] = []
        for name in names:
            device: int | None
            if ":" not in name:  # neither remote nor a profile's
                device = self._library.ggml.ggml_backend_dev_by_name(name.encode())
            elif self._dummies:
                device = self._dummy(name)
            else:
                device = self._remote(name)
            if not device:
                raise EngineError(f"the engine has no device {name}")
            found.append(device)
        return found

    @property
    def cpu(self) -> int:
        """The address of this machine's CPU as a device."""
        return int(self._library.ggml.ggml_backend_dev_by_type(_CPU))

    def gpus(self) -> list[str]:
        """The engine's names of this machine's GPUs, in its order: "CUDA0", "Vulkan0"."""
        ggml, base = self._library.ggml, self._library.ggml_base
        devices = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
        return [
            base.ggml_backend_dev_name(device).decode()
            for device in devices
            if base.ggml_backend_dev_type(device) in (GPU_TYPE, _INTEGRATED)
        ]

    def properties(self, name: str) -> dict[str, Any]:
        """What the engine knows of a device, as `gpus.py` reads it. CUDA makes a context there to answer."""
        found = DeviceProperties()
        self._library.ggml_base.ggml_backend_dev_get_props(self.find([name])[0], ctypes.byref(found))
        return {
            "description": found.description.decode(),
            "free_bytes": found.free_bytes,
            "total_bytes": found.total_bytes,
            "pci_id": found.id.decode() if found.id else None,
            "is_integrated": found.type == _INTEGRATED,
        }

    def memory(self, name: str) -> tuple[int, int]:
        """Free and total bytes, as the device itself says."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._library.ggml_base.ggml_backend_dev_memory(
            self.find([name])[0], ctypes.byref(free), ctypes.byref(total)
        )
        return free.value, total.value

    def default_buffer_type(self, device: int) -> int:
        """Where a device keeps weights; the CPU's is RAM."""
        return int(self._library.ggml_base.ggml_backend_dev_buffer_type(device))

    def _remote(self, endpoint: str) -> int | None:
        server = self._library.rpc.ggml_backend_rpc_add_server(endpoint.encode())
        device: int | None = server and self._library.ggml_base.ggml_backend_reg_dev_get(server, 0)
        return device

    def _dummy(self, name: str) -> int:
        if name not in self._dummy_devices:
            self._dummy_devices[name] = DummyDevice(self._library.ggml_base, self.cpu, name)
        return self._dummy_devices[name].address
