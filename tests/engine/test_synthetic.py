"""benchmarks/synthetic.py: headers of real models as the engine wants them, and weights that give text."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memfit
from conftest import run_memfit
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.headers import read_model
from memfit.memory.estimate import LlamaConfig
from memfit.memory.process_memory import Baseline

pytestmark = pytest.mark.engine

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# Published file in bytes / 10^9, with its vocabulary of up to 12 MB; layers x KV heads x head size, which the
# engine holds in full.
_REAL = {
    "llama-2-70b-q3_k_m": (33.19, 80 * 8 * 128),
    "llama-2-70b-q4_k_m": (41.42, 80 * 8 * 128),
    "llama-2-70b-q6_k": (56.59, 80 * 8 * 128),
    "qwen2.5-72b-q6_k": (64.35, 80 * 8 * 128),
    "qwen3-30b-a3b-q4_k_m": (18.56, 48 * 4 * 128),
    "gpt-oss-120b": (63.39, 18 * 8 * 64),
}
_WINDOWED = {"gpt-oss-120b": 18 * 8 * 64}  # the other half of the layers, with 128 tokens in view
_CONTEXT, _UBATCH = 4096, 512


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    return importlib.import_module("synthetic")


def test_states_of_recurrent_layers_lie_on_a_device_that_is_not_here(synthetic: Any, tmp_path: Path) -> None:
    """Simulating, the engine allocates them for real: 30 layers of 32 x 128 x 128 numbers of four bytes, and
    three tokens of the convolution's 8,192. Of the other ten layers, keys and values of 2 heads of 256."""
    shapes = importlib.import_module("shapes")
    path = tmp_path / "model.gguf"
    synthetic.write_header(path, shapes.QWEN36_35B_A3B)
    plan = memfit.plan(str(path), machine="rtx3090-24gb", workload=memfit.Workload(context=2048))
    assert plan.fits and plan.config.layers == (40,)
    states = 30 * 4 * (32 * 128 * 128 + 3 * 8192)
    assert plan.tiers[1].kv_cache_bytes == states + 10 * 2048 * 2 * (2 * 256) * 2


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "model.gguf"
    yield path
    path.unlink(missing_ok=True)


def test_every_real_model_is_tested(synthetic: Any) -> None:
    assert set(_REAL) == set(synthetic.REAL)


@pytest.mark.parametrize("name", _REAL)
def test_a_header_has_the_published_size_and_the_engine_accepts_it(
    name: str, synthetic: Any, path: Path
) -> None:
    published, elements = _REAL[name]
    synthetic.write_header(path, synthetic.REAL[name])
    assert path.stat().st_size == pytest.approx(published * 1e9, rel=0.003)
    assert path.stat().st_blocks * 512 < 1 << 20  # the rest is a hole
    spec = read_model(path)
    config = LlamaConfig(
        paths=(path,),
        context=_CONTEXT,
        parallel=1,
        kv_type="f16",
        ubatch=_UBATCH,
        threads=2,
        repack=False,
        load_mode="mmap",
    )
    with LlamaOracle(spec, Baseline(parent=None, decode_bytes=0), repack_modes=(False,)) as oracle:
        answer = oracle.ask(config)
    assert 0 <= answer.weights_bytes - spec.weights_bytes <= 32 * len(spec.tensors)
    # Keys and values in f16. A window takes itself and a ubatch, rounded up to 256 tokens.
    windowed = _WINDOWED.get(name, 0) * 768
    assert answer.kv_cache_bytes == (elements * _CONTEXT + windowed) * 2 * 2


@pytest.mark.parametrize("name", _REAL)
def test_every_tensor_has_the_type_that_the_engine_would_quantize_it_to(
    name: str, synthetic: Any, path: Path
) -> None:
    """By a dry run of llama-quantize's own code over the same model in F16."""
    shape = synthetic.REAL[name]
    synthetic.write_header(path, replace(shape, mix="F16"))
    done = subprocess.run(
        [sys.executable, "-c", _DRY_RUN, str(path), str(synthetic.file_type(shape))],
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = {
        name: (quantized or kept).upper() for name, kept, quantized in _DRY_RUN_LINE.findall(done.stderr)
    }
    assert chosen == {tensor.name: tensor.type for tensor in synthetic.tensors(shape)}


_DRY_RUN = """
import ctypes, sys, llama_cpp
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.dry_run = int(sys.argv[2]), True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), b"/dev/null", ctypes.byref(options)))
"""
# "[ 1/ 723] output.weight - [ 8192, 32000, 1, 1], type = f16, size = 500.00 MiB -> 205.08 MiB (q6_K)"
_DRY_RUN_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) .*type = +(\w+), size = [^(\n]*(?:\((\w+)\))?", re.MULTILINE
)


@pytest.mark.parametrize("experts", [False, True])
def test_random_weights_give_varied_text_that_depends_on_the_prompt(
    experts: bool, synthetic: Any, path: Path
) -> None:
    sizes = {"layers": 4, "width": 512, "feed_forward": 768, "heads": 8, "kv_heads": 2, "vocabulary": 4000}
    if experts:
        synthetic.write_moe(path, **sizes, experts=8, experts_used=2)
    else:
        synthetic.write_dense(path, **sizes, values="random")
    words = [_words(path, prompt) for prompt in ("Hello", " w17 w234 and more", "Hello")]
    assert all(len(set(some)) > 16 for some in words)
    assert all(word[0] == "w" and word[1:].isdigit() for some in words for word in some)
    assert words[0] == words[2] != words[1]


def _words(path: Path, prompt: str) -> list[str]:
    done = run_memfit(
        *("run", str(path), "--raw", "-p", prompt, "--ctx", "256", "--max-tokens", "32"),
        *("--temperature", "0", "--threads", "1", "--json"),
    )
    assert done.code == 0, done.err
    words: list[str] = done.json["text"].split()
    assert len(words) == 32
    return words


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_random_blocks_have_the_deviation_asked_for(kind: str, synthetic: Any) -> None:
    """By gguf-py's reading of the blocks."""
    import numpy
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = synthetic._random_blocks(kind, 400, 0.02, numpy.random.default_rng(0))
    rows = numpy.frombuffer(data, numpy.uint8).reshape(400, -1)
    weights = dequantize(rows, GGMLQuantizationType[kind])
    assert weights.std() == pytest.approx(0.02, rel=0.03)
    assert abs(weights.mean()) < 0.004  # an even number of levels has one more below zero


def test_a_model_of_zeros_takes_no_room_and_runs(synthetic: Any, path: Path) -> None:
    sizes = {"layers": 4, "width": 512, "feed_forward": 768, "heads": 8, "kv_heads": 2, "vocabulary": 4000}
    synthetic.write_dense(path, **sizes)
    assert path.stat().st_blocks * 512 < path.stat().st_size // 4
    done = run_memfit("run", str(path), "--raw", "-p", "Hello", "--threads", "1", "--max-tokens", "4")
    assert done.code == 0, done.err


def test_the_command_line_writes_by_name_and_lists(
    synthetic: Any, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic.py", "tiny", str(path), "--values", "zeros"])
    assert synthetic.main() == 0
    assert read_model(path).architecture == "llama"
    monkeypatch.setattr("sys.argv", ["synthetic.py", "--list"])
    assert synthetic.main() == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in [*synthetic.INVENTED, *synthetic.REAL])
