"""Writes models that nobody trained: to be fast, to generate the same text everywhere, or to be planned for.

    python benchmarks/synthetic.py NAME PATH [--values zeros|random]
    python benchmarks/synthetic.py --list

"zeros" is a sparse file, written at once: kernels do not look at values, so it runs as fast as a trained
model of its shape. "random" has weights scaled as at the start of training, so that greedy text is nonsense
but varied, depends on the prompt, and can be compared between two ways of running the model. The real models
of shapes.py are headers only: right to the byte for a planner, of no use to anybody else.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path

import numpy
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES
from shapes import INVENTED, REAL, Shape, Tensor, file_type, tensors

_CHUNK_BYTES = 16 << 20


def write_dense(
    path: Path,
    *,
    layers: int,
    width: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    vocabulary: int = 32000,
    kind: str = "Q4_K",
    values: str = "zeros",
    context: int = 8192,
) -> None:
    """A llama of these sizes, every matrix of type `kind`. SMALL and BIG of shapes.py are ready-made."""
    shape = Shape(
        architecture="llama",
        mix=kind,
        layers=layers,
        width=width,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=vocabulary,
        context=context,
    )
    write_model(path, shape, values=values)


def write_moe(
    path: Path,
    *,
    layers: int = 16,
    width: int = 1024,
    feed_forward: int = 512,
    heads: int = 16,
    kv_heads: int = 4,
    experts: int = 32,
    experts_used: int = 4,
    vocabulary: int = 32000,
    kind: str = "Q4_K",
    values: str = "random",
    context: int = 8192,
) -> None:
    """A qwen3moe of these sizes; by default shapes.MOE."""
    shape = Shape(
        architecture="qwen3moe",
        mix=kind,
        layers=layers,
        width=width,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=vocabulary,
        context=context,
        experts=experts,
        experts_used=experts_used,
    )
    write_model(path, shape, values=values)


def write_model(
    path: Path, shape: Shape, *, values: str = "zeros", seed: int = 0, tiktoken: Path | None = None
) -> None:
    """A model that takes and gives text, with the tokens of a .tiktoken file where one is given. The same
    seed gives the same bytes."""
    if values not in ("zeros", "random"):
        raise ValueError(f"values are zeros or random, not {values!r}")
    ((_, end),) = _write_headers(path, shape, words=True, tiktoken=tiktoken)
    if values == "zeros":
        _stretch(path, end)
        return
    generator = numpy.random.Generator(numpy.random.SFC64(seed))
    with path.open("ab") as file:
        file.write(bytes(end - shape.data_bytes - file.tell()))
        for tensor in tensors(shape):
            for chunk in _random_data(shape, tensor, generator):
                file.write(chunk)
        assert file.tell() == end


def write_header(path: Path, shape: Shape, *, words: bool = False, split_bytes: int = 0) -> list[Path]:
    """Header and tensor table, and a hole of the weights' length; the files that were made.

    Tokens have text only with `words`. A split model's files hold `split_bytes` of weights at most.
    """
    files = _write_headers(path, shape, words=words, split_bytes=split_bytes)
    for one, end in files:
        _stretch(one, end)
    return [one for one, _ in files]


def _stretch(path: Path, file_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(file_bytes)


# -- the header ----------------------------------------------------------------------------------------


def _write_headers(
    path: Path, shape: Shape, *, words: bool, split_bytes: int = 0, tiktoken: Path | None = None
) -> list[tuple[Path, int]]:
    """Everything before the data; the files, and the number of bytes that each must have."""
    writer = GGUFWriter(path, shape.architecture, split_max_size=split_bytes)
    number = file_type(shape)
    if number is not None:
        writer.add_file_type(number)
    for key, value in _metadata(shape).items():
        add = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(f"{shape.architecture}.{key}", value)
    if tiktoken:
        _add_byte_pairs(writer, tiktoken, shape.vocabulary)
    elif words:
        _add_words(writer, shape.vocabulary)
    else:
        writer.add_tokenizer_model("none")
    for tensor in tensors(shape):
        # Every size is a multiple of the alignment, so the sizes add up to the data.
        assert tensor.size_bytes % writer.data_alignment == 0, tensor
        kind = GGMLQuantizationType[tensor.type]
        # The dtype is only looked at where there is no raw one.
        writer.add_tensor_info(
            tensor.name, tensor.dimensions, numpy.dtype(numpy.float32), tensor.size_bytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    files = []
    for one, held in zip(writer.format_shard_names(path), writer.tensors, strict=True):
        begin = -(-one.stat().st_size // writer.data_alignment) * writer.data_alignment
        files.append((one, begin + sum(tensor.nbytes for tensor in held.values())))
    return files


def _metadata(shape: Shape) -> dict[str, int | float | str]:
    metadata: dict[str, int | float | str] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head,
        "vocab_size": shape.vocabulary,
    }
    if shape.experts:
        metadata |= {
            "expert_count": shape.experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.feed_forward,
        }
    return metadata | shape.more


_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_UNSPOKEN = len(_SPECIAL) + len(_BYTES)  # tokens before the words


def _add_words(writer: GGUFWriter, vocabulary: int) -> None:
    """A SentencePiece vocabulary: bytes for any text, and words from " w0" on.

    Tokens are merged from two shorter ones, the highest score first: every beginning of a word must be one.
    """
    words = ["▁", "▁w", *(f"▁w{number}" for number in range(vocabulary - _UNSPOKEN - 2))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*_SPECIAL, *_BYTES, *words])
    writer.add_token_scores([0.0] * _UNSPOKEN + [-float(rank) for rank in range(len(words))])
    writer.add_token_types(
        [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * len(_BYTES)
        + [TokenType.NORMAL] * len(words)
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_byte_pairs(writer: GGUFWriter, tiktoken: Path, vocabulary: int) -> None:
    """A byte-pair vocabulary as GPT-2 writes it, by a file of lines "base64 rank", as Qwen's is."""
    ranks = {base64.b64decode(line.split()[0]): rank for rank, line in enumerate(tiktoken.open("rb"))}
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {one: chr(256 + at) for at, one in enumerate(others)}
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = [bytes([byte]) for byte in token]
            while len(parts) > 2:  # by the pair of the lowest rank, as a text is
                pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
                at = pairs.index(min(pairs))
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            merges.append(" ".join("".join(letters[byte] for byte in part) for part in parts))
    words = ["".join(letters[byte] for byte in token) for token in ranks]
    special = ["<|endoftext|>", *(f"<|unused{number}|>" for number in range(vocabulary - len(words) - 1))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*words, *special])
    writer.add_token_types([TokenType.NORMAL] * len(words) + [TokenType.CONTROL] * len(special))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(words))
    writer.add_add_bos_token(False)


# -- random weights ------------------------------------------------------------------------------------

# A block's fields in order: "step" and "least" are F16, bytes stand as they are, a number is that many
# random bytes, which make weights `step * level`, `levels` of them; "least" is subtracted, making them
# symmetric. The K types' inner scales are all 1: in Q4_K and Q5_K six bits each, spread over 12 bytes.
_ONES = bytes([1] * 8 + [0x11] * 4)
_BLOCKS: dict[str, tuple[int, list[str | bytes | int]]] = {
    "Q4_0": (16, ["step", 16]),
    "Q8_0": (256, ["step", 32]),
    "Q4_K": (16, ["step", "least", _ONES, 128]),
    "Q5_K": (32, ["step", "least", _ONES, 160]),
    "Q6_K": (64, [192, bytes([1] * 16), "step"]),
}


# A matrix hands on the deviation of its input, times these. A large embedding leaves the layers a small say
# in the next token, and rounding a much smaller one. Measured on SMALL and MOE, greedy, eight prompts: plain
# and repacked kernels agree on 128 of 128 tokens (at 0.35 they part after 1 to 53, mostly 10), while other
# random numbers in half of the layers' ffn_down show within 21.
_EMBEDDING = 12.0
_GAINS = {"ffn_gate_inp": 4.0}  # experts far apart: rounding then only swaps those of little weight
_BRANCH_ENDS = {"attn_output", "ffn_down", "ffn_down_exps"}  # what every layer adds to the residual stream


def _random_data(shape: Shape, tensor: Tensor, generator: numpy.random.Generator) -> Iterator[bytes]:
    """The tensor's bytes, in pieces."""
    part = tensor.name.removesuffix(".weight").split(".")[-1]
    if part.endswith("norm"):
        yield numpy.ones(tensor.dimensions, numpy.float32).tobytes()
        return
    deviation = _GAINS.get(part, 1.0) / sqrt(tensor.dimensions[-1])
    if part == "token_embd":
        deviation = _EMBEDDING
    elif part in _BRANCH_ENDS:
        deviation /= sqrt(2 * shape.layers)
    if tensor.type == "F32":
        yield (
            (generator.standard_normal(tensor.dimensions, numpy.float32) * deviation).astype("<f4").tobytes()
        )
        return
    if tensor.type not in _BLOCKS:
        raise ValueError(f"no random values for type {tensor.type}; there are {', '.join(_BLOCKS)}")
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
    blocks = prod(tensor.dimensions) // per_block
    # Tokens that are no words get logits of zero, so that they are never the likeliest.
    silent = _UNSPOKEN * tensor.dimensions[-1] // per_block if part == "output" else 0
    yield bytes(silent * block_bytes)
    most = _CHUNK_BYTES // block_bytes
    for start in range(silent, blocks, most):
        yield _random_blocks(tensor.type, min(most, blocks - start), deviation, generator)


def _random_blocks(kind: str, count: int, deviation: float, generator: numpy.random.Generator) -> bytes:
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    levels, fields = _BLOCKS[kind]
    step = deviation * sqrt(12 / (levels**2 - 1))  # of a uniform distribution
    constants = {"step": step, "least": step * (levels - 1) / 2}
    data = numpy.frombuffer(bytearray(generator.bytes(count * block_bytes)), numpy.uint8)
    data = data.reshape(count, block_bytes)
    at = 0
    for field in fields:
        if isinstance(field, int):
            at += field
            continue
        fixed = numpy.float16(constants[field]).tobytes() if isinstance(field, str) else field
        data[:, at : at + len(fixed)] = numpy.frombuffer(fixed, numpy.uint8)
        at += len(fixed)
    assert at == block_bytes
    return data.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", nargs="?", choices=[*INVENTED, *REAL])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--values", choices=["zeros", "random"], default="random")
    parser.add_argument("--list", action="store_true", help="the names and their sizes")
    arguments = parser.parse_args()
    if arguments.list:
        for name, shape in {**INVENTED, **REAL}.items():
            kind = "header only" if name in REAL else "weights"
            print(f"{name:22} {shape.architecture:9} {shape.data_bytes / 1e9:6.2f} GB  {kind}")
        return 0
    if arguments.path is None:
        parser.error("give a name and a path, or --list")
    if arguments.name in REAL:
        write_header(arguments.path, REAL[arguments.name])
    else:
        write_model(arguments.path, INVENTED[arguments.name], values=arguments.values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
