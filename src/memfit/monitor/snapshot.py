"""All that is shown, at one moment: this machine, its memfit processes and their servers, or one server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from memfit.closing import Closing
from memfit.hardware.cgroup import read_cgroup
from memfit.hardware.drm import read_drm_gpus
from memfit.hardware.nvidia import GpuMoment, GpuWatch
from memfit.hardware.ram import read_ram
from memfit.monitor.processes import CommandLine, ProcessGroup, ProcessWatch
from memfit.monitor.servers import Server, ServerState

__all__ = ["CpuState", "GpuState", "MachineState", "MachineWatch", "RamState", "ServerWatch", "Snapshot"]

_MOST_AT_ONCE = 8  # servers that are asked


@dataclass(frozen=True, kw_only=True)
class RamState:
    total_bytes: int
    available_bytes: int
    memfit_bytes: int  # of all its processes that may be read
    others_bytes: int  # neither available nor memfit's


@dataclass(frozen=True, kw_only=True)
class CpuState:
    """CPUs that were kept busy since the last look."""

    cpus: int
    busy: float
    memfit: float


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """None where the driver does not say."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    memfit_bytes: int | None
    others_bytes: int | None  # of other programs' processes
    temperature_celsius: int | None
    power_watts: float | None


@dataclass(frozen=True, kw_only=True)
class MachineState:
    ram: RamState
    cpu: CpuState
    gpus: tuple[GpuState, ...]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """`machine` is None where one server was asked for by its address."""

    machine: MachineState | None = None
    processes: tuple[ProcessGroup, ...] = ()
    servers: tuple[ServerState, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As docs/json.md has it."""
        servers = [_server_json(one) for one in self.servers]
        if self.machine is None:
            return {"servers": servers}
        processes = [_process_json(one) for one in self.processes]
        return {"machine": asdict(self.machine), "processes": processes, "servers": servers}


class ServerWatch(Closing):
    """One server, wherever it is."""

    def __init__(self, address: str, key: str | None) -> None:
        self._server = Server(address, key)

    def look(self) -> Snapshot:
        return Snapshot(servers=(self._server.look(),))

    def close(self) -> None:
        self._server.close()


class MachineWatch(Closing):
    """This machine, and the servers among its memfit processes."""

    def __init__(self, key: str | None, read: Callable[[Sequence[str]], CommandLine]) -> None:
        """`read` is ProcessWatch's. Servers of other users are not told the key."""
        self._key = key
        self._processes, self._gpus = ProcessWatch(read), GpuWatch()
        self._servers: dict[tuple[int, str], Server] = {}
        self._asking = ThreadPoolExecutor(_MOST_AT_ONCE, "memfit-monitor")
        psutil.cpu_percent()  # from here on

    def look(self) -> Snapshot:
        groups = self._processes.look()
        servers = self._serving(groups)
        states = [servers[0].look()] if len(servers) == 1 else self._asking.map(Server.look, servers)
        return Snapshot(machine=self._machine(groups), processes=groups, servers=tuple(states))

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def _serving(self, groups: Iterable[ProcessGroup]) -> list[Server]:
        found = {(one.pid, one.address): one for one in groups if one.address}
        for gone in self._servers.keys() - found.keys():
            self._servers.pop(gone).close()
        for key, group in found.items():
            if key not in self._servers:
                self._servers[key] = Server(key[1], self._key if group.is_own_user else None)
        return [self._servers[key] for key in found]

    def _machine(self, groups: Sequence[ProcessGroup]) -> MachineState:
        ram = read_ram(read_cgroup())
        # A page of a file counts as available, whoever maps it.
        taken = sum(one.anonymous_bytes or 0 for one in groups)
        cpus = psutil.cpu_count() or 1
        return MachineState(
            ram=RamState(
                total_bytes=ram.total_bytes,
                available_bytes=ram.available_bytes,
                memfit_bytes=sum(one.held_bytes or 0 for one in groups),
                others_bytes=max(0, ram.total_bytes - ram.available_bytes - taken),
            ),
            cpu=CpuState(
                cpus=cpus,
                busy=cpus * psutil.cpu_percent() / 100,
                memfit=sum(one.cpus for one in groups),
            ),
            gpus=self._gpu_states({pid for one in groups for pid in one.pids}),
        )

    def _gpu_states(self, ours: set[int]) -> tuple[GpuState, ...]:
        found = [_gpu_state(one, ours) for one in self._gpus.look()]
        for gpu in read_drm_gpus(len(found)):
            if gpu.total_bytes:
                moment = GpuMoment(
                    index=gpu.index, name=gpu.name, total_bytes=gpu.total_bytes, used_bytes=gpu.used_bytes
                )
                found.append(_gpu_state(moment, ours))
        return tuple(found)


def _gpu_state(gpu: GpuMoment, ours: set[int]) -> GpuState:
    return GpuState(
        index=gpu.index,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        used_bytes=gpu.used_bytes,
        memfit_bytes=_held(gpu.processes, lambda pid: pid in ours),
        others_bytes=_held(gpu.processes, lambda pid: pid not in ours),
        temperature_celsius=gpu.temperature_celsius,
        power_watts=gpu.power_watts,
    )


def _held(processes: Mapping[int, int | None] | None, counts: Callable[[int], bool]) -> int | None:
    if processes is None:
        return None
    sizes = [size for pid, size in processes.items() if counts(pid)]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _process_json(group: ProcessGroup) -> dict[str, Any]:
    return {
        "pid": group.pid,
        "command": group.told.command,
        "model": group.told.model,
        "started": group.started,
        "pids": list(group.pids),
        "cpus": group.cpus,
        "held_bytes": group.held_bytes,
        "address": group.address,
    }


def _server_json(server: ServerState) -> dict[str, Any]:
    if server.error:
        return {"address": server.address, **server.error.to_json()}
    return {**asdict(server), "error": None}
