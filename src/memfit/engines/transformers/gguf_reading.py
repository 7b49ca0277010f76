"""GGUF files through transformers, in the worker: what it makes of a header, and of the weights.

transformers dequantizes a whole GGUF file at once and cannot leave part of it on the disk. So a file becomes
a checkpoint once, and runs as every checkpoint does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from memfit.engines.transformers.model import explained
from memfit.memory.precision import precision
from memfit.memory.process_memory import process_status

__all__ = ["convert_gguf", "describe_gguf"]

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in safetensors


def describe_gguf(file: str, folder: str, dtype: str) -> dict[str, Any]:
    """Write the checkpoint that the file would become, without its weights: config, tokenizer, and a hole of
    the right size behind the safetensors header. Reads no weights."""
    with explained(f"transformers cannot read {file}"):
        where = _named(file)
        config = transformers.AutoConfig.from_pretrained(**where)
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, precision(dtype).dtype)
            )
        # As save_pretrained will write it: what is measured for one holds for the other.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        # In the names and pieces that save_pretrained writes.
        tensors = revert_weight_conversion(model, model.state_dict())
        for tied in model.all_tied_weights_keys:
            tensors.pop(tied, None)
        _write_hollow(Path(folder) / "model.safetensors", tensors)
    return {"peak_bytes": process_status().peak_resident_bytes}


def convert_gguf(file: str, folder: str, dtype: str) -> dict[str, Any]:
    """Write the weights, and the config that goes with them."""
    with explained(f"transformers cannot read {file}"):
        where = _named(file)
        whole = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=whole, dtype=getattr(torch, precision(dtype).dtype)
        )
        model.save_pretrained(folder)
    return {}


def _named(file: str) -> dict[str, str]:
    path = Path(file)
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _write_hollow(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": shape,
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
