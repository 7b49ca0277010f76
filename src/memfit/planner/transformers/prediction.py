"""How fast a checkpoint will run in transformers.

seconds of a pass = layers * each layer's own time + bytes sent to a GPU / the link's bytes per second
                  + the larger of (matrices at their precision's rate, streamed bytes / the disk's)
                  + half of the smaller, where one token is generated
"""

from __future__ import annotations

from collections.abc import Mapping

from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.planner.speed import Prediction, Rate
from memfit.planner.transformers.runtime import Runtime

__all__ = ["predict_checkpoint"]

_SPREAD = 0.5  # either side


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
        rate = config.load_in if each.kind == "linear" else plain
        elements = each.elements * spec.active_share(each.name)
        one += elements / _of(runtime.elements_per_second, rate)
        # Of a prompt only the last token's logits are computed.
        rows = 1 if each.kind in ("head", "embedding") else tokens
        many += 2 * elements * rows / _of(runtime.operations_per_second, rate)
    layers = model.hf_config.num_hidden_layers * runtime.layer_seconds
    if sent_bytes:
        layers += sent_bytes / runtime.link_bytes_per_second
    disk = streamed_bytes / runtime.disk_bytes_per_second
    generation = _rate(1 / (layers + max(one, disk) + min(one, disk) * 0.5 * bool(streamed_bytes)))
    prompt = _rate(tokens / (layers + max(many, disk)))
    return Prediction(prompt=prompt, generation=generation, together=generation, basis=runtime.basis)


def _of(rates: Mapping[str, float], precision: str) -> float:
    """What was not measured, as for a mere suggestion, is as fast as the slowest."""
    return rates.get(precision) or min(rates.values())


def _rate(value: float) -> Rate:
    return Rate(value=value, low=value * (1 - _SPREAD), high=value * (1 + _SPREAD))
