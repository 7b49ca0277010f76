"""A plan for transformers: what the engine is told, what its model takes, and why in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from memfit.headers.hf_shapes import HfModel
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision_table import PrecisionRow
from memfit.planner.plan import Plan
from memfit.planner.transformers.runtime import Runtime
from memfit.units import format_bytes

__all__ = ["TransformersPlan", "checkpoint_reasons"]

_STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # plain type → safetensors' name of it


@dataclass(frozen=True, kw_only=True)
class TransformersPlan(Plan):
    engine: ClassVar[str] = "transformers"
    config: TransformersConfig
    row: PrecisionRow
    steady_bytes: int  # in RAM between two passes
    loading_bytes: int  # in RAM at most while loading
    offloaded_bytes: int  # weights that are read for every pass

    @property
    def streamed_bytes(self) -> int:
        return self.offloaded_bytes

    @property
    def written_bytes(self) -> int:
        """To the disk while loading: what stays there, unless the checkpoint's files hold it as it is
        computed with."""
        layers = [f"{name}." for name in self.config.streamed_layers]
        own = {one.type for one in self.spec.tensors if any(one.name.startswith(name) for name in layers)}
        merges = any(".experts." in one.name for one in self.spec.tensors)
        as_computed = own == {_STORED[self.config.precision.plain_type]} and not merges
        return 0 if as_computed else self.offloaded_bytes

    @property
    def parallel(self) -> int:
        return self.config.parallel

    @property
    def sequence_context(self) -> int:
        return self.config.sequence_tokens

    @property
    def facts(self) -> Mapping[str, Any]:
        config = self.config
        return {
            "load_in": config.load_in,
            "double_quant": config.double_quant,
            "threads": config.threads,
            "device_map": dict(config.device_map),
            "steady_bytes": self.steady_bytes,
            "loading_bytes": self.loading_bytes,
            "precision": self.row.to_json(),
        }

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"load_in": self.config.load_in, "double_quant": self.config.double_quant}

    @property
    def settings(self) -> str:
        config = self.config
        kind = config.load_in + ", double quantization" * config.double_quant
        return f"transformers, {kind} · ubatch {config.ubatch} · {config.threads} threads"


def checkpoint_reasons(plan: TransformersPlan, model: HfModel, runtime: Runtime) -> Iterator[str]:
    row, config = plan.row, plan.config
    for kept in row.unquantized if row.quantized_layers else ():
        yield f"not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"
    if row.quantized_layers:
        yield (
            f"{row.quantized_layers} layers quantized to {format_bytes(row.quantized_bytes)}, with "
            f"{format_bytes(row.state_bytes)} of scales that transformers' own footprint leaves out"
        )
    if config.precision.bits == 4 and runtime.packs_4bit:
        yield "bitsandbytes packs the weights anew at the first pass: this CPU has AVX512-BF16"
    if config.gguf:
        yield (
            f"transformers dequantizes the file to {config.precision.plain_type}: at its first run it "
            f"becomes a checkpoint of {format_bytes(sum(path.stat().st_size for path in config.paths))} in "
            f"{config.folder.parent}, and that takes {format_bytes(runtime.converting_bytes)} of RAM"
        )
    in_ram = sum(device == "cpu" for module, device in config.device_map if module) if runtime.gpus else 0
    if in_ram:
        yield (
            f"{in_ram} layers lie in RAM: {format_bytes(plan.ram.weights_bytes)} are sent to "
            f"{runtime.gpus[0].name} for every pass"
        )
    loading, steady = format_bytes(plan.loading_bytes), format_bytes(plan.steady_bytes)
    yield f"loading takes {loading} at most, then {steady} stay"
    if plan.offloaded_bytes:
        yield (
            f"{len(config.streamed_layers)} layers stay on the disk: {format_bytes(plan.offloaded_bytes)} "
            f"are read for every pass, through {format_bytes(config.ring_bytes)} of memory"
        )
        if plan.written_bytes:
            yield f"they are written to the disk once, as {config.precision.plain_type}, while loading"
    longest, tokens = model.hf_config.max_position_embeddings, plan.sequence_context
    if longest and tokens > longest:
        yield f"the model was trained for {longest} tokens, a context of {tokens} is beyond that"
    yield from model.notes
