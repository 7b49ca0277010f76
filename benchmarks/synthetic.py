"""A llama of about 0.6 billion parameters in Q4_K, all zeros, in a sparse file: for speed, not for sense.

Kernels do not look at values, so zeros run as fast as a trained model of these shapes.
"""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

LAYERS, WIDTH, FEED_FORWARD, HEADS, VOCABULARY = 20, 1536, 4096, 12, 32000


def write_model(path: Path) -> None:
    """Write header and tensor table with gguf-py, then stretch the file over the data."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    square, wide, tall = (WIDTH, WIDTH), (FEED_FORWARD, WIDTH), (WIDTH, FEED_FORWARD)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, WIDTH),
        "output": (VOCABULARY, WIDTH),
        "output_norm": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = {f"attn_{part}": square for part in ("q", "k", "v", "output")}
        block |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": tall}
        block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    total = 0
    for name, shape in shapes.items():
        kind = GGMLQuantizationType.Q4_K if len(shape) == 2 else GGMLQuantizationType.F32
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        elements = shape[0] * (shape[1] if len(shape) == 2 else 1)
        size = elements // per_block * block_bytes
        writer.add_tensor_info(f"{name}.weight", shape, _DTYPE, size, raw_dtype=kind)
        total += size  # every size here is a multiple of the alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        data = -(-path.stat().st_size // writer.data_alignment) * writer.data_alignment
        file.truncate(data + total)


def _float32() -> object:
    import numpy

    return numpy.dtype(numpy.float32)


_DTYPE = _float32()
