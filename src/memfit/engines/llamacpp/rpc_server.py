"""The process behind `memfit rpc-server`: llama.cpp's own RPC server, kept within a budget.

Started as `python -m memfit.engines.llamacpp.rpc_server SETTINGS`. Three functions in ggml's tables are
replaced by ours: the one that tells a device's memory, the one that allocates a buffer, and the one that
frees it. So the server refuses what exceeds its budget, and tells clients what the budget is. On a CPU the
budget is this whole process's resident memory, Python and libraries included; a kernel limit refuses what
is no buffer. On a GPU the budget is the GPU's memory.

It tells its supervisor (rpc_supervisor.py) when it listens, and nothing else. It imports neither numpy nor
rich nor click.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from memfit.engines.allocator import trim
from memfit.engines.llamacpp.library import load_library
from memfit.errors import EngineError, MemfitError, WrongValueError
from memfit.memory.process_memory import process_status
from memfit.memory.reserve import reserve_bytes
from memfit.memory.rpc_memory import LATER_BYTES, RpcMemory, encode_rpc_memory, whole_pages
from memfit.processes.child import Parent
from memfit.units import KIB, MIB, format_bytes, parse_size

__all__ = ["serve"]

_POINTER = ctypes.c_void_p
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_GET_MEMORY = ctypes.CFUNCTYPE(None, _POINTER, _SIZE, _SIZE)
_ALLOCATE = ctypes.CFUNCTYPE(_POINTER, _POINTER, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, _POINTER)
_INIT_BACKEND = ctypes.CFUNCTYPE(_POINTER, _POINTER, ctypes.c_char_p)
# Where ggml-backend-impl.h keeps these functions: in tables that open each structure.
_GET_MEMORY_OFFSET = 2 * 8  # ggml_backend_device: get_name, get_description, get_memory
_INIT_BACKEND_OFFSET = 5 * 8  # then get_type, get_props, init_backend
_ALLOCATE_OFFSET = 8  # ggml_backend_buffer_type: get_name, alloc_buffer
_FREE_OFFSET = 0  # ggml_backend_buffer: free_buffer
# ggml_backend: its guid, 16 functions, its device, its context; ggml_backend_cpu_context: two words, then
# the scratch of graphs and its size.
_CONTEXT_OFFSET, _SCRATCH_OFFSET, _SCRATCH_SIZE_OFFSET = 18 * 8, 2 * 8, 3 * 8
_CPU, _GPU = 0, 1  # GGML_BACKEND_DEVICE_TYPE_…
_PR_SET_PDEATHSIG = 1
_LEAST_BYTES = 8 * MIB  # for a client: a small model's graph and messages take 4
_SILENT_SECONDS, _PROBE_SECONDS, _PROBES = 60, 10, 6  # a client machine that is gone frees us in 2 min


class _HostMemory:
    """This process's resident memory, as the kernel counts it. Free and total are those of the start."""

    def __init__(self, device: int, *, free_bytes: int, total_bytes: int) -> None:
        self.free_bytes, self.total_bytes = free_bytes, total_bytes
        self._libc = ctypes.CDLL(None)
        self._libc.free.argtypes = [_POINTER]
        self._context: int | None = None  # the CPU backend's, once the server has made it
        self._ours = _INIT_BACKEND(self._init_backend)
        self._engine_init_backend = _function(device + _INIT_BACKEND_OFFSET, _INIT_BACKEND)
        _replace(device + _INIT_BACKEND_OFFSET, self._ours)

    def _init_backend(self, device: int, config: bytes | None) -> int | None:
        backend: int | None = self._engine_init_backend(device, config)
        if backend:
            self._context = _POINTER.from_address(backend + _CONTEXT_OFFSET).value
        return backend

    def held_bytes(self) -> int:
        return process_status().resident_bytes

    def peak_bytes(self) -> int:
        return process_status().peak_resident_bytes

    def give_back(self) -> None:
        """Return to the system what a session leaves: freed memory, and the scratch of its largest graph,
        which the backend would keep. It allocates another when it needs one."""
        if self._context:
            scratch = _POINTER.from_address(self._context + _SCRATCH_OFFSET)
            self._libc.free(scratch)  # `new uint8_t[]`, which is malloc
            scratch.value = None
            ctypes.c_size_t.from_address(self._context + _SCRATCH_SIZE_OFFSET).value = 0
        trim()

    def forget_peak(self) -> None:
        """Let the high-water mark begin anew. Where the kernel refuses, it stays that since the start."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def wall_in(self, budget_bytes: int, stacks_bytes: int) -> None:
        """Let the kernel refuse what would carry us over the budget and is no buffer: the protocol's
        messages, which are whole tensors, and scratch.

        RLIMIT_DATA counts private writable memory, touched or not, so what is mapped now stands for what
        is resident now. Stacks count whole, so those to come are added: little of them is touched.
        A refused message ends its connection; any other refusal ends this process.
        """
        status = Path("/proc/self/status").read_text()
        data_bytes = int(status.split("VmData:")[1].split()[0]) * KIB
        limit = data_bytes + budget_bytes - self.held_bytes() - LATER_BYTES + stacks_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class _GpuMemory:
    """A GPU's memory, as its driver tells. What went since the start counts as ours, the driver's own context
    aside. It is looked at when a buffer is made or a client asks; no kernel limit holds here."""

    def __init__(self, device: int) -> None:
        self._device, self._get_memory = device, _function(device + _GET_MEMORY_OFFSET, _GET_MEMORY)
        self.free_bytes, self.total_bytes = self._ask()
        self._peak_bytes = 0

    def _ask(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._get_memory(self._device, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def held_bytes(self) -> int:
        held = max(0, self.free_bytes - self._ask()[0])
        self._peak_bytes = max(self._peak_bytes, held)
        return held

    def peak_bytes(self) -> int:
        self.held_bytes()
        return self._peak_bytes

    def give_back(self) -> None:
        pass

    def forget_peak(self) -> None:
        self._peak_bytes = 0

    def wall_in(self, budget_bytes: int, stacks_bytes: int) -> None:
        pass


class _Budget:
    """Our three functions, and the buffers that exist. The server has one thread, so nothing is locked."""

    def __init__(
        self, memory: _HostMemory | _GpuMemory, budget_bytes: int, threads: int, device: int, buffer_type: int
    ):
        """`threads` are those that compute on a CPU, 0 on a GPU."""
        self._memory = memory
        self._budget_bytes = budget_bytes
        self._threads = threads
        self._live: dict[int, tuple[int, Any]] = {}  # buffer → its bytes, and the function that frees it
        self.idle_bytes = memory.held_bytes()
        # As attributes, since C does not keep them alive.
        self._ours = _GET_MEMORY(self._get_memory), _ALLOCATE(self._allocate), _FREE(self._free)
        self._engine_allocate = _function(buffer_type + _ALLOCATE_OFFSET, _ALLOCATE)
        _replace(device + _GET_MEMORY_OFFSET, self._ours[0])
        _replace(buffer_type + _ALLOCATE_OFFSET, self._ours[1])

    def _settle(self) -> None:
        """Between sessions: what is held now is the idle process, and the next peak begins here."""
        if not self._live:
            self._memory.give_back()
            self._memory.forget_peak()
            self.idle_bytes = self._memory.held_bytes()

    def _get_memory(self, _device: int, free: Any, total: Any) -> None:
        self._settle()
        free[0], total[0] = encode_rpc_memory(
            RpcMemory(
                budget_bytes=self._budget_bytes, peak_bytes=self._memory.peak_bytes(), threads=self._threads
            )
        )

    def _allocate(self, buffer_type: int, size: int) -> int | None:
        self._settle()
        held = sum(live for live, _ in self._live.values())
        if self.idle_bytes + held + size > self._budget_bytes:
            _say(
                f"refused a buffer of {format_bytes(size)}: {format_bytes(self.idle_bytes + held)} of "
                f"{format_bytes(self._budget_bytes)} are taken"
            )
            return None
        buffer: int | None = self._engine_allocate(buffer_type, size)
        if buffer:
            # CUDA knows its buffers by this function and copies between others through the host.
            self._live[buffer] = size, _function(buffer + _FREE_OFFSET, _FREE)
            _replace(buffer + _FREE_OFFSET, self._ours[2])
        return buffer

    def _free(self, buffer: int) -> None:
        _, engine_free = self._live.pop(buffer)
        engine_free(buffer)
        if not self._live:
            self._memory.give_back()  # the next client may be long in coming


def _function(address: int, kind: Any) -> Any:
    return kind(_POINTER.from_address(address).value)


def _replace(address: int, function: Any) -> None:
    _POINTER.from_address(address).value = ctypes.cast(function, _POINTER).value


def _say(text: str) -> None:
    print(f"memfit rpc-server: {text}", file=sys.stderr, flush=True)


def serve(settings: dict[str, Any], parent: Parent) -> None:
    """Serve until killed.

    `settings` are host, port, memory (a size, or None for what is free less the reserve), threads,
    free_bytes and total_bytes (of RAM), stack_bytes (of a thread), and verbose.

    Raises:
        UsageError: the budget is too small for this process and a client, or larger than the device.
        EngineError: the address cannot be had.
    """
    library = load_library(verbose=settings["verbose"])
    ggml, rpc = library.ggml_base, library.rpc
    device_by_type = library.ggml.ggml_backend_dev_by_type
    gpu = device_by_type(_GPU)
    device: int = gpu or device_by_type(_CPU)
    memory = (
        _GpuMemory(device)
        if gpu
        else _HostMemory(device, free_bytes=settings["free_bytes"], total_bytes=settings["total_bytes"])
    )
    budget_bytes = _budget_bytes(memory, settings)
    threads = 0 if gpu else settings["threads"]
    budget = _Budget(memory, budget_bytes, threads, device, ggml.ggml_backend_dev_buffer_type(device))
    if budget_bytes < budget.idle_bytes + _LEAST_BYTES:
        raise WrongValueError(
            "memory",
            f": {format_bytes(budget_bytes)} is too little: the server holds "
            f"{format_bytes(budget.idle_bytes)} while idle, and a client needs {format_bytes(_LEAST_BYTES)}",
        )

    def announce() -> None:
        listening = _await_listening()
        parent.send(
            "ready",
            port=listening.getsockname()[1],
            device=ggml.ggml_backend_dev_name(device).decode(),
            memory_bytes=budget_bytes,
            overhead_bytes=memory.held_bytes(),
        )

    threading.stack_size(settings["stack_bytes"])
    # The announcing thread's stack is used again for the first of the others that compute.
    memory.wall_in(budget_bytes, max(1, settings["threads"] - 1) * settings["stack_bytes"])
    threading.Thread(target=announce, daemon=True).start()
    endpoint = f"{settings['host']}:{settings['port']}"
    devices = ctypes.byref(_POINTER(device))
    rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, settings["threads"], 1, devices)
    raise EngineError(f"llama.cpp's server cannot listen at {endpoint}")


def _budget_bytes(memory: _HostMemory | _GpuMemory, settings: dict[str, Any]) -> int:
    if settings["memory"] is None:
        return whole_pages(memory.free_bytes - reserve_bytes(memory.total_bytes, memory.free_bytes))
    budget_bytes = whole_pages(parse_size(settings["memory"], free_bytes=memory.free_bytes))
    if budget_bytes > memory.total_bytes:
        raise WrongValueError(
            "memory",
            f": {format_bytes(budget_bytes)} is more than there is, {format_bytes(memory.total_bytes)}",
        )
    return budget_bytes


def _await_listening() -> socket.socket:
    """Wait for the server's socket, the only one of this process; it knows which port a 0 became.

    Connections inherit its options. Without keep-alive probes a client whose machine is gone would hold the
    server for ever, since it serves one client at a time.
    """
    while True:
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    found = socket.socket(fileno=os.dup(int(name)))
                    if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
                        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
                        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
                        return found
                    found.close()
        time.sleep(0.005)


def main() -> None:
    parent = Parent(listens=False)  # a thread would count in our own budget
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the group; the parent decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        return  # it died before the kernel knew of our wish
    try:
        serve(settings, parent)
    except MemfitError as error:
        parent.send_error(error)
        os._exit(error.exit_code)


if __name__ == "__main__":
    main()
