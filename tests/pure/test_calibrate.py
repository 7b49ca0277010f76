"""The cache of this machine's constants: measured once, kept whole, doubted when it is not ours."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from memfit.engines.llamacpp import calibrate
from memfit.engines.llamacpp.calibrate import Calibration
from memfit.headers import read_model
from memfit.memory.process import ProcessMemory

_BASELINE = {
    "parent": {"anonymous_bytes": 1000, "files": {"libc": 50}},
    "decode_bytes": 7,
}
_SPEED = {"bytes_per_second": 1e9, "operations_per_second": 2e9, "node_seconds": 1e-6}


class _FakeWorker:
    """Answers "kernels"; remembers what was asked over all instances."""

    asked: list[dict[str, Any]]
    clean: bool

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert do == "kernels"
        type(self).asked.append(values)
        if not type(self).clean:
            return {"speeds": None}  # too busy to measure
        # Of these types the toy CPU repacks Q4_K only.
        unknown = [name for name in values["type_names"] if values["repack"] and name != "Q4_K"]
        return {"speeds": {name: None if name in unknown else dict(_SPEED) for name in values["type_names"]}}

    def __enter__(self) -> _FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Bench:
    """A Calibration's surroundings: a cache file, a fake engine, and what was said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.path = folder / "cache" / "calibration.json"
        self.said: list[str] = []
        self.measured = 0
        self.build = "build 1"
        _FakeWorker.asked, _FakeWorker.clean = [], True
        monkeypatch.setattr(calibrate, "WorkerProcess", _FakeWorker)
        monkeypatch.setattr(calibrate, "_engine_build", lambda: self.build)
        monkeypatch.setattr(calibrate, "_measure_baseline", self._measure)

    def _measure(self) -> dict[str, Any]:
        self.measured += 1
        return json.loads(json.dumps(_BASELINE))  # type: ignore[no-any-return]

    def calibration(self, cpu_model: str = "Toy CPU") -> Calibration:
        return Calibration(cpu_model=cpu_model, say=self.said.append, path=self.path)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Bench:
    return _Bench(monkeypatch, tmp_path)


def test_the_baseline_is_measured_once(bench: _Bench) -> None:
    first = bench.calibration().baseline(count_parent=True)
    assert first.parent == ProcessMemory(anonymous_bytes=1000, files={"libc": 50})
    assert first.decode_bytes == 7
    again = bench.calibration()
    assert again.baseline(count_parent=True) == first
    assert again.baseline(count_parent=False).parent is None
    assert bench.measured == 1
    assert len(bench.said) == 1


def test_only_missing_types_are_measured(bench: _Bench) -> None:
    first = bench.calibration().kernel_speeds(["F16", "Q8_0"], repack_modes=(False,), threads=2)
    assert first is not None and set(first[False]) == {"F16", "Q8_0"}
    speeds = bench.calibration().kernel_speeds(["Q8_0", "Q4_K"], repack_modes=(False,), threads=2)
    assert speeds is not None and set(speeds[False]) == {"Q8_0", "Q4_K"}
    assert speeds[False]["Q4_K"].bytes_per_second == 1e9
    assert [one["type_names"] for one in _FakeWorker.asked] == [["F16", "Q8_0"], ["Q4_K"]]


def test_threads_and_repacking_are_measured_apart(bench: _Bench) -> None:
    calibration = bench.calibration()
    for repack, threads in ((False, 2), (True, 2), (False, 4), (False, 2)):
        calibration.kernel_speeds(["F16"], repack_modes=(repack,), threads=threads)
    assert [(one["repack"], one["threads"]) for one in _FakeWorker.asked] == [
        (False, 2),
        (True, 2),
        (False, 4),
    ]


def test_a_type_that_is_not_repacked_has_its_plain_speed(bench: _Bench) -> None:
    speeds = bench.calibration().kernel_speeds(["F16", "Q4_K"], repack_modes=(False, True), threads=2)
    assert speeds is not None
    assert speeds[True]["F16"] == speeds[False]["F16"]


def test_a_busy_machine_is_not_measured_again_at_once(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _FakeWorker.clean = False
    assert bench.calibration().kernel_speeds(["F16"], repack_modes=(False,), threads=2) is None
    assert any("busy" in line for line in bench.said)
    _FakeWorker.clean = True
    assert bench.calibration().kernel_speeds(["F16"], repack_modes=(False,), threads=2) is None
    assert len(_FakeWorker.asked) == 1
    later = time.time() + 3600
    monkeypatch.setattr(calibrate.time, "time", lambda: later)
    assert bench.calibration().kernel_speeds(["F16"], repack_modes=(False,), threads=2) is not None


def test_another_cpu_or_build_measures_anew(bench: _Bench) -> None:
    bench.calibration().baseline(count_parent=True)
    bench.calibration("Another CPU").baseline(count_parent=True)
    bench.build = "build 2"
    bench.calibration("Another CPU").baseline(count_parent=True)
    assert bench.measured == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"key": "other", "values": {}}', "\x00\xff"]
)
def test_a_damaged_cache_is_measured_anew(bench: _Bench, text: str) -> None:
    bench.path.parent.mkdir()
    bench.path.write_text(text, encoding="latin-1")
    bench.calibration().baseline(count_parent=True)
    assert bench.measured == 1
    assert json.loads(bench.path.read_text())["values"]["baseline"] == _BASELINE


def test_no_cache_can_be_written_and_it_still_works(bench: _Bench) -> None:
    bench.path.parent.write_text("a file where the folder should be")
    assert bench.calibration().baseline(count_parent=True).decode_bytes == 7


def test_nothing_is_left_beside_the_cache(bench: _Bench) -> None:
    bench.calibration().baseline(count_parent=True)
    assert [path.name for path in bench.path.parent.iterdir()] == ["calibration.json"]


def test_the_tiny_model_is_a_gguf_file(tmp_path: Path) -> None:
    """32 x 64 twice, 32 x 32 seven times and three vectors of 32, all F32."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(calibrate._tiny_model())
    spec = read_model(path)
    assert spec.architecture == "llama"
    assert spec.parameters == 2 * 2048 + 7 * 1024 + 3 * 32
    assert spec.weights_bytes == 4 * spec.parameters == 45_440
    assert spec.file_bytes < 64 * 1024
    theirs = GGUFReader(path)
    assert {tensor.name: list(tensor.shape) for tensor in theirs.tensors} == {
        tensor.name: list(tensor.shape) for tensor in spec.tensors
    }
    assert sum(int(tensor.n_bytes) for tensor in theirs.tensors) == 45_440
