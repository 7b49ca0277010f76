"""Where each decoder layer of a checkpoint lies, and what that takes in RAM and on each GPU.

GPUs come first, then RAM, then the disk, in the order of computation. What is no layer (embedding, last norm,
head) lies on the first GPU, or in RAM where there is none. There accelerate also computes what lies in RAM
or on the disk beside GPUs, and so their KV cache lies there. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memfit.headers.hf_shapes import HfModel
from memfit.memory.loaded_checkpoint import (
    TransformersConfig,
    layer_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    pass_bytes,
)
from memfit.memory.precision import stored_precision
from memfit.memory.precision_table import PrecisionRow, layer_kv_bytes, loaded_bytes, precision_row
from memfit.planner.plan import TierUse
from memfit.planner.transformers.runtime import UNUSED_BYTES, Runtime

__all__ = [
    "CheckpointBytes",
    "LayerCosts",
    "brought_bytes",
    "checkpoint_bytes",
    "counts_on_gpus",
    "device_map",
    "device_of",
    "kv_of_layers",
]


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """Bytes on a GPU."""

    layers: Sequence[int]  # weights of each
    kv: Sequence[int]  # KV cache of each
    shared: int  # weights that are no layer's
    passes: int  # what a pass needs beside them
    loading: int  # what loading needs beside them
    brought: int  # what a layer that lies elsewhere brings with it while it is computed


def counts_on_gpus(costs: LayerCosts, rooms: Sequence[int]) -> list[int]:
    """How many layers go to each GPU, whose `rooms` are bytes less what running there takes."""
    total = len(costs.layers)
    largest = max(costs.layers) + max(costs.kv)
    later = [max(0, room - max(costs.passes, costs.loading)) // largest for room in rooms[1:]]

    def needs(first: int) -> int:
        """Of the first GPU, with so many layers."""
        elsewhere = max(0, total - first - sum(later))  # neither here nor on another GPU
        return (
            costs.shared
            + sum(costs.layers[:first])
            + sum(costs.kv[:first])
            + sum(costs.kv[total - elsewhere :])
            + max(costs.passes + (costs.brought if elsewhere else 0), costs.loading)
        )

    first = next((count for count in range(total, -1, -1) if needs(count) <= rooms[0]), 0)
    counts = [first]
    for room in later:
        counts.append(min(room, total - sum(counts)))
    return counts


def device_map(
    model: HfModel, layers: Sequence[str], devices: Sequence[tuple[str, int]]
) -> tuple[tuple[str, str], ...]:
    """`devices` are names with how many layers they hold, in order. accelerate wants every module named once,
    and none inside another."""
    used = [(device, count) for device, count in devices if count]
    main = next((device for device, _ in devices if device.startswith("gpu")), "cpu")
    if not any(device != main for device, _ in used):
        return (("", main),)
    modules: dict[str, str] = {}
    left = iter(layers)
    for device, count in used:
        modules |= {next(left): device for _ in range(count)}
    for one in model.parameters:
        if not any(one.name.startswith(f"{name}.") for name in layers):
            modules[one.name.rpartition(".")[0]] = main
    base = layers[0].rpartition(".layers.")[0]
    modules[f"{base}.rotary_emb"] = main  # which has no parameter, only a table
    modules.setdefault("lm_head", main)  # a tied one is no parameter of its own
    return tuple(modules.items())


def device_of(name: str, modules: Mapping[str, str]) -> str:
    """Where a parameter lies: as the innermost module around it that a device map names."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


@dataclass(frozen=True, kw_only=True)
class CheckpointBytes:
    """Weights and KV cache by device: "gpu0", "cpu", "disk"."""

    runtime: Runtime
    row: PrecisionRow
    weights: Counter[str]
    kv_cache: Counter[str]
    passes: int  # what a pass needs beside them
    brought: int  # to a GPU at once, of what lies elsewhere
    ring: int  # in RAM, that layers on the disk pass through
    loading: int  # in RAM at most while loading

    @property
    def steady(self) -> int:
        """In RAM between two passes."""
        return self.runtime.process_bytes + self.weights["cpu"] + self.ring + self.kv_cache["cpu"]

    @property
    def sent(self) -> int:
        """To the first GPU, for every pass."""
        return self.weights["cpu"] + self.weights["disk"] if self.runtime.gpus else 0

    def ram(self, budget_bytes: int, limit_bytes: int) -> TierUse:
        compute = 0 if self.runtime.gpus else self.passes
        return TierUse.of(
            "ram",
            budget_bytes,
            limit_bytes,
            weights=self.weights["cpu"] + self.ring,
            kv_cache=self.kv_cache["cpu"],
            compute=compute,
            overhead=self.runtime.process_bytes + max(0, self.loading - self.steady - compute),
        )

    def gpus(self, used: tuple[int, ...]) -> Iterator[TierUse]:
        """Of the `used` ones, by NVML's numbers."""
        for gpu in self.runtime.gpus:
            if gpu.number not in used:
                continue
            brought = self.brought if self.sent and gpu.name == self.runtime.main else 0
            yield TierUse.of(
                gpu.name,
                gpu.budget_bytes,
                gpu.limit_bytes,
                weights=self.weights[gpu.name],
                kv_cache=self.kv_cache[gpu.name],
                compute=max(self.passes + brought, self.row.loading_extra_bytes["cuda"]),
                overhead=gpu.process_bytes + UNUSED_BYTES,
            )


def checkpoint_bytes(model: HfModel, config: TransformersConfig, runtime: Runtime) -> CheckpointBytes:
    row = precision_row(model, config.precision, config.context)
    modules = dict(config.device_map)
    weights = Counter({runtime.main: row.buffers_bytes or 0})
    for one in model.parameters:
        weights[device_of(one.name, modules)] += loaded_bytes(one, config.precision)
    if config.precision.bits == 4 and runtime.packs_4bit:
        packed = packed_state_bytes(model, double_quant=config.double_quant)
        weights[runtime.main] += packed - row.state_bytes
    kv_cache: Counter[str] = Counter()
    layers = layer_bytes(model, config.precision)
    for name, size in zip(layers, kv_of_layers(model, config), strict=True):
        device = device_of(name, modules)
        kv_cache[device if device.startswith("gpu") else runtime.main] += size
    return CheckpointBytes(
        runtime=runtime,
        row=row,
        weights=weights,
        kv_cache=kv_cache,
        passes=pass_bytes(model, config, packs=runtime.packs_4bit),
        brought=brought_bytes(model, config, whole_layers=bool(weights["disk"])),
        ring=config.ring_bytes,
        loading=_loading_bytes(model, config, runtime, weights["cpu"]),
    )


def _loading_bytes(model: HfModel, config: TransformersConfig, runtime: Runtime, in_ram: int) -> int:
    if runtime.gpus:  # what goes there is in RAM only on its way: as it is stored, and cast
        widest = max(config.precision.element_bytes, stored_precision(model.hf_config.dtype).element_bytes)
        needed = in_ram + 2 * widest * max(one.elements for one in model.parameters)
    else:
        needed = loading_peak_bytes(model, config.precision, config.streamed_layers)
    return max(runtime.starting_bytes, runtime.converting_bytes, runtime.loading_process_bytes + needed)


def kv_of_layers(model: HfModel, config: TransformersConfig) -> list[int]:
    element = config.precision.element_bytes
    of_one = layer_kv_bytes(model.hf_config, config.sequence_tokens, config.ubatch, element)
    return [config.parallel * size for size in of_one]


def brought_bytes(model: HfModel, config: TransformersConfig, *, whole_layers: bool) -> int:
    """To a GPU at once: of what lies in RAM the matrices that are computed with together, one or all that
    merged experts have; of what lies on the disk `whole_layers`."""
    if whole_layers:
        return max(layer_bytes(model, config.precision).values())
    modules: Counter[str] = Counter()
    for one in model.parameters:
        if one.kind in ("linear", "experts"):
            size = one.elements * config.precision.element_bytes
            if config.precision.is_stored:
                size = loaded_bytes(one, config.precision)
            modules[one.name.rpartition(".")[0]] += size
    return max(modules.values(), default=0)
