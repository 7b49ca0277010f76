"""`memfit inspect MODEL`: the facts in the header of a GGUF file or a checkpoint, for people or as JSON.

Shows what headers/ reads; judges nothing and loads no weights. inspect_tables.py draws.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import ModelError
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import weights_of
from memfit.headers.model_spec import MetadataValue, ModelSpec, SkippedArray, StoredTensor
from memfit.headers.safetensors import Checkpoint, find_weights
from memfit.hub.resolve import resolve

__all__ = ["command"]


@click.command("inspect")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(model: str, tensors: bool, as_json: bool) -> None:
    """Show the facts in MODEL's header: of a GGUF file, of demo, or of a checkpoint with config.json and
    safetensors. Of what is not here only the header is read.
    """
    found = resolve(model)
    stored: Sequence[StoredTensor]
    if found.is_checkpoint:
        config, weights = read_config(found.path), find_weights(found.path)
        facts = _facts_of_checkpoint(found.source, config, weights)
        stored = weights.tensors if weights else ()
    else:
        spec = found.read_spec()
        facts, stored = _facts_of_gguf(spec), spec.tensors
    rows = [vars(one) for one in stored] if tensors else []
    if as_json:
        write_json({**facts, "tensors": rows} if tensors else facts)
        return
    from memfit.cli.inspect_tables import print_checkpoint, print_gguf

    if found.is_checkpoint:
        print_checkpoint(facts, weights, rows)
    else:
        print_gguf(spec, facts["tensor_types"], rows)


def _facts_of_gguf(spec: ModelSpec) -> dict[str, Any]:
    return {
        "source": spec.source,
        "paths": [str(path) for path in spec.paths],
        "architecture": spec.architecture,
        "name": spec.name,
        "quantization": spec.quantization,
        "file_bytes": spec.file_bytes,
        "weights_bytes": spec.weights_bytes,
        "parameters": spec.n_params,
        "context_length": spec.context_length,
        "vocabulary": spec.vocabulary,
        "layers": _json_value(spec.architecture_value("block_count")),
        "tensor_types": _tensor_types(spec.tensors),
        "metadata": {key: _json_value(value) for key, value in spec.metadata.items()},
    }


def _facts_of_checkpoint(source: str, config: HfConfig, weights: Checkpoint | None) -> dict[str, Any]:
    tensors = weights.tensors if weights else ()
    return {
        "source": source,
        "paths": [str(config.path), *(str(path) for path in (weights.paths if weights else ()))],
        "architecture": config.model_type,
        "dtype": config.dtype,
        "quantization": config.quantization.name if config.quantization else None,
        "parameters": _parameters(config, weights),
        "file_bytes": weights.file_bytes if weights else None,
        "weights_bytes": sum(one.size_bytes for one in tensors) or None,
        "context_length": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "layers": config.num_hidden_layers,
        "experts": config.num_experts or None,
        "tensor_types": _tensor_types(tensors),
    }


def _parameters(config: HfConfig, weights: Checkpoint | None) -> int | None:
    """None where there are no files, or weights lie in them in a way that memfit does not read."""
    if weights is None:
        return None
    with contextlib.suppress(ModelError):
        return sum(one.elements for one in weights_of(config, weights).tensors)
    return None


def _tensor_types(tensors: Sequence[StoredTensor]) -> list[dict[str, Any]]:
    """Each tensor type's count and bytes, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.size_bytes
    return [{"type": name, "count": counts[name], "size_bytes": size} for name, size in sizes.most_common()]


def _json_value(value: MetadataValue | None) -> Any:
    if isinstance(value, SkippedArray):
        return {"array": value.element_type, "length": value.length}
    if isinstance(value, tuple):
        return [_json_value(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value
