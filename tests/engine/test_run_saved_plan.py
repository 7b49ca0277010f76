"""Saved plans on the real engine: planned, saved, run; an edited file is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import memfit
from conftest import rpc_server, run_memfit
from memfit.saved_plan import read_plan
from memfit.units import MIB

pytestmark = pytest.mark.engine

_PROMPT = ("-p", "The capital of France is", "--raw", "--temperature", "0", "--max-tokens", "4")
_BUDGET = ("--ram", "400MiB", "--ctx", "1024")


@pytest.fixture
def model(demo: str, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(demo).read_bytes())
    yield copy
    copy.unlink()


def _save(folder: Path, *arguments: str) -> Path:
    path = folder / "plan.json"
    planned = run_memfit("plan", *arguments, "--json")
    assert planned.code == 0, planned.err
    path.write_text(planned.out)
    return path


def test_a_saved_plan_runs_as_it_was_planned(tmp_path: Path) -> None:
    path = _save(tmp_path, "demo", *_BUDGET)
    saved = json.loads(path.read_text())
    run = run_memfit("run", "--plan", str(path), *_PROMPT, "--json")
    assert run.code == 0, run.err
    assert run.json["plan"] == saved
    assert run.json["text"].strip().startswith("Paris")
    assert run.json["within_budget"] is True
    (tier,) = run.json["measured"]["tiers"]
    assert tier["predicted_bytes"] == saved["tiers"][0]["total_bytes"]
    assert abs(tier["error_bytes"]) <= 16 * MIB


def test_bench_measures_the_plans_own_workload(tmp_path: Path) -> None:
    path = _save(tmp_path, "demo", *_BUDGET, "--prompt-tokens", "40", "--gen-tokens", "3", "--depth", "5")
    bench = run_memfit("bench", "demo", "--plan", str(path), "--json")
    assert bench.code == 0, bench.err
    assert bench.json["usage"] == {"prompt_tokens": 40, "completion_tokens": 3}


def test_a_plan_made_in_python_loads_in_python(demo: str, tmp_path: Path) -> None:
    plan = memfit.plan(demo, budget=memfit.Budget(ram="400MiB"), workload=memfit.Workload(context=1024))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    again = read_plan(path)
    assert again == plan
    with memfit.load(again) as session:
        greedy = memfit.Sampling(max_tokens=4, temperature=0)
        assert "Paris" in session.generate("The capital of France is", greedy).text
        assert session.report().within_budget
    refused = run_memfit("run", "--plan", str(path), *_PROMPT)
    assert (refused.code, refused.out) == (2, "")
    assert "made in Python" in refused.err


def test_an_edited_file_is_refused(model: Path, tmp_path: Path) -> None:
    path = _save(tmp_path, str(model), *_BUDGET)
    size = model.stat().st_size
    header, tensors, end = model.read_bytes().index(b"general.name") + 24, size - 1, size
    for position in (header, tensors, end):
        with model.open("r+b") as file:
            file.seek(position)
            old = file.read(1)
            file.seek(position)
            file.write(bytes([old[0] ^ 1]) if old else b"\0")
            file.flush()
            run = run_memfit("run", "--plan", str(path), *_PROMPT)
            file.seek(position)
            file.write(old)
            file.truncate(size)
        assert (run.code, run.out) == (2, ""), run.err
        assert "the model's file from" in run.err
        assert f"memfit plan {model} --json" in run.err


def test_another_model_of_the_same_name_is_refused(gemma: str, tmp_path: Path) -> None:
    run = run_memfit("run", gemma, "--plan", str(_save(tmp_path, "demo", *_BUDGET)), *_PROMPT)
    assert run.code == 2
    assert "the model's file from" in run.err


def test_a_missing_model_is_4_and_a_profiles_plan_is_2(model: Path, tmp_path: Path) -> None:
    path = _save(tmp_path, str(model), *_BUDGET, "--machine", "laptop-16gb")
    run = run_memfit("run", "--plan", str(path), *_PROMPT)
    assert run.code == 2 and "laptop-16gb" in run.err
    path = _save(tmp_path, str(model), *_BUDGET)
    model.rename(tmp_path / "moved.gguf")
    assert run_memfit("run", "--plan", str(path), *_PROMPT).code == 4
    (tmp_path / "moved.gguf").rename(model)


def test_a_plan_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(run_memfit("plan", "demo", "--ram", "100MiB", "--json").out)
    run = run_memfit("run", "--plan", str(path), *_PROMPT)
    assert (run.code, run.out) == (3, "")
    assert "--ram" in run.err


@pytest.fixture
def endpoint() -> Iterator[str]:
    with rpc_server("300MiB") as worker:
        yield worker.endpoint


def test_a_plan_with_a_remote_device(endpoint: str, tmp_path: Path) -> None:
    """RAM and device hold a part of the model each."""
    path = _save(tmp_path, "demo", *_BUDGET, "--rpc", f"{endpoint}=70MiB", "--ram", "190MiB")
    saved = json.loads(path.read_text())
    assert saved["devices"] == [endpoint]
    assert saved["fingerprint"]["remote_devices"] == [{"name": endpoint, "total_bytes": 300 * MIB}]
    run = run_memfit("run", "--plan", str(path), *_PROMPT, "--json")
    assert run.code == 0, run.err
    assert run.json["text"].strip().startswith("Paris")
