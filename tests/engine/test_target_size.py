"""Files of at most a size, as a user asks for them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

import memfit
from conftest import run_memfit
from memfit.engines.llamacpp.engine import LlamaSession
from memfit.units import MIB
from thorough import cases

pytestmark = pytest.mark.engine

_TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep by the fire. "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Two layers of random weights, in F16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
        synthetic, shapes = (importlib.import_module(name) for name in ("synthetic", "shapes"))
    room = tmp_path_factory.mktemp("target")
    shape = shapes.Shape(
        architecture="llama",
        mix="Q8_0",
        layers=2,
        width=256,
        feed_forward=512,
        heads=4,
        kv_heads=2,
        vocabulary=1000,
    )
    synthetic.write_model(room / "q8.gguf", shape, values="random")
    done = run_memfit("quantize", str(room / "q8.gguf"), str(room / "f16.gguf"), "--type", "F16")
    assert done.code == 0, done.err
    return room / "f16.gguf"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT * 30)
    return str(path)


@pytest.fixture
def long_text(tmp_path: Path) -> str:
    """Enough to hold some out."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{number} bottles of beer on the wall. " for number in range(1000)))
    return str(path)


def _types(path: Path) -> dict[str, str]:
    return {one.name: one.tensor_type.name for one in GGUFReader(path).tensors}


def _made(model: Path, output: Path, *arguments: str) -> Any:
    done = run_memfit("quantize", str(model), str(output), "--json", *arguments)
    assert done.code == 0, done.err
    assert done.json["file_bytes"] == output.stat().st_size
    assert done.json["peak_bytes"] <= done.json["ram_bytes"]
    return done.json


def test_a_target_is_used_and_not_exceeded(model: Path, text: str, tmp_path: Path) -> None:
    losses = []
    sizes = sorted(cases([600_000, 1_600_000], 1_200_000))
    for size in sizes:
        output = tmp_path / f"{size}.gguf"
        made = _made(model, output, "--target-size", str(size), "--text", text)
        assert 0.97 * size <= output.stat().st_size <= size
        assert _types(output) == made["tensors"]
        losses.append(made["expected_kl_divergence"])
    assert losses == sorted(set(losses), reverse=True) and losses[-1] > 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gguf"] * len(sizes) + [".txt"]


def test_what_is_lost_is_measured_over_text_that_nothing_was_chosen_by(
    model: Path, long_text: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.gguf"
    asked = ("--target-size", "1300kB", "--text", long_text)
    made = _made(model, output, *asked, "--save-recipe", str(tmp_path / "kept.json"))
    lost = made["measured_kl_divergence"]
    assert 0.3 < lost["mean"] / made["expected_kl_divergence"] < 3
    known = run_memfit("plan", str(output), "--json").json["model"]["loss"]
    assert (known["mean_kl"], known["basis"], known["reference"]) == (lost["mean"], "measured", str(model))
    assert known["tokens"] == 8 * 255


def test_a_recipe_makes_the_same_file_again(model: Path, text: str, tmp_path: Path) -> None:
    first, second, recipe = tmp_path / "first.gguf", tmp_path / "second.gguf", tmp_path / "kept.json"
    arguments = ("--target-size", "1300kB", "--text", text, "--save-recipe", str(recipe))
    _made(model, first, *arguments)
    _made(model, second, "--recipe", str(recipe))
    assert first.read_bytes() == second.read_bytes()
    kept = recipe.read_bytes()
    again = run_memfit("quantize", str(model), str(tmp_path / "third.gguf"), *arguments)
    assert (again.code, "kept.json is there already" in again.err) == (2, True)
    assert (recipe.read_bytes(), (tmp_path / "third.gguf").exists()) == (kept, False)
    types = json.loads(kept)["types"]
    assert types == {name: kind for name, kind in _types(first).items() if name in types}
    # As llama-quantize reads it: words of PATTERN=TYPE, of which the first that is found decides.
    words = [word.split("=") for word in (tmp_path / "kept.types.txt").read_text().split()]
    for name, kind in types.items():
        assert next(found for pattern, found in words if re.search(pattern, name)) == kind.lower()


def test_an_importance_matrix_may_be_given(model: Path, text: str, tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    done = run_memfit("imatrix", str(model), str(matrix), "--text", text, "--chunks", "1")
    assert done.code == 0, done.err
    asked = ("--target-size", "1300kB", "--text", text, "--imatrix", str(matrix))
    dry = run_memfit("quantize", str(model), str(tmp_path / "dry.gguf"), "--json", "--dry-run", *asked)
    assert (dry.code, (tmp_path / "dry.gguf").exists()) == (0, False)
    made = _made(model, tmp_path / "out.gguf", *asked)
    assert made["file_bytes"] == dry.json["file_bytes"]


def test_a_budget_is_filled(model: Path, text: str, tmp_path: Path) -> None:
    """What fits is found by the plan of the file that was made, at the context that was asked for."""
    whole = memfit.plan(str(model), workload=memfit.Workload(context=65536), count_parent=True).ram
    ram = whole.total_bytes - whole.parts["weights"] + 1_300_000 + 8 * MIB
    output = tmp_path / "out.gguf"
    asked = ("--for-budget", "--ctx", "65536", "--text", text)
    made = run_memfit("quantize", str(model), str(output), "--json", "--ram", str(ram), *asked)
    assert made.code == 0, made.err
    plan = memfit.plan(
        str(output),
        budget=memfit.Budget(ram=ram, disk=False),
        workload=memfit.Workload(context=65536),
        count_parent=True,
    )
    assert plan.fits
    assert plan.ram.parts["weights"] > 1_200_000


def test_a_streamed_matrix_loses_as_much(demo: str, text: str, tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    done = run_memfit("imatrix", demo, str(matrix), "--text", text, "--ctx", "64", "--chunks", "1")
    assert done.code == 0, done.err
    workload = memfit.Workload(context=256, probes=True, outputs=32, repack="off")
    whole = memfit.plan(demo, workload=workload)
    small = memfit.plan(demo, budget=memfit.Budget(ram=whole.ram.total_bytes - 30 * MIB), workload=workload)
    assert (whole.streamed_bytes, small.fits) == (0, True)
    streamed, pinned = small.config.streamed[0], "blk.7.attn_q.weight"
    assert pinned not in small.config.streamed
    found = []
    for plan in (whole, small):
        with memfit.load(plan) as session:
            assert isinstance(session, LlamaSession)
            assert streamed in session.begin_probing(range(1000, 1064), range(32, 64), matrix)
            changes = ({}, {streamed: "Q4_0"}, {pinned: "Q4_0"})
            found.append([session.probe(one) for one in (*changes, {})])
            assert session.report().within_budget
    for losses in found:
        assert losses[0] == losses[-1] == 0  # what the file has is back
        assert min(losses[1:3]) > 0
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    ("moment", "signal_number"),
    [
        ("importance: chunk", signal.SIGINT),
        ("loss: tensor 8", signal.SIGTERM),
        ("loss: kind", signal.SIGINT),
        ("is measured now", signal.SIGTERM),
    ],
)
def test_interrupted_nothing_is_half_written(
    model: Path, long_text: str, tmp_path: Path, moment: str, signal_number: int
) -> None:
    output, recipe, temporary = tmp_path / "out.gguf", tmp_path / "kept.json", tmp_path / "temporary"
    temporary.mkdir()
    asked = ("--target-size", "1300kB", "--text", long_text, "--save-recipe", str(recipe))
    with subprocess.Popen(
        [sys.executable, "-m", "memfit", "quantize", str(model), str(output), *asked],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
    ) as process:
        assert process.stderr
        assert any(moment in line for line in process.stderr)
        process.send_signal(signal_number)
        process.stderr.read()
        assert process.wait(timeout=60) == 130
    is_done = moment == "is measured now"
    kept = {"out.gguf", "kept.json", "kept.types.txt", "kept.imatrix.gguf"} if is_done else set()
    assert {path.name for path in tmp_path.iterdir()} == {"long.txt", "temporary", *kept}
    assert list(temporary.iterdir()) == []


def test_a_full_disk_takes_no_recipe_and_the_file_stays(model: Path, text: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be made here: {mounted.stderr.strip()}")
    try:
        output, recipe = tmp_path / "out.gguf", small / "kept.json"
        with contextlib.suppress(OSError):
            (small / "fill").write_bytes(bytes(65536))
        asked = ("--target-size", "1300kB", "--text", text, "--save-recipe", str(recipe))
        done = run_memfit("quantize", str(model), str(output), *asked)
        assert (done.code, "its disk has" in done.err) == (6, True), done.err
        assert (output.stat().st_size > 1_000_000, [one.name for one in small.iterdir()]) == (True, ["fill"])
        assert run_memfit("quantize", str(model), str(small / "x.gguf"), "--type", "Q8_0").code == 6
        assert [one.name for one in small.iterdir()] == ["fill"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --type, --target-size, --for-budget, --recipe; given: none"),
        (("--type", "Q4_0", "--target-size", "1MB", "--text", "{text}"), "--type and --target-size"),
        (("--target-size", "1MB"), "belongs together"),
        (("--type", "Q4_0", "--text", "{text}"), "belongs together"),
        (("--type", "Q4_0", "--save-recipe", "x.json"), "--save-recipe is for --target-size"),
        (("--type", "Q4_0", "--ctx", "512"), "--vram and --ctx are for --for-budget"),
        (("--for-budget", "--ram", "2GiB"), "belongs together"),
        (("--target-size", "big", "--text", "{text}"), "'big' is not a size"),
        (("--target-size", "100kB", "--text", "{text}"), "the smallest possible file of"),
        (("--target-size", "1MB", "--text", "{short}"), "a chunk 512"),
        (("--target-size", "1MB", "--text", "{missing}"), "No such file"),
        (("--target-size", "1MB", "--text", "{text}", "--imatrix", "{text}"), "not an importance matrix"),
        (("--recipe", "{missing}"), "No such file"),
        (("--recipe", "{text}"), "not a recipe"),
        (("--recipe", "{other}"), "is for another model"),
        (("--recipe", "{computing}"), "not a recipe"),
        (("--recipe", "{norm}"), "blk.0.attn_norm.weight cannot be Q8_0: the engine leaves it in F32"),
        (("--target-size", "1MB", "--text", "{text}", "--save-recipe", "{output}"), "names of their own"),
        (("--target-size", "1MB", "--text", "{text}", "--save-recipe", "/"), "--save-recipe / is no file"),
        (
            ("--target-size", "1MB", "--text", "{text}", "--save-recipe", "{text}", "--overwrite"),
            "is read while",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(
    model: Path, text: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Hello.")
    output = tmp_path / "out.gguf"
    names = {name: str(tmp_path / f"{name}.json") for name in ("other", "computing", "norm")}
    for name, types in (
        ("other", {"blk.9.x.weight": "Q4_K"}),
        ("computing", {"blk.0.attn_k.weight": "Q8_1"}),  # which no file has
        ("norm", {"blk.0.attn_norm.weight": "Q8_0"}),
    ):
        document = {"memfit_recipe": 1, "file_type": "Q4_K_M", "imatrix": None, "types": types}
        Path(names[name]).write_text(json.dumps(document))
    names |= {"text": text, "short": str(short), "missing": str(tmp_path / "missing"), "output": str(output)}
    done = run_memfit("quantize", str(model), str(output), *(one.format(**names) for one in arguments))
    assert (done.code, message in done.err) == (2, True), done.err
    assert not output.exists()
