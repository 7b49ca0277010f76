"""`memfit quantize CHECKPOINT OUT.gguf --type F16 --verify`: how far predictions are from transformers'.

    python benchmarks/conversion.py

Both packaged models as checkpoints, which transformers makes of them once, and three random ones with the
demo's tokenizer. Bar: a mean KL divergence of at most 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from subjects import memfit, models

from memfit.engines.transformers.gguf_files import find_checkpoint_of
from memfit.units import MIB

_MOST = 1e-5
_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
_RANDOM = {
    "llama": transformers.LlamaConfig(**_SMALL),
    "qwen3": transformers.Qwen3Config(**_SMALL, head_dim=64),
    "qwen3-moe": transformers.Qwen3MoeConfig(**_SMALL, head_dim=64, **_EXPERTS),
}


def main() -> int:
    failures = 0
    print("| checkpoint | mean KL | s | GGUF MiB | held at most MiB |")
    print("|" + " --- |" * 5, flush=True)
    with tempfile.TemporaryDirectory(prefix="memfit-conversion-") as folder:
        room = Path(folder)
        for name, path in models().items():
            memfit("run", path, "--engine", "transformers", "-p", "Hello", "--max-tokens", "1")
            found = find_checkpoint_of(Path(path), dtype="bf16", say=print)
            failures += not convert(name, found.folder, room)
        demo = Path(models()["demo"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(demo.parent, gguf_file=demo.name)
        for name, config in _RANDOM.items():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                parameter.data *= 2
            model.to(torch.bfloat16).save_pretrained(room / name)
            tokenizer.save_pretrained(room / name)
            failures += not convert(name, room / name, room)
    return failures


def convert(name: str, checkpoint: Path, room: Path) -> bool:
    output = room / "out.gguf"
    began = time.monotonic()
    arguments = ("--type", "F16", "--verify", "--overwrite")
    code, document, errors = memfit("quantize", str(checkpoint), str(output), *arguments)
    assert code == 0, errors
    loss = document["verified_kl_divergence"]
    print(
        f"| {name} | {loss:.1e} | {time.monotonic() - began:.1f} | {document['file_bytes'] / MIB:.0f} "
        f"| {document['peak_bytes'] / MIB:.0f} |",
        flush=True,
    )
    return loss <= _MOST


if __name__ == "__main__":
    sys.exit(main())
