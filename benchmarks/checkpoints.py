"""Checkpoints for transformers: the packaged models as safetensors, and random ones of other shapes.

    python benchmarks/checkpoints.py NAME FOLDER [--dtype float32|bfloat16|float16]

NAME is demo, gemma-3-270m, llama or qwen3-moe. A process of its own: it holds a whole model in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from subjects import models

RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaForCausalLM",
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "moe_intermediate_size": 256,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
    ),
}


def checkpoint(name: str, folder: Path, dtype: str = "float32") -> Path:
    """The folder, written if it is not there."""
    if not (folder / "config.json").exists():
        command = [sys.executable, __file__, name, str(folder), "--dtype", dtype]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def write(name: str, folder: Path, dtype: str) -> None:
    import torch
    import transformers

    kind = getattr(torch, dtype)
    if name in RANDOM:
        torch.manual_seed(0)
        class_name, settings = RANDOM[name]
        model_class = getattr(transformers, class_name)
        model_class(model_class.config_class(**settings)).to(kind).save_pretrained(folder)
        return
    path = Path(models()[name])
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    whole = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, quantization_config=whole, dtype=kind)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=["demo", "gemma-3-270m", *RANDOM])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    write(arguments.name, arguments.folder, arguments.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
