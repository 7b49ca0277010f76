"""Starts the process of `memfit rpc-server` (rpc_server.py), watches it, and starts it again when it dies.

A malformed message can end llama.cpp's server by a failed assertion, and a kernel limit by a failed
allocation; the port must not die with it. What this process holds itself is small and not counted in the
budget: the server's is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memfit.closing import Closing
from memfit.engines.allocator import EXACT
from memfit.errors import EngineError, MemfitError, UsageError, WrongValueError
from memfit.hardware.cgroup import read_cgroup
from memfit.hardware.cpu import read_cpu
from memfit.hardware.ram import read_ram
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper
from memfit.units import KIB, parse_size

__all__ = ["Restarts", "RpcServerInfo", "RpcSupervisor"]

_RESTARTS, _WITHIN_SECONDS = 5, 10.0
_CAUSES: Mapping[int, str] = {
    signal.SIGABRT: "gave up: a request that it could not take, or for more memory than --memory leaves"
}
_STACK_BYTES = 1024 * KIB  # of each thread; the server's kernel limit counts stacks whole, touched or not


@dataclass(frozen=True, kw_only=True)
class RpcServerInfo:
    """What a running server offers, and where."""

    host: str  # an IPv4 address
    port: int
    device: str  # the engine's name: "CPU", "CUDA0"
    memory_bytes: int  # the budget
    overhead_bytes: int  # of it, what the server holds while idle
    server_pid: int


class Restarts:
    """Counts a server's deaths: more than 5 within 10 seconds are no accident."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=_RESTARTS)

    def allow(self, now: float) -> bool:
        """Whether a server that died at `now` may be started again."""
        hopeless = len(self._deaths) == _RESTARTS and now - self._deaths[0] < _WITHIN_SECONDS
        self._deaths.append(now)
        return not hopeless


class RpcSupervisor(Closing):
    """A context manager around one server process."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        memory: str | None = None,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        """Check what is asked; nothing is started. `port` 0 is any free one, `memory` a size.

        Raises:
            UsageError: the address cannot be had, or the size makes no sense.
        """
        cgroup = read_cgroup()
        ram, cpu = read_ram(cgroup), read_cpu(cgroup)
        if memory is not None:
            try:
                parse_size(memory, free_bytes=ram.available_bytes)
            except ValueError as error:
                raise WrongValueError("memory", f": {error}", got=memory) from None
        self._settings: dict[str, Any] = {
            "parent": os.getpid(),
            "host": _address(host, port),
            "port": port,
            "memory": memory,
            "threads": threads or cpu.threads,
            "stack_bytes": _STACK_BYTES,
            "free_bytes": ram.available_bytes,
            "total_bytes": ram.total_bytes,
            "verbose": verbose,
        }
        self._helper: Helper | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return ipaddress.ip_address(self._settings["host"]).is_loopback

    def start(self) -> RpcServerInfo:
        """Start the server and wait until it listens. Again, it takes the same port and budget.

        Raises:
            UsageError: the budget is less than the server itself holds.
            EngineError: the engine is missing, or the server ended before it listened.
        """
        self.close()
        self._helper = helper = Helper(
            "memfit.engines.llamacpp.rpc_server",
            json.dumps(self._settings),
            name="the server",
            # The library prints who comes and goes to stdout.
            log="shown" if self._settings["verbose"] else "stderr shown",
            environment=_environment(),
            causes=_CAUSES,
        )
        said = helper.receive()  # the one message that there is
        if said is None:
            raise helper.obituary("before it listened")
        if said.pop("event") == "error":
            raise rebuild_error(said)
        info = RpcServerInfo(host=self._settings["host"], server_pid=helper.pid, **said)
        self._settings |= {"port": info.port, "memory": str(info.memory_bytes)}
        return info

    def supervise(self, say: Callable[[str], None]) -> None:
        """Start the server again whenever it dies, and tell `say`. Returns only by an exception.

        Raises:
            EngineError: it dies too often.
        """
        assert self._helper is not None, "started first"
        restarts = Restarts()
        while True:
            self._helper.wait()
            cause = self._helper.cause_of_death()
            if not restarts.allow(time.monotonic()):
                raise EngineError(
                    f"the server {cause}, and was started {_RESTARTS} times within {_WITHIN_SECONDS:.0f} s"
                )
            say(f"the server {cause}; starting it again")
            try:
                say(f"lending again, by process {self.start().server_pid}")
            except MemfitError as error:
                say(str(error))

    def close(self) -> None:
        """End the server and wait for it. Safe to repeat."""
        if self._helper is not None:
            self._helper.close(signal.SIGTERM)


def _address(host: str, port: int) -> str:
    """The IPv4 address of a host of this machine, tried out: the server itself would not say why not."""
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except (socket.gaierror, UnicodeError):
        raise WrongValueError("host", f" {host}: this is no IPv4 address, and no name of one") from None
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            trial.bind(found)
        except OSError as error:
            raise UsageError(
                f"cannot listen at {host}:{port}: {error.strerror}; try another --port, or 0 for a free one"
            ) from None
    return str(found[0])


def _environment() -> dict[str, str]:
    return {
        # Client and server often share the cores, and threads that spin while they wait ruin each other.
        "GOMP_SPINCOUNT": "1000",
        **os.environ,
        "GGML_NO_BACKTRACE": "1",  # an abort would try to attach gdb
        "OMP_STACKSIZE": f"{_STACK_BYTES // KIB}K",
        **EXACT,
        "MALLOC_ARENA_MAX": "1",
    }
