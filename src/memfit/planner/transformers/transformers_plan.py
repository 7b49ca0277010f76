"""A plan for transformers: what the engine is told, what its model takes, and why in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from memfit.headers.hf_shapes import HfModel
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.packed_weights import form_of, why_unpacked
from memfit.memory.precision_table import PrecisionRow
from memfit.planner.plan import Plan
from memfit.planner.transformers.runtime import EMULATED_TIMES, Runtime
from memfit.units import format_bytes

__all__ = ["TransformersPlan", "cautions", "checkpoint_reasons"]

# Types whose residual stream grows beyond 65,504 in text: upstream's are trained and published in bfloat16.
_OVERFLOW_IN_FP16 = ("gemma2", "gemma3", "gemma3_text", "gemma3n_text")

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
        kind = "as stored" if config.precision.is_stored else config.load_in
        kind += ", double quantization" * config.double_quant
        return f"transformers, {kind} · ubatch {config.ubatch} · {config.threads} threads"


def cautions(model: HfModel, config: TransformersConfig, runtime: Runtime) -> Iterator[str]:
    """What to know of a precision before it is chosen: where it is slow, and where it breaks."""
    plain, model_type = config.precision.plain_type, model.hf_config.model_type
    overflows = model.hf_config.text_model_type in _OVERFLOW_IN_FP16
    emulating = ", ".join(gpu.name for gpu in runtime.gpus if gpu.emulates_bf16)
    if emulating and plain == "bf16":
        instead = "" if config.precision.is_quantized else "; see --load-in fp16"
        if overflows:
            instead = f"; fp16 does not hold {model_type}'s activations"
        yield (
            f"{emulating} has no bf16 arithmetic: torch converts to fp32 there, so that prompts take about "
            f"{EMULATED_TIMES:g} times as long as in fp16 (this is priced){instead}"
        )
    if overflows and plain == "fp16":
        yield (
            f"fp16 holds numbers up to 65,504, and activations of {model_type} models go beyond: answers may "
            "be empty or nonsense; --load-in bf16 holds them"
        )


def _stored_reasons(plan: TransformersPlan, model: HfModel) -> Iterator[str]:
    """Of a checkpoint that is quantized already: what is kept packed, what is unpacked, and why."""
    row, config, quantization = plan.row, plan.config, model.hf_config.quantization
    stored = [one for one in model.parameters if one.stored]
    if quantization is None or not stored:
        return
    if not config.precision.is_stored:
        into = "unpacked to " + config.precision.plain_type
        if config.precision.is_quantized:
            into += f" and quantized anew to {config.load_in}: what both lose adds up"
        yield f"the checkpoint's weights ({quantization.name}) are {into}"
        return
    packed = [one for one in stored if form_of(one.stored)]
    if packed:
        count = sum(len(one.stored) for one in packed)
        rounded = "" if quantization.layout == "float8" else ", scales rounded to bf16"
        yield (
            f"{count} weights stay packed as {quantization.name}: {format_bytes(row.quantized_bytes)} and "
            f"{format_bytes(row.state_bytes)} of scales{rounded}"
        )
    reasons: dict[str, int] = {}
    for one in stored:
        if (why := why_unpacked(one.stored[0])) is not None:
            reasons[why] = reasons.get(why, 0) + len(one.stored)
    for why, count in reasons.items():
        yield f"{count} weights are unpacked to {config.precision.plain_type}: {why}"
    if model.hf_config.dtype == "float16":
        yield "computed in bf16, with what is not quantized rounded from fp16"


def checkpoint_reasons(plan: TransformersPlan, model: HfModel, runtime: Runtime) -> Iterator[str]:
    row, config = plan.row, plan.config
    yield from _stored_reasons(plan, model)
    quantizes = config.precision.is_quantized and row.quantized_layers
    for kept in row.unquantized if quantizes else ():
        yield f"not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"
    if quantizes:
        yield (
            f"{row.quantized_layers} layers quantized to {format_bytes(row.quantized_bytes)}, with "
            f"{format_bytes(row.state_bytes)} of scales that transformers' own footprint leaves out"
        )
    if config.precision.bits == 4 and runtime.packs_4bit:
        yield "bitsandbytes packs the weights anew at the first pass: this CPU has AVX512-BF16"
    used = replace(runtime, gpus=tuple(gpu for gpu in runtime.gpus if gpu.number in config.gpus))
    yield from cautions(model, config, used)
    if runtime.basis in ("profile", "assumed") and config.gpus:
        yield "what CUDA and torch's kernels take in RAM and on the GPU is assumed, not measured"
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
