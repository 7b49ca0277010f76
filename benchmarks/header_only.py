"""Checkpoints of which only headers are there: config.json and safetensors in published shapes, with holes
for weights.

    python benchmarks/header_only.py NAME FOLDER

They are planned as real ones are, and take no room on a disk that knows holes. Shapes of what memfit knows by
its config.json come from there, Mistral 3's from the modules that transformers builds on no device at all.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import model_from_config

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
}
_QWEN = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768}


def _sizes(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **_sizes(1152, 4304, 27, 16, image_size=896, patch_size=14, vision_use_head=False),
        },
    },
    "ministral-3-14b": {  # mistralai/Ministral-3-14B-Instruct-2512 in bfloat16
        "model_type": "mistral3",
        "spatial_merge_size": 2,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "ministral3",
            **_sizes(5120, 16384, 40, 32, num_key_value_heads=8, head_dim=128, vocab_size=131072),
            "max_position_embeddings": 262144,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "pixtral",
            **_sizes(1024, 4096, 24, 16, head_dim=64, image_size=1540, patch_size=14),
        },
    },
    "llama-3.1-8b": {**_LLAMA, **_sizes(4096, 14336, 32, 32)},
    "llama-3.1-70b": {**_LLAMA, **_sizes(8192, 28672, 80, 64)},
    "qwen2.5-0.5b": {
        **_QWEN,
        **_sizes(896, 4864, 24, 14, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    },
    "qwen2.5-3b": {
        **_QWEN,
        **_sizes(2048, 11008, 36, 16, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    },
    "qwen2.5-14b": {**_QWEN, **_sizes(5120, 13824, 48, 40, num_key_value_heads=8)},
    "qwen2.5-32b": {**_QWEN, **_sizes(5120, 27648, 64, 40, num_key_value_heads=8)},
}


def write_header_only(name: str, folder: Path) -> Path:
    """The folder, with config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps({"dtype": "bfloat16", **CONFIGS[name]}))
    shapes = _built(folder) if name.startswith("ministral") else _known(config)
    prefix, whole = header(shapes)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(prefix)
        file.truncate(whole)
    return folder


def header(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """What a file of bfloat16 tensors begins with, and its size."""
    listed, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        listed[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(listed).encode()
    return struct.pack("<Q", len(content)) + content, 8 + len(content) + end


def _known(config: Path) -> dict[str, tuple[int, ...]]:
    return {one.name: one.shape for one in model_from_config(read_config(config)).parameters}


def _built(folder: Path) -> dict[str, tuple[int, ...]]:
    import torch
    import transformers

    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForImageTextToText.from_config(config)
    return {name: tuple(one.shape) for name, one in model.named_parameters()}


if __name__ == "__main__":
    write_header_only(sys.argv[1], Path(sys.argv[2]))
