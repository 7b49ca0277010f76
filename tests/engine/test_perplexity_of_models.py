"""Perplexity and KL divergence of real models, as a user asks for them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import memfit
from conftest import run_memfit
from memfit.units import GIB

pytestmark = pytest.mark.engine

_TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep by the fire. "


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT * 30)
    return str(path)


def test_perplexity_is_what_the_scores_say(demo: str, text: str) -> None:
    asked = ("perplexity", demo, "--text", text, "--ctx", "64", "--chunks", "3", "--json")
    done = run_memfit(*asked)
    assert done.code == 0, done.err
    assert (done.json["chunks"], done.json["tokens"], done.json["within_budget"]) == (3, 3 * 31, True)
    tokens = _upstream_tokens(demo, _TEXT * 30)
    plan = memfit.plan(
        demo,
        budget=memfit.Budget(ram=4 * GIB),
        workload=memfit.Workload(context=64, outputs=31, repack="off"),
    )
    logprobs = []
    with memfit.load(plan) as session:
        for start in range(0, 3 * 64, 64):
            logprobs += [one.logprob for one in session.score(tokens[start : start + 64], first=33)]
    assert done.json["perplexity"] == pytest.approx(math.exp(-np.mean(logprobs)), rel=1e-6)


def _upstream_tokens(model: str, text: str) -> list[int]:
    """In a process of its own, as only such a one may load the engine."""
    code = (
        "import json, sys; from llama_cpp import Llama; "
        "print(json.dumps(Llama(sys.argv[1], vocab_only=True, verbose=False).tokenize(sys.argv[2].encode())))"
    )
    done = subprocess.run([sys.executable, "-c", code, model, text], capture_output=True, check=True)
    tokens: list[int] = json.loads(done.stdout)
    return tokens


def test_a_model_does_not_differ_from_itself(demo: str, text: str) -> None:
    asked = (
        "perplexity",
        demo,
        "--text",
        text,
        "--ctx",
        "64",
        "--chunks",
        "2",
        "--reference",
        demo,
        "--json",
    )
    done = run_memfit(*asked)
    assert done.code == 0, done.err
    found = done.json["kl_divergence"]
    assert abs(found["mean"]) < 1e-6 and found["maximum"] < 1e-5
    assert found["same_top"] == 1.0
    assert done.json["perplexity"] == done.json["reference"]["value"]


def test_models_of_other_tokens_cannot_be_compared(demo: str, gemma: str, text: str) -> None:
    done = run_memfit("perplexity", demo, "--text", text, "--ctx", "64", "--reference", gemma)
    assert (done.code, "different tokens" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "and a chunk 512"),
        (b"", "the text"),
        (b"caf\xe9" * 10, "byte 3"),
        (None, "No such file"),
    ],
)
def test_texts_that_cannot_be_scored(demo: str, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    done = run_memfit("perplexity", demo, "--text", str(path))
    assert (done.code, message in done.err) == (2, True), done.err


def test_a_checkpoint_is_scored_by_transformers(llama: Path, text: str) -> None:
    asked = ("--text", text, "--ctx", "32", "--chunks", "2", "--json")
    done = run_memfit("perplexity", str(llama), *asked)
    assert done.code == 0, done.err
    assert (done.json["tokens"], done.json["perplexity"] > 1) == (2 * 15, True)
