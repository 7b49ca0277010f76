"""What a checkpoint's configuration takes in RAM and on each GPU, from loading to generating."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from memfit.headers.hf_shapes import HfModel
from memfit.memory.loaded_checkpoint import (
    TransformersConfig,
    layer_bytes,
    layer_kv_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    pass_bytes,
)
from memfit.memory.precision_table import PrecisionRow, loaded_bytes, precision_row
from memfit.planner.plan import TierUse
from memfit.planner.transformers.layers import device_of
from memfit.planner.transformers.runtime import UNUSED_BYTES, Runtime

__all__ = ["CheckpointBytes", "checkpoint_bytes", "kv_of_layers", "largest_module_bytes", "needed_by_pass"]


@dataclass(frozen=True, kw_only=True)
class CheckpointBytes:
    """Weights and KV cache by device: "gpu0", "cpu", "disk"."""

    runtime: Runtime
    row: PrecisionRow
    weights: Counter[str]
    kv_cache: Counter[str]
    passes: int  # what a pass needs beside them
    largest: int  # matrices that are computed with at once
    loading: int  # in RAM at most while loading

    @property
    def steady(self) -> int:
        """In RAM between two passes."""
        return self.runtime.process_bytes + self.weights["cpu"] + self.kv_cache["cpu"]

    @property
    def sent(self) -> int:
        """To the first GPU, for every pass."""
        return self.weights["cpu"] + self.weights["disk"] if self.runtime.gpus else 0

    def ram(self, budget_bytes: int, limit_bytes: int) -> TierUse:
        # A matrix that is computed with, and what is read ahead of it.
        ring = 2 * self.largest if self.weights["disk"] else 0
        compute = ring if self.runtime.gpus else self.passes + ring
        return TierUse(
            name="ram",
            kind="ram",
            budget_bytes=budget_bytes,
            limit_bytes=limit_bytes,
            parts={
                "weights": self.weights["cpu"],
                "kv_cache": self.kv_cache["cpu"],
                "compute": compute,
                "overhead": self.runtime.process_bytes + max(0, self.loading - self.steady - compute),
            },
        )

    def gpus(self, used: tuple[int, ...]) -> Iterator[TierUse]:
        """Of the `used` ones, by NVML's numbers."""
        for gpu in self.runtime.gpus:
            if gpu.number not in used:
                continue
            brought = self.largest if self.sent and gpu.name == self.runtime.main else 0
            yield TierUse(
                name=gpu.name,
                kind="vram",
                budget_bytes=gpu.budget_bytes,
                limit_bytes=gpu.limit_bytes,
                parts={
                    "weights": self.weights[gpu.name],
                    "kv_cache": self.kv_cache[gpu.name],
                    "compute": max(self.passes + brought, self.row.loading_extra_bytes["cuda"]),
                    "overhead": gpu.process_bytes + UNUSED_BYTES,
                },
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
        passes=needed_by_pass(model, config, runtime),
        largest=largest_module_bytes(model, config),
        loading=_loading_bytes(model, config, runtime, weights["cpu"]),
    )


def _loading_bytes(model: HfModel, config: TransformersConfig, runtime: Runtime, in_ram: int) -> int:
    if runtime.gpus:  # what goes there is in RAM only on its way
        needed = in_ram + 2 * 4 * max(one.elements for one in model.parameters)
    else:
        streamed = [module for module, device in config.device_map if device == "disk"]
        needed = loading_peak_bytes(model, config.precision, streamed)
    return max(runtime.starting_bytes, runtime.converting_bytes, runtime.loading_process_bytes + needed)


def kv_of_layers(model: HfModel, config: TransformersConfig) -> list[int]:
    return layer_kv_bytes(model.hf_config, config.context, config.ubatch, config.precision.element_bytes)


def needed_by_pass(model: HfModel, config: TransformersConfig, runtime: Runtime) -> int:
    return pass_bytes(
        model,
        config.precision,
        context=config.context,
        ubatch=config.ubatch,
        packs=runtime.packs_4bit,
        outputs=config.outputs,
    )


def largest_module_bytes(model: HfModel, config: TransformersConfig) -> int:
    """Of the matrices that are computed with at once: one, or all that merged experts have."""
    modules: Counter[str] = Counter()
    for one in model.parameters:
        if one.kind in ("linear", "experts"):
            modules[one.name.rpartition(".")[0]] += one.elements * config.precision.element_bytes
    return max(modules.values(), default=0)
