"""What was measured of torch, transformers and bitsandbytes here, and how fast that makes a checkpoint.

seconds of a pass = layers * each layer's own time + bytes sent to a GPU / the link's bytes per second
                  + matrices at their precision's rate

A layer's own time is Python's, which runs ahead of a GPU: there the larger of it and the matrices counts.
What reading layers from the disk makes of that: planner/streaming.py.
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
from memfit.planner.streaming import slowed
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
_SEQUENCE_SECONDS = 80e-6  # of one sequence's attention in one layer, beside others: measured on 2 CPU cores
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
    disk_bytes_per_second: tuple[float, float]  # slowest and fastest
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
    one = many = together = 0.0
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
        reading, multiplying = (
            _of(runtime.elements_per_second, rate),
            _of(runtime.operations_per_second, rate),
        )
        one += elements / reading
        together += max(elements / reading, 2 * each.elements * config.parallel / multiplying)
        # Of a prompt only the last token's logits are computed.
        rows = 1 if each.kind in ("head", "embedding") else tokens
        many += 2 * elements * rows / multiplying
    layers = model.hf_config.num_hidden_layers * runtime.layer_seconds
    if runtime.gpus:
        one, many, together = max(one, layers), max(many, layers), max(together, layers)
        layers = 0.0
    if sent_bytes:
        layers += sent_bytes / runtime.link_bytes_per_second
    generation = Rate.between(1 / (layers + one), _SPREADS[runtime.basis])
    prompt = Rate.between(tokens / (layers + many), _SPREADS[runtime.basis])
    of_all = generation
    if config.parallel > 1:
        attending = model.hf_config.num_hidden_layers * config.parallel * _SEQUENCE_SECONDS
        of_all = Rate.between(config.parallel / (layers + together + attending), _SPREADS[runtime.basis])
    found = Prediction(prompt=prompt, generation=generation, together=of_all, basis=runtime.basis)
    if not streamed_bytes:
        return found
    parts, disk = len(config.streamed_layers), runtime.disk_bytes_per_second
    return slowed(found, streamed_bytes, parts, disk, prompt_tokens, config.ubatch, config.parallel)


def _of(rates: Mapping[str, float], precision: str) -> float:
    """What was not measured, as for a mere suggestion, is as fast as the slowest."""
    return rates.get(precision) or min(rates.values())
