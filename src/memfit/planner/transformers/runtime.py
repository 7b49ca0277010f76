"""What was measured of torch, transformers and bitsandbytes here, and how fast that makes a checkpoint.

seconds of a pass = layers * each layer's own time + bytes sent to a GPU / the link's bytes per second
                  + the larger of (matrices at their precision's rate, streamed bytes / the disk's)
                  + half of the smaller, where one token is generated

A layer's own time is Python's, which runs ahead of a GPU: there the larger of it and the matrices counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memfit.hardware.machine import Gpu
from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.packed_weights import form_of
from memfit.planner.speed import Prediction, Rate
from memfit.units import MIB

__all__ = [
    "EMULATED_TIMES",
    "UNUSED_BYTES",
    "GpuRuntime",
    "Processes",
    "Runtime",
    "emulates_bf16",
    "predict_checkpoint",
]

# On a GPU: what torch's allocator rounds up, and the work space of cuBLAS, which may be 32 MiB. Assumed.
UNUSED_BYTES = 64 * MIB
# Where the rates may lie, as factors.
_SPREADS = {
    "calibrated": (0.5, 1.5),
    "provisional": (0.5, 4.0),
    "profile": (0.5, 1.8),
    "assumed": (0.1, 10.0),
}
# fp16's speed over bf16's where that is emulated, of a whole model on a T4:
# https://earino.github.io/applied-deep-learning/site/blog/05_bf16_on_t4.html
EMULATED_TIMES = 4.3
_BF16_CAPABILITY = 8  # compute capability from which NVIDIA's GPUs compute in bfloat16


@dataclass(frozen=True, kw_only=True)
class Processes:
    """memfit's processes without the model."""

    process_bytes: int  # libraries, tokenizer, kernels
    loading_process_bytes: int  # the same until the first pass
    starting_bytes: int  # at most, before there are weights: reading a tokenizer takes more than having it


@dataclass(frozen=True, kw_only=True)
class GpuRuntime:
    """A GPU that may be used, and what running there takes."""

    number: int  # NVML's
    budget_bytes: int
    limit_bytes: int  # the budget, or what is free where that is less
    process_bytes: int  # the driver's context and kernels, outside of torch's memory
    emulates_bf16: bool = False

    @property
    def name(self) -> str:
        return f"gpu{self.number}"

    @property
    def room_bytes(self) -> int:
        return self.limit_bytes - self.process_bytes - UNUSED_BYTES


@dataclass(frozen=True, kw_only=True)
class Runtime(Processes):
    """Of its CPU, or of its GPUs."""

    packs_4bit: bool  # AVX512-BF16: bitsandbytes packs 4-bit weights anew at the first pass
    layer_seconds: float  # of one token in one decoder layer with next to nothing in it
    elements_per_second: Mapping[str, float]  # weights past one token, by precision or packed form
    operations_per_second: Mapping[str, float]  # of a prompt, likewise
    disk_bytes_per_second: float
    gpus: tuple[GpuRuntime, ...] = ()  # whose memory and speed the figures above are of, where there are any
    link_bytes_per_second: float = 0.0  # from RAM to them
    converting_bytes: int = 0  # at most, while a GGUF file becomes a checkpoint
    basis: str = "calibrated"

    @property
    def main(self) -> str:
        """The device that has what is no layer, and computes what no other one does."""
        return self.gpus[0].name if self.gpus else "cpu"


def emulates_bf16(gpu: Gpu) -> bool:
    """Whether it has no arithmetic in bfloat16: torch computes in float32 there, and converts."""
    major = (gpu.compute_capability or "").partition(".")[0]
    return major.isascii() and major.isdigit() and int(major) < _BF16_CAPABILITY


def predict_checkpoint(
    spec: ModelSpec,
    model: HfModel,
    config: TransformersConfig,
    runtime: Runtime,
    *,
    prompt_tokens: int,
    streamed_bytes: int,
    sent_bytes: int,
) -> Prediction:
    """Each pass reads `streamed_bytes` from the disk and sends `sent_bytes` to a GPU."""
    plain = config.precision.plain_type
    one = many = 0.0
    tokens = min(config.ubatch, prompt_tokens)
    for each in model.parameters:
        if each.kind not in ("linear", "head", "experts") and not (
            each.kind == "embedding" and model.hf_config.tie_word_embeddings
        ):
            continue
        if "vision" in each.name:  # of which a text needs nothing
            continue
        rate = config.load_in if each.kind == "linear" else plain
        if config.precision.is_stored:
            rate = form_of(each.stored) or plain
        elements = each.elements * spec.active_share(each.name)
        one += elements / _of(runtime.elements_per_second, rate)
        # Of a prompt only the last token's logits are computed.
        rows = 1 if each.kind in ("head", "embedding") else tokens
        many += 2 * elements * rows / _of(runtime.operations_per_second, rate)
    layers = model.hf_config.num_hidden_layers * runtime.layer_seconds
    if runtime.gpus:
        one, many, layers = max(one, layers), max(many, layers), 0.0
    if sent_bytes:
        layers += sent_bytes / runtime.link_bytes_per_second
    disk = streamed_bytes / runtime.disk_bytes_per_second
    hidden = 0.5 * min(one, disk) if streamed_bytes else 0.0
    generation = Rate.between(1 / (layers + max(one, disk) + hidden), _SPREADS[runtime.basis])
    prompt = Rate.between(tokens / (layers + max(many, disk)), _SPREADS[runtime.basis])
    return Prediction(prompt=prompt, generation=generation, together=generation, basis=runtime.basis)


def _of(rates: Mapping[str, float], precision: str) -> float:
    """What was not measured, as for a mere suggestion, is as fast as the slowest."""
    return rates.get(precision) or min(rates.values())
