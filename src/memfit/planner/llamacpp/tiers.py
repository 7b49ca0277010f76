"""What a configuration needs in RAM and on each device: the oracle's bytes, and what only a plan knows of.

That is what loading takes beside them: a tensor on its way to a remote device, and what an RPC server's own
limit counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import is_tied
from memfit.memory.estimate import DeviceBytes, LlamaConfig, MemoryEstimate
from memfit.memory.streaming import SENT_BYTES, TOKEN_TABLE, widened_bytes
from memfit.planner.llamacpp.inputs import PlanInputs, UsedDevice
from memfit.planner.llamacpp.streaming import held_bytes, row_bytes
from memfit.planner.llamacpp.tensor_devices import sent_bytes
from memfit.planner.plan import TierUse

__all__ = ["tiers_of"]


def tiers_of(
    inputs: PlanInputs, used: Sequence[UsedDevice], config: LlamaConfig, answer: MemoryEstimate
) -> tuple[TierUse, ...]:
    """RAM's and each used device's, of which an unopened one holds nothing; `answer` is the oracle's, with
    all of `config` in memory."""
    sent = sent_bytes(inputs.spec, config)
    # What goes to a remote device at once is read into memory, and copied once more to be sent: a tensor,
    # or our pieces of it. A local GPU's pass through a few MiB.
    at_once = {
        number: min(sizes[0], SENT_BYTES) if config.load_mode == "own" else sizes[0]
        for number, sizes in sent.items()
        if used[number - 1].device.is_remote
    }
    passing = 2 * max(at_once.values(), default=0)
    if config.load_mode == "read" and not config.devices:
        passing = _rewriting(inputs.spec, config, answer.weights_bytes)
    ram = _ram(inputs, config, answer, passing)
    held = answer.devices or [None] * len(used)
    devices = [
        _device(inputs, one, config, bytes_there, sent.get(number, []), at_once.get(number, 0))
        for number, (one, bytes_there) in enumerate(zip(used, held, strict=True), start=1)
    ]
    shared = sum(
        tier.total_bytes for tier, one in zip(devices, used, strict=True) if one.device.is_integrated
    )
    ram = replace(ram, parts={**ram.parts, "overhead": ram.parts["overhead"] + shared})
    return ram, *devices


def _ram(inputs: PlanInputs, config: LlamaConfig, answer: MemoryEstimate, passing: int) -> TierUse:
    """`passing`: what loading takes at most beyond the weights, on their way into buffers or to remote
    devices."""
    beside = answer.kv_cache_bytes + answer.compute_bytes + answer.scratch_bytes
    own = config.load_mode == "own"
    return TierUse.of(
        "ram",
        inputs.ram_budget,
        inputs.ram_limit,
        weights=held_bytes(inputs.spec, config) if own else answer.weights_bytes,
        kv_cache=answer.kv_cache_bytes,
        compute=answer.compute_bytes + answer.scratch_bytes + row_bytes(inputs.spec, config),
        # Loading ends before the KV cache and the compute buffers are made.
        overhead=answer.process_bytes + max(0, passing - beside),
    )


def _device(
    inputs: PlanInputs,
    used: UsedDevice,
    config: LlamaConfig,
    held: DeviceBytes | None,
    sizes: Sequence[int],
    piece: int,
) -> TierUse:
    """Tensors of these `sizes` are sent there, at most `piece` bytes at once."""
    device = used.device
    compute = held.compute_bytes + held.scratch_bytes if held else 0
    staging = reserved = 0
    if held and device.is_remote:
        compute += max(0, device.threads - config.threads) * held.thread_bytes
        staging = max(0, _receiving(sizes, piece) - held.kv_cache_bytes - compute)
        if device.is_memfit_server:
            reserved = device.overhead_bytes + sum(sizes) + piece
    use = TierUse.of(
        device.name,
        used.budget_bytes,
        used.limit_bytes,
        weights=held.weights_bytes if held else 0,
        kv_cache=held.kv_cache_bytes if held else 0,
        compute=compute,
        overhead=device.overhead_bytes + staging if held else 0,
    )
    return replace(use, reserved_bytes=reserved)


def _rewriting(spec: ModelSpec, config: LlamaConfig, weights_bytes: int) -> int:
    """What filling the engine's buffers takes at most beyond the weights: the largest tensor comes first, and
    what is read and widened of it lies beside."""
    widened = set(config.widened)
    sizes = {one: widened_bytes(one) if one.name in widened else one.size_bytes for one in spec.tensors}
    tied = (one for one in spec.tensors if one.name == TOKEN_TABLE and is_tied(spec))
    whole = sum(sizes.values()) + sum(one.size_bytes for one in tied)  # which is there plain as well
    most = there = 0.0
    for tensor, size in sorted(sizes.items(), key=lambda one: -one[1]):
        there += size / whole * weights_bytes
        most = max(most, there + tensor.size_bytes + (size if tensor.name in widened else 0))
    return max(0, round(most - weights_bytes))


def _receiving(sizes: Sequence[int], piece: int) -> int:
    """What an RPC server holds at most beyond the tensors themselves, while it is sent them one by one, at
    most `piece` at once."""
    held = zip(accumulate(sizes), sizes, strict=True)
    return max((there + min(size, piece) for there, size in held), default=0) - sum(sizes)
