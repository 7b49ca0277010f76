"""Importance matrices as a user makes them; gguf and a first layer reckoned here are the second opinion."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

import memfit
from conftest import run_memfit

pytestmark = pytest.mark.engine

_TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep by the fire. " * 30


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT)
    return str(path)


def _read(path: Path) -> dict[str, Any]:
    return {one.name: np.array(one.data) for one in GGUFReader(path).tensors}


def _tokens(model: str, text: str) -> list[int]:
    from memfit.api import open_planner
    from memfit.engines.protocol import PlanOptions
    from memfit.engines.requests import Request

    options = PlanOptions(budget=memfit.Budget(), count_parent=True)
    with open_planner(model, "auto", options, memfit.Workload()) as planner:
        (tokens,) = planner.tokenize([Request(prompt=text)])
    assert tokens
    return tokens


def test_a_first_layer_is_as_reckoned_by_hand(demo: str, text: str, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    asked = ("imatrix", demo, str(output), "--text", text, "--ctx", "64", "--chunks", "3", "--json")
    done = run_memfit(*asked)
    assert done.code == 0, done.err
    assert (done.json["chunks"], done.json["tokens"], done.json["within_budget"]) == (3, 192, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "text.txt"]
    reader, found = GGUFReader(output), _read(output)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.type"] == "imatrix"
    assert facts["imatrix.datasets"] == ["text.txt"]
    assert (facts["imatrix.chunk_count"], facts["imatrix.chunk_size"]) == (3, 64)
    matrices = {
        one.name for one in GGUFReader(demo).tensors if one.name.startswith("blk.") and len(one.shape) == 2
    }
    assert set(found) == {f"{name}.{part}" for name in matrices for part in ("in_sum2", "counts")}
    assert all(values.tolist() == [192] for name, values in found.items() if name.endswith("counts"))

    weights = {one.name: dequantize(one.data, one.tensor_type) for one in GGUFReader(demo).tensors[:2]}
    rows = weights["token_embd.weight"][_tokens(demo, _TEXT)[:192]]
    rows = rows / np.sqrt(np.square(rows).mean(1, keepdims=True) + 1e-5) * weights["blk.0.attn_norm.weight"]
    wanted = np.square(rows).sum(0)
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight.in_sum2"], wanted, rtol=1e-4)


def test_quantizing_with_it_loses_less(demo: str, text: str, tmp_path: Path) -> None:
    source, matrix = tmp_path / "f16.gguf", tmp_path / "imatrix.gguf"
    assert run_memfit("quantize", demo, str(source), "--type", "F16").code == 0
    assert run_memfit("imatrix", str(source), str(matrix), "--text", text, "--ctx", "128").code == 0
    lost = []
    for more in ((), ("--imatrix", str(matrix))):
        output = tmp_path / "out.gguf"
        arguments = ("quantize", str(source), str(output), "--type", "Q3_K_S", "--overwrite", *more)
        assert run_memfit(*arguments).code == 0
        scored = ("--text", text, "--ctx", "128", "--json", "--reference", str(source))
        lost.append(run_memfit("perplexity", str(output), *scored).json["kl_divergence"]["mean"])
    assert lost[1] < lost[0]


def test_a_streamed_model_gives_the_same(demo: str, text: str, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.gguf", tmp_path / "part.gguf"
    asked = ("--text", text, "--ctx", "64", "--chunks", "2", "--json")
    done = run_memfit("imatrix", demo, str(whole), *asked)
    assert done.code == 0, done.err
    budget = done.json["peak_bytes"] - 16 * 2**20  # with less, ubatches are shorter, which round otherwise
    streamed = run_memfit("imatrix", demo, str(part), *asked, "--ram", str(budget))
    assert streamed.code == 0, streamed.err
    assert streamed.json["peak_bytes"] <= budget
    assert streamed.json["within_budget"]
    first, second = _read(whole), _read(part)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, rtol=1e-5)


def test_each_expert_has_its_own(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
    synthetic, shapes = (importlib.import_module(name) for name in ("synthetic", "shapes"))
    shape = replace(shapes.MOE, layers=2)
    model, output = tmp_path / "experts.gguf", tmp_path / "out.gguf"
    synthetic.write_model(model, shape, values="random")
    done = run_memfit("imatrix", str(model), str(output), "--text", text, "--ctx", "64", "--chunks", "2")
    assert done.code == 0, done.err
    found = _read(output)
    for part, columns in (("gate", shape.width), ("up", shape.width), ("down", shape.feed_forward)):
        name = f"blk.1.ffn_{part}_exps.weight"
        assert found[f"{name}.in_sum2"].shape == (shape.experts, columns)
        counts = found[f"{name}.counts"][:, 0]
        assert counts.sum() == 2 * 64 * shape.experts_used
        assert len(set(counts)) > 1
        assert ((found[f"{name}.in_sum2"].sum(1) > 0) == (counts > 0)).all()
    # Each token's inputs reach its experts whole: together they are those of the router.
    together = found["blk.1.ffn_gate_exps.weight.in_sum2"].sum(0)
    np.testing.assert_allclose(
        together, shape.experts_used * found["blk.1.ffn_gate_inp.weight.in_sum2"], rtol=1e-4
    )


def test_what_cannot_be_collected_is_refused(demo: str, text: str, llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    asked = ("--text", text, "--ctx", "64", "--chunks", "1")
    output.write_bytes(b"mine")
    done = run_memfit("imatrix", demo, str(output), *asked)
    assert (done.code, "--overwrite" in done.err, output.read_bytes()) == (2, True, b"mine")
    done = run_memfit("imatrix", demo, text, *asked, "--overwrite")
    assert (done.code, Path(text).read_text()) == (2, _TEXT)
    done = run_memfit("imatrix", str(llama), str(tmp_path / "new.gguf"), *asked)
    assert (done.code, "take a GGUF file" in done.err) == (2, True)
    done = run_memfit("imatrix", demo, str(tmp_path / "no" / "new.gguf"), *asked)
    assert (done.code, "there is no folder" in done.err) == (6, True), done.err


def test_interrupted_it_leaves_nothing(demo: str, text: str, tmp_path: Path) -> None:
    Path(text).write_text(_TEXT * 40)
    process = subprocess.Popen(
        [sys.executable, "-m", "memfit", "imatrix", demo, str(tmp_path / "out.gguf"), "--text", text],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "chunk" in line:
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=60) == 130
    process.stderr.close()
    assert time.monotonic() - began < 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]
