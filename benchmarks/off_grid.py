"""The two packaged models as they may have been before they were quantized: off their types' grid.

    python benchmarks/off_grid.py MODEL OUT.gguf

Their weights are dequantized, and moved within the cell that was rounded to the same number, evenly over it.
Widths are padded with zeros to multiples of 256, so that all types apply, and norms made up for that:
predictions stay those of the narrow model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

_BLOCK = 256
_NORMS = ("attn_norm", "ffn_norm", "output_norm")
_INWARD = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "token_embd")  # columns are the model's width
_OUTWARD = ("attn_output", "ffn_down")  # rows are


def write_off_grid(source: str | Path, target: Path, *, seed: int = 0) -> None:
    """`source` in F16, of a llama or gemma3 model whose output is its token table."""
    reader = GGUFReader(source)
    generator = np.random.default_rng(seed)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    architecture = facts["general.architecture"]
    width = facts[f"{architecture}.embedding_length"]
    heads, kv_heads = (facts[f"{architecture}.attention.head_count{one}"] for one in ("", "_kv"))
    head = facts.get(f"{architecture}.attention.key_length", width // heads)
    padded = -(-width // _BLOCK) * _BLOCK
    more = next(  # groups of heads, until their width is a multiple, too
        count for count in range(_BLOCK) if (kv_heads + count) * heads // kv_heads * head % _BLOCK == 0
    )
    all_kv, all_heads = kv_heads + more, (kv_heads + more) * heads // kv_heads
    weights = {one.name: _moved(one, generator) for one in reader.tensors}
    writer = GGUFWriter(target, architecture)
    changed = {
        "general.file_type": 1,  # F16
        f"{architecture}.embedding_length": padded,
        f"{architecture}.attention.head_count": all_heads,
        f"{architecture}.attention.head_count_kv": all_kv,
    }
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, facts[name]), kind, inner)
    narrow = np.float32(np.sqrt(width / padded))  # a norm's mean is over zeros, too
    for name, values in weights.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in _NORMS:
            values = _pad(values * narrow, padded)
        elif part.startswith("post_"):
            # Where embeddings are multiplied with the width's root, what is added to them grows alike.
            values = _pad(values, padded)
        elif part in _INWARD:
            rows = {"attn_q": all_heads * head, "attn_k": all_kv * head, "attn_v": all_kv * head}
            values = _pad(values, rows.get(part, len(values)), padded)
        elif part in _OUTWARD:
            columns = all_heads * head if part == "attn_output" else values.shape[1]
            values = _pad(values, padded, columns)
        writer.add_tensor(name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pad(values: np.ndarray, *shape: int) -> np.ndarray:
    return np.pad(values, [(0, size - old) for size, old in zip(shape, values.shape, strict=True)])


def _moved(tensor: object, generator: np.random.Generator) -> np.ndarray:
    """Its weights, each somewhere in its cell."""
    kind, data = tensor.tensor_type, np.array(tensor.data)
    values = dequantize(data, kind)
    steps = _STEPS.get(kind)
    if steps is None:
        return values
    found = steps(data.reshape(-1, _block_bytes(kind)))  # [blocks, steps in a block]
    each = values.size // found.size
    cells = np.repeat(found.ravel(), each).reshape(values.shape)
    return values + cells * generator.uniform(-0.5, 0.5, values.shape).astype(np.float32)


def _block_bytes(kind: GGMLQuantizationType) -> int:
    from gguf.constants import GGML_QUANT_SIZES

    return GGML_QUANT_SIZES[kind][1]


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    from gguf.quants import Q4_K

    scales, _ = Q4_K.get_scale_min(blocks[:, 4:16])
    return _halves(blocks, 0) * scales.astype(np.float32)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    return _halves(blocks, 208) * np.abs(blocks[:, 192:208].view(np.int8)).astype(np.float32)


_STEPS = {  # the width of a cell, for each block or part of one
    GGMLQuantizationType.Q4_1: lambda blocks: _halves(blocks, 0),
    GGMLQuantizationType.Q5_0: lambda blocks: np.abs(_halves(blocks, 0)),
    GGMLQuantizationType.Q8_0: lambda blocks: np.abs(_halves(blocks, 0)),
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}


if __name__ == "__main__":
    write_off_grid(sys.argv[1], Path(sys.argv[2]))
