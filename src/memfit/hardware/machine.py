"""The machine as a value: what the probe found, or a profile describes. Probes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DUMMY", "Cpu", "Device", "Disk", "Gpu", "Machine", "Ram", "is_remote"]


@dataclass(frozen=True, kw_only=True)
class Cpu:
    model: str
    architecture: str  # platform.machine(): "x86_64", "aarch64"
    physical_cores: int
    logical_cores: int  # those this process may use (affinity and cgroup quota counted)
    instruction_sets: tuple[str, ...] = ()  # those that matter to the engine's kernels: "avx2", "avx512f", …

    @property
    def threads(self) -> int:
        """To compute with, unless others are asked for: one per physical core that this process may use."""
        return max(1, min(self.physical_cores, self.logical_cores))


@dataclass(frozen=True, kw_only=True)
class Ram:
    total_bytes: int  # physical, or the cgroup's limit where that is lower
    available_bytes: int  # can be had without swapping, within the cgroup's limit
    physical_bytes: int  # what the machine holds whatever the cgroup says
    cgroup_limit_bytes: int | None = None  # None: no limit
    swap_total_bytes: int = 0
    swap_used_bytes: int = 0
    type: str | None = None  # "DDR4"; None where it cannot be read
    megatransfers_per_second: int | None = None  # as configured; None where it cannot be read


@dataclass(frozen=True, kw_only=True)
class Gpu:
    index: int  # the engine's, where it uses GPUs; else the driver's
    name: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    others_bytes: int | None = None  # held by other processes; None where the driver does not say
    driver: str | None = None  # NVIDIA's version
    kernel_driver: str | None = None  # Linux' own, of other makers: "amdgpu", "i915", "xe"
    cuda: str | None = None  # the newest CUDA version that the driver supports, as in "12.4"
    compute_capability: str | None = None
    pci_id: str | None = None  # "0000:01:00.0"; None where nobody says
    engine_name: str | None = None  # "CUDA0", "Vulkan0"; None where the engine does not use it
    link: str | None = None  # "PCIe 4.0 x16", the link's maximum
    is_integrated: bool = False  # its memory is this machine's RAM


DUMMY = "profile:"  # how the engine's names of a profile's GPUs begin


def is_remote(engine_name: str) -> bool:
    """Whether an engine's device is reached through RPC: "HOST:PORT"."""
    return ":" in engine_name and not engine_name.startswith(DUMMY)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device with memory of its own: a GPU, or an RPC server's."""

    name: str  # what people call it, and its tier: "gpu0", "192.168.1.7:50052"
    engine_name: str  # "CUDA0"; a remote one's address; a dummy device's has a colon too
    description: str
    total_bytes: int
    free_bytes: int  # before memfit takes any
    overhead_bytes: int  # what running there takes beyond buffers: driver context, the worker's process
    is_memfit_server: bool  # a memfit rpc-server, which measures its own peak
    threads: int = 0  # of a worker that computes on a CPU
    is_integrated: bool = False  # a GPU whose memory is RAM: what lies there counts there too

    @property
    def is_remote(self) -> bool:
        """Reached through RPC."""
        return is_remote(self.engine_name)


@dataclass(frozen=True, kw_only=True)
class Disk:
    mount: str
    device: str
    filesystem: str
    total_bytes: int
    free_bytes: int
    rotational: bool | None  # None where it cannot be read


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything a plan may depend on."""

    system: str  # "Linux 6.1.0", for the report
    cpu: Cpu
    ram: Ram
    gpus: tuple[Gpu, ...]
    gpu_note: str | None = None  # why there are no GPUs, where the driver says something worth repeating
    disks: tuple[Disk, ...] = ()
