"""What a configuration needs in RAM and on each device: the oracle's bytes, and what only a plan knows of.

That is what loading takes beside them: a tensor on its way to a remote device, and what a worker's own
limit counts; and what a GPU that is only imagined would need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memfit.hardware.machine import Device
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import RAM, LlamaConfig, MemoryEstimate
from memfit.memory.streaming import SENT_BYTES
from memfit.planner.llamacpp.streaming import held_bytes, row_bytes
from memfit.planner.llamacpp.tensor_devices import op_offload_bytes, sent_bytes
from memfit.planner.plan import TierUse

__all__ = ["tiers_of"]


def tiers_of(
    spec: ModelSpec,
    config: LlamaConfig,
    answer: MemoryEstimate,
    devices: Sequence[Device],
    budgets: Sequence[int],
    limits: Sequence[int],
) -> Iterator[TierUse]:
    """RAM's and each device's, of which an unopened one holds nothing; `answer` is the oracle's, with all of
    `config` in memory. `budgets` and `limits` are RAM's first, then each device's."""
    sent = sent_bytes(spec, config)
    own = config.load_mode == "own"
    # What goes to a remote device at once is read into memory, and copied once more to be sent: a tensor,
    # or our pieces of it. A local GPU's pass through a few MiB.
    at_once = {
        number: min(sizes[0], SENT_BYTES) if own else sizes[0]
        for number, sizes in sent.items()
        if devices[number - 1].is_remote
    }
    in_ram = 2 * max(at_once.values(), default=0)
    beside = answer.kv_cache_bytes + answer.compute_bytes + answer.scratch_bytes
    yield TierUse(
        name="ram",
        kind="ram",
        budget_bytes=budgets[RAM],
        limit_bytes=limits[RAM],
        parts={
            "weights": held_bytes(spec, config) if own else answer.weights_bytes,
            "kv_cache": answer.kv_cache_bytes,
            "compute": answer.compute_bytes + answer.scratch_bytes + row_bytes(spec, config),
            # Loading ends before the KV cache and the compute buffers are made.
            "overhead": answer.process_bytes + max(0, in_ram - beside),
        },
    )
    for number, device in enumerate(devices, start=1):
        held = answer.devices[number - 1] if answer.devices else None
        compute = held.compute_bytes + held.scratch_bytes if held else 0
        staging = reserved = 0
        if held and device.is_dummy:  # what stands for it does no op_offload
            compute += op_offload_bytes(spec, config)
        elif held and device.is_memfit_server:
            compute += max(0, device.threads - config.threads) * held.thread_bytes
            sizes, piece = sent.get(number, []), at_once.get(number, 0)
            staging = max(0, _receiving(sizes, piece) - held.kv_cache_bytes - compute)
            reserved = device.overhead_bytes + sum(sizes) + piece
        yield TierUse(
            name=device.name,
            kind="vram",
            budget_bytes=budgets[number],
            limit_bytes=limits[number],
            parts={
                "weights": held.weights_bytes if held else 0,
                "kv_cache": held.kv_cache_bytes if held else 0,
                "compute": compute,
                "overhead": device.overhead_bytes + staging if held else 0,
            },
            reserved_bytes=reserved,
        )


def _receiving(sizes: Sequence[int], piece: int) -> int:
    """What a worker holds at most beyond the tensors themselves, while it is sent them one by one, at most
    `piece` at once."""
    most = before = 0
    for size in sizes:
        most = max(most, before + size + min(size, piece))
        before += size
    return most - before
