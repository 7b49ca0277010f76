"""The facts of a Hugging Face checkpoint, for `memfit inspect`: its config and its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memfit.cli.inspect import printable, table_of, tensor_types, types_table, wide_console
from memfit.cli.json_output import write_json
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.safetensors import Checkpoint, find_weights
from memfit.units import format_bytes

__all__ = ["show_checkpoint"]


def show_checkpoint(model: str, path: Path, *, tensors: bool, as_json: bool) -> None:
    """Print what config.json at `path` and the safetensors beside it say."""
    config, weights = read_config(path), find_weights(path)
    facts = _facts(model, config, weights)
    rows = _tensors(weights) if weights else []
    if as_json:
        write_json({**facts, "tensors": rows} if tensors else facts)
        return
    console = wide_console()
    summary = table_of()
    for key, value in facts.items():
        if key not in ("paths", "tensor_types") and value is not None:
            text = (
                format_bytes(value) if key.endswith("_bytes") else f"{value:,}" if key in _COUNTS else value
            )
            summary.add_row(key.removesuffix("_bytes").replace("_", " "), printable(str(text)))
    console.print(summary)
    if not weights:
        console.print("\nno safetensors here")
        return
    console.print()
    console.print(types_table(facts["tensor_types"]))
    if tensors:
        listed = table_of("tensor", "shape", "type", ">size", "file")
        for row in rows:
            shape = " x ".join(map(str, row["shape"]))
            file = weights.paths[row["file_index"]].name
            listed.add_row(
                printable(row["name"]), shape, row["type"], format_bytes(row["size_bytes"]), printable(file)
            )
        console.print()
        console.print(listed)


_COUNTS = ("parameters", "context_length", "vocabulary")


def _facts(model: str, config: HfConfig, weights: Checkpoint | None) -> dict[str, Any]:
    tensors = weights.tensors if weights else ()
    return {
        "source": model,
        "paths": [str(config.path), *(str(path) for path in (weights.paths if weights else ()))],
        "architecture": config.model_type,
        "dtype": config.dtype,
        "quantization": config.quant_method,
        "parameters": sum(one.elements for one in tensors) or None,
        "file_bytes": weights.file_bytes if weights else None,
        "weights_bytes": sum(one.size_bytes for one in tensors) or None,
        "context_length": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "layers": config.num_hidden_layers,
        "experts": config.num_experts or None,
        "tensor_types": tensor_types(tensors),
    }


def _tensors(weights: Checkpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "shape": list(one.shape),
            "type": one.dtype,
            "size_bytes": one.size_bytes,
            "offset_bytes": one.offset_bytes,
            "file_index": one.file_index,
        }
        for one in weights.tensors
    ]
