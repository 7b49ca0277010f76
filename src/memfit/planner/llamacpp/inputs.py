"""What a plan for llama.cpp is made from, and what follows from it before any byte is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import has_cache
from memfit.memory.estimate import LlamaConfig
from memfit.memory.grammars import grammar_bytes
from memfit.memory.importance import importance_bytes
from memfit.memory.serving import SERVING_BYTES
from memfit.planner.llamacpp.embedding import longest_text, reads_whole, texts_at_once
from memfit.planner.request import ASSUMED_DISK, UBATCHES, Budget, Conditions, Workload, context_of
from memfit.planner.speed import (
    ASSUMED,
    ASSUMED_DEVICE,
    ASSUMED_GPU,
    OP_OFFLOAD_TOKENS,
    DeviceSpeed,
)
from memfit.units import MIB

__all__ = ["ROOM_FOR_ERROR", "PlanInputs", "UsedDevice", "repack_modes", "ubatch_sizes"]

ROOM_FOR_ERROR = 4 * MIB  # in RAM; predictions are within 2: benchmarks/memory.py
_LONG_UBATCHES = (1024, 2048, 4096)
_SHORTEST = 128
_DEVICE_ROOM = 3 * MIB // 2
_SERVER_ROOM = MIB // 2  # its kernel counts for us, and what it adds itself is known: benchmarks/devices.py


@dataclass(frozen=True, kw_only=True)
class UsedDevice:
    """A device with a budget."""

    device: Device
    speed: DeviceSpeed
    budget_bytes: int
    limit_bytes: int  # the budget, or what is free where that is less
    is_asked_for: bool  # by the budget; else it is used because it is there

    @property
    def safe_bytes(self) -> int:
        """Less the room for what reality adds."""
        return self.limit_bytes - (_SERVER_ROOM if self.device.is_memfit_server else _DEVICE_ROOM)


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    spec: ModelSpec
    machine: Machine
    budget: Budget
    workload: Workload
    conditions: Conditions = field(default_factory=Conditions)
    # This CPU's with repacked and with plain weights; None where they could not be measured, a device's too.
    speeds: Mapping[bool, DeviceSpeed] | None
    devices: Sequence[tuple[Device, DeviceSpeed | None]] = ()
    # Bytes/s of the disk, slowest and fastest; only asked for where weights do not fit.
    disk_speed: Callable[[], tuple[float, float]] = field(default=lambda: ASSUMED_DISK)

    @property
    def context(self) -> int:
        if self.reads_whole:
            return longest_text(self.workload, self.spec)
        return context_of(self.workload, self.spec.context_length)

    @property
    def reads_whole(self) -> bool:
        """Whether texts are embedded that have to fit one pass."""
        return self.workload.embeds and reads_whole(self.workload, self.spec)

    @property
    def ubatches(self) -> tuple[int, ...]:
        if asked := self.conditions.ubatch:
            return (max(min(asked, self.context), self.workload.parallel),)
        return self.ubatches_of(self.context)

    def ubatches_of(self, context: int) -> tuple[int, ...]:
        """Those worth trying with such a context, the largest first."""
        return (context,) if self.reads_whole else ubatch_sizes(context, self.workload.parallel)

    @property
    def short_ubatches(self) -> tuple[int, ...]:
        """Below the first, as far as prompts stay fast with them."""
        return tuple(size for size in self.ubatches[1:] if size >= _SHORTEST)

    @property
    def long_ubatches(self) -> tuple[int, ...]:
        """Beyond those, for weights that are sent or read for each ubatch: up to what a prompt fills."""
        if self.conditions.ubatch or self.reads_whole:
            return ()
        longest = min(self.workload.prompt_tokens, self.context)
        return tuple(size for size in _LONG_UBATCHES if size < 2 * longest and size <= self.context)

    @property
    def kv_types(self) -> tuple[str, ...]:
        if not has_cache(self.spec):
            return ("f16",)
        return ("f16", "q8_0") if self.workload.kv_type == "auto" else (self.workload.kv_type,)

    @property
    def may_stream(self) -> bool:
        """Streamed weights are not rewritten: who asks for that asks for all of the model in memory."""
        return self.budget.disk and self.workload.repack != "on"

    @property
    def ram_budget(self) -> int:
        return self.budget.ram_bytes(self.machine.ram)

    @property
    def ram_limit(self) -> int:
        return min(self.ram_budget, self.machine.ram.available_bytes)

    @property
    def used_devices(self) -> tuple[UsedDevice, ...]:
        """Those that the budget allows; an integrated GPU, whose memory is RAM, only where it names one."""
        return tuple(
            UsedDevice(
                device=device,
                speed=replace(
                    speed or (ASSUMED_DEVICE if device.is_remote else ASSUMED_GPU), is_remote=device.is_remote
                ),
                budget_bytes=size,
                limit_bytes=min(size, device.free_bytes),
                is_asked_for=self.budget.vram is not None or device.name in self.budget.rpc,
            )
            for device, speed in self.devices
            if (size := self.budget.device_bytes(device))
            and (self.budget.vram is not None or not device.is_integrated)
        )

    @property
    def may_op_offload(self) -> bool:
        """Whether a device would multiply the workload's prompts with matrices that lie in RAM."""
        takes_over = any(one.speed.sent_bytes_per_second for one in self.used_devices)
        return takes_over and self.workload.prompt_tokens >= OP_OFFLOAD_TOKENS

    def ram_speed(self, repack: bool) -> DeviceSpeed:
        return self.speeds[repack] if self.speeds else ASSUMED

    def config(self, kv_type: str, ubatch: int, repack: bool) -> LlamaConfig:
        """With everything in RAM."""
        parallel = self.workload.parallel
        if self.workload.embeds:
            parallel = texts_at_once(self.workload, ubatch)
        return LlamaConfig(
            paths=self.spec.paths,
            context=self.context,
            parallel=parallel,
            kv_type=kv_type,
            ubatch=ubatch,
            threads=self.workload.threads or self.machine.cpu.threads,
            repack=repack,
            # Rewritten weights are copies, so mapping the file as well would hold both.
            load_mode="read" if repack or self.workload.probes else "mmap",
            kv_unified=self.workload.kv_unified,
            grammar_bytes=grammar_bytes(parallel) if self.workload.grammars else 0,
            # A matrix of the last layer is multiplied with the tokens alone whose logits are wanted.
            outputs=max(ubatch, self.workload.outputs) if self.workload.importance else self.workload.outputs,
            importance_bytes=importance_bytes(
                self.spec.tensors, collects=self.workload.importance, probes=self.workload.probes
            ),
            serving_bytes=SERVING_BYTES if self.workload.serves else 0,
            embeds=self.workload.embeds,
            pooling=self.workload.pooling,
        )


def repack_modes(workload: Workload) -> tuple[bool, ...]:
    """The ways of holding weights that are worth asking about."""
    return {"auto": (False, True), "on": (True,), "off": (False,)}[workload.repack]


def ubatch_sizes(context: int, parallel: int) -> tuple[int, ...]:
    """Those worth trying, the largest first."""
    sizes = [size for size in UBATCHES if size <= context] or [context]
    # Each sequence has at least a token in a ubatch.
    return tuple(dict.fromkeys(max(size, parallel) for size in sizes))
