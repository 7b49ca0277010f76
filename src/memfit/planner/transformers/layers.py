"""Which device gets each decoder layer of a checkpoint, as accelerate's device map.

GPUs come first, then RAM, then the disk, in the order of computation. What is no layer (embedding, last norm,
head) lies on the first GPU, or in RAM where there is none. There accelerate also computes what lies in RAM
or on the disk beside GPUs, and so their KV cache lies there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memfit.headers.hf_shapes import HfModel

__all__ = ["LayerCosts", "counts_on_gpus", "device_map", "device_of"]


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """Bytes on a GPU."""

    layers: Sequence[int]  # weights of each
    kv: Sequence[int]  # KV cache of each
    shared: int  # weights that are no layer's
    passes: int  # what a pass needs beside them
    loading: int  # what loading needs beside them
    ring: int  # what a layer that lies elsewhere brings with it while it is computed


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
            + max(costs.passes + (costs.ring if elsewhere else 0), costs.loading)
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
