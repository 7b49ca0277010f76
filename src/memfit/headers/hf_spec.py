"""A checkpoint's facts in the form that every plan carries."""

from __future__ import annotations

from pathlib import Path

from memfit.headers.hf_config import HfConfig
from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec, TensorSpec, main_type
from memfit.headers.safetensors import Checkpoint

__all__ = ["spec_of_checkpoint"]


def spec_of_checkpoint(source: str, config: HfConfig, weights: Checkpoint, model: HfModel) -> ModelSpec:
    """`source` is what the user called it."""
    folder = config.path.absolute().parent
    return ModelSpec(
        source=source,
        paths=weights.paths,
        file_bytes=weights.file_bytes,
        data_offset_bytes=tuple(0 for _ in weights.paths),
        architecture=config.model_type,
        name=folder.name if Path(source).exists() else source.removeprefix("hf:"),
        quantization=config.quantization.name if config.quantization else main_type(weights.tensors),
        n_params=sum(one.elements for one in model.parameters),
        context_length=config.max_position_embeddings or 0,
        vocabulary=config.vocab_size,
        metadata={},
        n_experts=config.num_experts,
        n_experts_used=config.num_experts_per_tok,
        tensors=tuple(TensorSpec(**{**vars(one), "shape": one.shape[::-1]}) for one in weights.tensors),
    )
