"""Files made smaller by the engine's own quantizer, as a user does it; gguf is the second opinion."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from conftest import run_memfit
from memfit.hub.resolve import resolve
from memfit.memory.process_memory import process_status
from memfit.quantize.job import Quantizer, Recipe
from memfit.units import GIB, MIB
from thorough import cases

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def source(demo: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in F16."""
    path = tmp_path_factory.mktemp("quantize") / "f16.gguf"
    done = run_memfit("quantize", demo, str(path), "--type", "f16", "--json")
    assert (done.code, "what it lost stays lost" in done.err) == (0, True)
    assert done.json["file_bytes"] == path.stat().st_size
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _imatrix(folder: Path, name: str, values: Any) -> Path:
    """Of one tensor, float32 [columns]."""
    path = folder / "imatrix.gguf"
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor(f"{name}.in_sum2", (values * 512).reshape(1, -1))
    writer.add_tensor(f"{name}.counts", np.array([[512.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", cases(["q4_k_m", "Q8_0", "Q5_1", "Q2_K"], "iq4_xs"))
def test_a_dry_run_knows_the_file_to_the_byte(source: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out.gguf"
    arguments = ("quantize", str(source), str(output), "--type", kind, "--json")
    dry = run_memfit(*arguments, "--dry-run")
    assert (dry.code, output.exists()) == (0, False)
    done = run_memfit(*arguments)
    assert done.code == 0, done.err
    assert done.json["file_bytes"] == dry.json["file_bytes"] == output.stat().st_size
    assert done.json["peak_bytes"] < done.json["ram_bytes"]
    assert "stays lost" not in done.err
    reader = GGUFReader(output)
    types = {one.name: one.tensor_type.name for one in reader.tensors}
    assert types == dry.json["tensors"]
    before = {one.name: one for one in GGUFReader(source).tensors}
    errors = []
    for one in reader.tensors:
        if one.tensor_type != before[one.name].tensor_type and len(one.shape) == 2:
            wanted = dequantize(before[one.name].data, before[one.name].tensor_type)
            found = dequantize(one.data, one.tensor_type)
            errors.append(float(np.square(found - wanted).mean() / np.square(wanted).mean()))
    assert errors and max(errors) < 0.2
    assert _names(tmp_path) == ["out.gguf"]


def test_what_is_made_answers(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "q8.gguf"
    assert run_memfit("quantize", str(source), str(output), "--type", "Q8_0").code == 0
    done = run_memfit(
        "run",
        str(output),
        "-p",
        "The capital of France is",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    )
    assert (done.code, "Paris" in done.out) == (0, True)


def test_rows_that_a_type_does_not_divide_are_named(source: Path, tmp_path: Path) -> None:
    asked = ("--type", "Q4_K_M", "--dry-run", "--json")
    done = run_memfit("quantize", str(source), str(tmp_path / "x.gguf"), *asked)
    fallbacks = done.json["fallbacks"]
    rows = {one.name: int(one.shape[0]) for one in GGUFReader(source).tensors if len(one.shape) == 2}
    assert set(fallbacks) <= {name for name, columns in rows.items() if columns % 256}
    assert (len(fallbacks), set(fallbacks.values())) == (180, {"Q4_K", "Q6_K"})
    assert "blk.0.attn_k.weight Q5_0 instead of Q4_K" in done.err


def test_types_of_few_bits_ask_for_an_importance_matrix(source: Path, tmp_path: Path) -> None:
    arguments = ("quantize", str(source), str(tmp_path / "x.gguf"), "--type", "IQ2_XS")
    done = run_memfit(*arguments)
    assert (done.code, "memfit imatrix makes one" in done.err, _names(tmp_path)) == (2, True, [])
    assert run_memfit(*arguments, "--dry-run", "--json").json["needs_imatrix"] is True


def test_an_importance_matrix_is_heeded(source: Path, tmp_path: Path) -> None:
    """Columns that count get closer than those that do not."""
    name, columns = "blk.0.ffn_gate.weight", 576
    important = np.full(columns, 1e-4, np.float32)
    important[::2] = 1.0
    path = _imatrix(tmp_path, name, important)
    found = {}
    for way, more in (("plain", ()), ("weighted", ("--imatrix", str(path)))):
        output = tmp_path / f"{way}.gguf"
        done = run_memfit("quantize", str(source), str(output), "--type", "Q4_0", *more)
        assert done.code == 0, done.err
        (tensor,) = (one for one in GGUFReader(output).tensors if one.name == name)
        found[way] = dequantize(tensor.data, tensor.tensor_type)
    (tensor,) = (one for one in GGUFReader(source).tensors if one.name == name)
    wanted = dequantize(tensor.data, tensor.tensor_type)
    fields = GGUFReader(tmp_path / "weighted.gguf").fields
    noted = {key: fields[f"quantize.imatrix.{key}"].contents() for key in ("file", "dataset", "chunks_count")}
    assert noted == {"file": "imatrix.gguf", "dataset": "text", "chunks_count": 1}
    errors = {way: np.square(one - wanted).mean(0) for way, one in found.items()}
    assert errors["weighted"][::2].mean() < 0.9 * errors["plain"][::2].mean()
    assert errors["weighted"][1::2].mean() > errors["plain"][1::2].mean()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an importance matrix"),
        (b"hello there, no GGUF", "not an importance matrix"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_importance_matrix(
    source: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "imatrix.gguf"
    if content is not None:
        path.write_bytes(content)
    done = run_memfit(
        "quantize", str(source), str(tmp_path / "x.gguf"), "--type", "Q4_0", "--imatrix", str(path)
    )
    assert done.code == 2
    assert re.search(message, done.err), done.err
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(576, -1.0), "no mean squares"),
        (np.full(576, np.nan), "no mean squares"),
        (np.ones(512), "it has 512 columns of blk.0.ffn_gate.weight, not 576"),
        (np.ones(576), "says nothing of blk.0.ffn_down.weight, which would be IQ3_XXS and needs it"),
    ],
)
def test_what_an_importance_matrix_lacks_is_found_before(
    source: Path, tmp_path: Path, values: Any, message: str
) -> None:
    path = _imatrix(tmp_path, "blk.0.ffn_gate.weight", values.astype(np.float32))
    asked = ("--type", "IQ3_XXS", "--imatrix", str(path), "--dry-run")
    done = run_memfit("quantize", str(source), str(tmp_path / "x.gguf"), *asked)
    assert (done.code, message in done.err) == (2, True), done.err


def test_a_model_is_no_importance_matrix(demo: str, source: Path, tmp_path: Path) -> None:
    done = run_memfit("quantize", str(source), str(tmp_path / "x.gguf"), "--type", "Q4_0", "--imatrix", demo)
    assert (done.code, "but not an importance matrix" in done.err) == (2, True)


def test_an_unknown_type_is_answered_with_those_there_are(source: Path, tmp_path: Path) -> None:
    done = run_memfit("quantize", str(source), str(tmp_path / "x.gguf"), "--type", "Q4_2")
    assert (done.code, "Q4_K_M" in done.err) == (2, True)


def test_too_little_ram_says_how_much_it_takes(source: Path, tmp_path: Path) -> None:
    arguments = ("quantize", str(source), str(tmp_path / "x.gguf"), "--type", "Q8_0", "--json")
    done = run_memfit(*arguments, "--ram", "64MiB")
    assert (done.code, _names(tmp_path)) == (3, [])
    enough = run_memfit(*arguments, "--ram", str(done.json["needs_bytes"] + MIB))
    assert enough.code == 0
    assert enough.json["peak_bytes"] <= enough.json["ram_bytes"]


def test_weights_that_are_no_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(source, broken)
    (tensor,) = (one for one in GGUFReader(source).tensors if one.name == "blk.3.ffn_up.weight")
    assert tensor.tensor_type == GGMLQuantizationType.F16
    with broken.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(np.full(16, np.nan, np.float16).tobytes())
    output = tmp_path / "x.gguf"
    done = run_memfit("quantize", str(broken), str(output), "--type", "Q4_K_M")
    assert done.code == 5
    assert "blk.3.ffn_up.weight" in done.err or "invalid" in done.err
    assert _names(tmp_path) == ["broken.gguf"]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.05, 0.6, 1.2])
def test_interrupted_it_leaves_nothing(
    source: Path, tmp_path: Path, after: float, signal_number: int
) -> None:
    output = tmp_path / "x.gguf"
    process = subprocess.Popen(
        [sys.executable, "-m", "memfit", "quantize", str(source), str(output), "--type", "IQ3_S"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    time.sleep(after)
    process.send_signal(signal_number)
    code = process.wait(timeout=30)
    assert code != 0
    # Before Python has begun, SIGTERM ends it, and nothing was written yet.
    assert _names(tmp_path) == []


def test_a_write_that_fails_midway_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """By a limit on files, which the free space does not tell of; a disk that others fill fails likewise."""
    limit = f"ulimit -f {100 * MIB // 1024}; exec "
    command = [sys.executable, "-m", "memfit", "quantize", str(source), str(tmp_path / "x.gguf")]
    done = subprocess.run(
        ["bash", "-c", limit + shlex.join([*command, "--type", "Q8_0"])], capture_output=True, text=True
    )
    assert (done.returncode, "the disk is full, or takes no file of this size" in done.stderr) == (6, True)
    assert _names(tmp_path) == []


def test_a_split_model_becomes_one_file(demo: str, tmp_path: Path, benchmarks: None) -> None:
    rewrite = importlib.import_module("rewrite").rewrite
    files = rewrite(demo, tmp_path / "model.gguf", split_bytes=40_000_000)
    assert len(files) == 3
    made = []
    for number, named in enumerate((demo, str(files[1]))):
        output = tmp_path / f"{number}.gguf"
        asked = ("quantize", named, str(output), "--type", "Q8_0", "--json")
        dry = run_memfit(*asked, "--dry-run").json
        done = run_memfit(*asked)
        assert done.json["file_bytes"] == dry["file_bytes"] == output.stat().st_size, done.err
        made.append({one.name: (one.tensor_type, one.data.tobytes()) for one in GGUFReader(output).tensors})
    assert made[0] == made[1]


def test_experts_are_quantized(tmp_path: Path, benchmarks: None) -> None:
    synthetic, shapes = (importlib.import_module(name) for name in ("synthetic", "shapes"))
    source, output = tmp_path / "moe.gguf", tmp_path / "q4.gguf"
    synthetic.write_model(source, replace(shapes.MOE, layers=2), values="random")
    done = run_memfit("quantize", str(source), str(output), "--type", "Q4_K_M", "--json")
    assert done.code == 0, done.err
    experts = {one.name: one for one in GGUFReader(output).tensors if "_exps" in one.name}
    assert {one.tensor_type.name for one in experts.values()} <= {"Q4_K", "Q6_K"}
    assert len(experts) == 6
    for one in GGUFReader(source).tensors:
        if one.name in experts:
            before = dequantize(one.data, one.tensor_type)
            after = dequantize(experts[one.name].data, experts[one.name].tensor_type)
            assert np.square(after - before).mean() < 0.02 * np.square(before).mean()


def test_progress_is_told_by_bytes_of_the_source(source: Path, tmp_path: Path) -> None:
    spec, heard = resolve(str(source)).read_spec(), []
    with Quantizer() as quantizer:
        looked = quantizer.look(spec, Recipe(file_type="Q8_0"), threads=2)
        quantizer.write(
            looked,
            tmp_path / "x.gguf",
            ram_bytes=process_status().resident_bytes + GIB,  # this process counts, with all tests before
            on_progress=lambda done, whole: heard.append((done, whole)),
        )
    assert heard == sorted(set(heard))
    assert len(heard) == len(spec.tensors)
    assert heard[-1] == (spec.weights_bytes, spec.weights_bytes)
