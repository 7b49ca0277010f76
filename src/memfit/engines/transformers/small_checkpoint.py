"""A checkpoint of a few megabytes with the same layers as a given one, only small ones, to be loaded in its
place: what the processes hold with it, its own bytes aside, they hold with the real one."""

from __future__ import annotations

import contextlib
import copy
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from memfit.engines.transformers.model import explained

__all__ = ["write_small_checkpoint"]

# Sizes that every kernel accepts: bitsandbytes' packed ones want rows by 32 and columns by 64.
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".index.json")


def write_small_checkpoint(source: str, folder: str, trust_remote_code: bool) -> dict[str, Any]:
    """Write it into `folder`, with the tokenizer of the checkpoint in `source`.

    A model type that cannot be made small is stood in for by a llama: its modules' code differs a little.
    """
    torch.manual_seed(0)
    with explained("transformers cannot build a small model"):
        for path in Path(source).iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHTS) and path.suffix != ".py":
                shutil.copy(path, folder)
        known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = None
        with contextlib.suppress(Exception):  # any that this type's own code raises
            model = known[type(config)](_small(config))
        if model is None:
            values = {**_SMALL, "num_hidden_layers": config.get_text_config().num_hidden_layers}
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
        model.to(torch.bfloat16).save_pretrained(folder)
    return {"model_type": model.config.model_type}


def _small(config: Any) -> Any:
    small = copy.deepcopy(config)
    for part in (small.get_text_config(), getattr(small, "vision_config", None)):
        for name, value in _SMALL.items():
            if getattr(part, name, None) is not None:
                setattr(part, name, value)
    return small
