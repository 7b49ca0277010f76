"""The cache of this machine's constants: measured once, kept whole, doubted when it is not ours."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_gpu
from gguf import GGUFReader

from memfit.engines import calibration
from memfit.engines.llamacpp import calibrate
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.headers import read_model
from memfit.memory.process_memory import Baseline, ProcessMemory
from memfit.planner.speed import AttentionSpeed, DeviceSpeed, WeightSpeed

_BASELINE = {
    "parent": {"anonymous_bytes": 1000, "files": {"libc": 50}},
    "decode_bytes": 7,
}
_WEIGHT = {"bytes_per_second": 1e9, "operations_per_second": 2e9}
_REPACKED = {"bytes_per_second": 1e9, "operations_per_second": 6e9}
_ATTENTION = {"generation": 3e9, "prompt": 4e9}
_BASICS = {
    "activation_bytes_per_second": 5e9,
    "node_seconds": 1e-6,
    "split_seconds": 0.0,
    "split_bytes_per_second": 1e12,
}


class _FakeWorker:
    """Answers "kernels"; remembers what was asked over all instances."""

    pid = 4711
    asked: list[dict[str, Any]]
    clean: bool
    quiet: bool

    def __init__(self, *, yields: bool = False) -> None:
        self._yields = yields

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        if do == "device_memory":  # the engine's view of a GPU, 250 bytes of which go while another computes
            (name,) = values["names"]
            return {"devices": {name: (1000 - 250 * len(type(self).asked), 1000)}}
        assert do == "kernels"
        # The threads of one that measures a device leave the cores to that device.
        assert self._yields or values["device"] is None or not (values["types"] or values["attention"])
        assert not (self._yields and values["device"] is None)
        type(self).asked.append(values)
        if not type(self).clean:
            return {"speeds": None, "why": "other programs keep this machine busy"}
        # Of these types the toy CPU repacks Q4_K only.
        repacks = {name: dict(_REPACKED) if name == "Q4_K" else None for name in values["types"]}
        return {
            "speeds": {
                "weights": repacks if values["repack"] else {name: dict(_WEIGHT) for name in values["types"]},
                "attention": {name: dict(_ATTENTION) for name in values["attention"]},
                "basics": dict(_BASICS) if values["basics"] else {},
            },
            "is_quiet": type(self).quiet,
        }

    def __enter__(self) -> _FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Bench:
    """A LlamaCalibration's surroundings: a cache file, a fake engine, and what was said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.path = folder / "cache" / "calibration.json"
        self.said: list[str] = []
        self.measured = 0
        self.build = "build 1"
        _FakeWorker.asked, _FakeWorker.clean, _FakeWorker.quiet = [], True, True
        monkeypatch.setattr(calibrate, "LlamaWorker", _FakeWorker)
        monkeypatch.setattr(calibrate, "_engine_build", lambda: self.build)
        monkeypatch.setattr(calibrate, "_measure_baseline", self._measure)
        for module in (calibrate, calibration):  # as the machine is when it is looked at
            monkeypatch.setattr(module, "is_quiet", lambda: _FakeWorker.quiet)

    def _measure(self) -> dict[str, Any]:
        self.measured += 1
        return json.loads(json.dumps(_BASELINE))  # type: ignore[no-any-return]

    def calibration(self, cpu_model: str = "Toy CPU") -> LlamaCalibration:
        return LlamaCalibration(cpu_model=cpu_model, say=self.said.append, path=self.path)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Bench:
    return _Bench(monkeypatch, tmp_path)


def _baseline(calibration: LlamaCalibration, *, count_parent: bool = True) -> Baseline:
    return calibration.baseline(count_parent=count_parent)


def _ram(
    bench: _Bench, types: list[str], *attention: str, modes: tuple[bool, ...] = (False,), threads: int = 2
) -> dict[bool, DeviceSpeed] | None:
    """Asked of a fresh calibration, so that the file answers."""
    return bench.calibration().ram_speeds(types, attention, repack_modes=modes, threads=threads)


def test_the_baseline_is_measured_once(bench: _Bench) -> None:
    first = _baseline(bench.calibration())
    assert first.parent == ProcessMemory(anonymous_bytes=1000, files={"libc": 50})
    assert first.decode_bytes == 7
    again = bench.calibration()
    assert _baseline(again) == first
    assert _baseline(again, count_parent=False).parent is None
    assert bench.measured == 1
    assert len(bench.said) == 1


def test_a_speed_is_what_was_measured(bench: _Bench) -> None:
    speeds = _ram(bench, ["F16"], "F16/64")
    assert speeds == {
        False: DeviceSpeed(
            weights={"F16": WeightSpeed(bytes_per_second=1e9, operations_per_second=2e9)},
            attention={"F16/64": AttentionSpeed(generation=3e9, prompt=4e9)},
            activation_bytes_per_second=5e9,
            node_seconds=1e-6,
            split_seconds=0.0,
            split_bytes_per_second=1e12,
            basis="calibrated",
        )
    }
    assert bench.said == ["measuring the speed of this CPU: F16, attention F16/64; once"]


def test_only_what_is_missing_is_measured(bench: _Bench) -> None:
    first = _ram(bench, ["F16", "Q8_0"], "F16/64")
    assert first is not None and set(first[False].weights) == {"F16", "Q8_0"}
    second = _ram(bench, ["Q8_0", "Q4_K"], "F16/64", "F16/128")
    assert second is not None and {"Q8_0", "Q4_K"} <= set(second[False].weights)
    assert {"F16/64", "F16/128"} <= set(second[False].attention)
    assert _ram(bench, ["F16", "Q8_0", "Q4_K"], "F16/128") == second
    asked = [(one["types"], one["attention"], one["basics"]) for one in _FakeWorker.asked]
    assert asked == [(["F16", "Q8_0"], ["F16/64"], True), (["Q4_K"], ["F16/128"], False)]


def test_threads_and_repacking_are_measured_apart(bench: _Bench) -> None:
    for modes, threads in (((False,), 2), ((True,), 2), ((False,), 4), ((False, True), 2)):
        found = _ram(bench, ["F16"], modes=modes, threads=threads)
        assert found is not None and set(found) == {False, *modes}
    asked = [(one["device"], one["repack"], one["threads"]) for one in _FakeWorker.asked]
    assert asked == [(None, False, 2), (None, True, 2), (None, False, 4)]


def test_repacking_changes_the_weights_that_it_can(bench: _Bench) -> None:
    speeds = _ram(bench, ["F16", "Q4_K"], "F16/64", modes=(False, True))
    assert speeds is not None
    assert speeds[True].weights["F16"] == speeds[False].weights["F16"]
    assert speeds[True].weights["Q4_K"] == WeightSpeed(**_REPACKED) != speeds[False].weights["Q4_K"]
    assert speeds[True].attention == speeds[False].attention
    assert [one["attention"] for one in _FakeWorker.asked] == [["F16/64"], []]


def test_a_device_is_measured_for_itself(bench: _Bench) -> None:
    _ram(bench, ["F16"], "F16/64")
    speed = bench.calibration().device_speed("CUDA0", ["F16"], ["F16/64"])
    assert speed is not None and speed.basis == "calibrated"
    assert bench.calibration().device_speed("CUDA0", ["F16"], ["F16/64"]) == speed
    assert [(one["device"], one["threads"]) for one in _FakeWorker.asked] == [(None, 2), ("CUDA0", None)]


def test_a_remote_device_is_measured_anew_after_a_while(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may answer there; what lies in this one stays as it is."""
    now = time.time()

    def measure() -> int:
        _FakeWorker.asked = []
        for name in ("host:1", "CUDA0"):
            assert bench.calibration().device_speed(name, ["F16"], []) is not None
        return len(_FakeWorker.asked)

    assert measure() == 2
    for later, asked in ((599, 0), (601, 1), (602, 0)):
        monkeypatch.setattr(calibrate.time, "time", lambda later=later: now + later)
        assert measure() == asked
        assert {one["device"] for one in _FakeWorker.asked} <= {"host:1"}


def test_what_a_gpus_runtime_takes_is_measured_once_per_driver(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {make_gpu(1).name: 300}
    monkeypatch.setattr(
        calibrate, "GpuBytes", lambda _: lambda pid: dict(held) if pid == _FakeWorker.pid else {}
    )
    assert bench.calibration().gpu_runtime_bytes(make_gpu(1)) == 300
    held[make_gpu(1).name] = 400
    assert bench.calibration().gpu_runtime_bytes(make_gpu(1)) == 300
    assert bench.calibration().gpu_runtime_bytes(replace(make_gpu(1), driver="2")) == 400
    assert [one["device"] for one in _FakeWorker.asked] == ["CUDA1", "CUDA1"]


def test_a_driver_that_lists_no_processes(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "GpuBytes", lambda _: lambda pid: {})
    assert bench.calibration().gpu_runtime_bytes(make_gpu(0)) == 250
    assert any("Toy GPU: its driver does not say what a process holds" in line for line in bench.said)


def test_a_busy_machine_is_not_measured_again_at_once(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(calibrate.time, "time", lambda: now)
    _FakeWorker.clean = _FakeWorker.quiet = False
    assert _ram(bench, ["F16"]) is None
    assert any("busy" in line for line in bench.said)
    _FakeWorker.clean = True
    assert _ram(bench, ["F16"]) is None
    assert bench.calibration().device_speed("CUDA0", ["F16"], []) is None
    assert len(_FakeWorker.asked) == 1
    monkeypatch.setattr(calibrate.time, "time", lambda: now + 61)
    assert _ram(bench, ["F16"]) is not None


def test_a_machine_that_is_quiet_again_is_measured_at_once(bench: _Bench) -> None:
    _FakeWorker.clean = _FakeWorker.quiet = False
    assert _ram(bench, ["F16"]) is None
    _FakeWorker.clean = _FakeWorker.quiet = True
    assert _ram(bench, ["F16"]) is not None


def test_what_was_measured_beside_other_programs_is_provisional(bench: _Bench) -> None:
    _FakeWorker.quiet = False
    for _ in range(2):
        speeds = _ram(bench, ["F16"], "F16/64", modes=(False, True))
        assert speeds is not None and {one.basis for one in speeds.values()} == {"provisional"}
    assert len(_FakeWorker.asked) == 2  # and stays so while they compute
    _FakeWorker.quiet = True
    for _ in range(2):
        speeds = _ram(bench, ["Q8_0"], modes=(False, True))
        assert speeds is not None and {one.basis for one in speeds.values()} == {"calibrated"}
    assert [one["types"] for one in _FakeWorker.asked[2:]] == [["F16", "Q8_0"]] * 2
    assert [one["attention"] for one in _FakeWorker.asked[2:]] == [["F16/64"], []]


def test_a_machine_that_is_quiet_only_when_looked_at_is_measured_twice_and_then_later(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    _FakeWorker.quiet = False
    _ram(bench, ["F16"])
    monkeypatch.setattr(calibration, "is_quiet", lambda: True)
    for later, asked in ((0, 2), (1, 2), (599, 2), (601, 3)):
        monkeypatch.setattr(calibrate.time, "time", lambda later=later: now + later)
        _ram(bench, ["F16"])
        assert len(_FakeWorker.asked) == asked


def test_one_type_that_is_provisional_makes_all_so(bench: _Bench) -> None:
    _ram(bench, ["F16"])
    _FakeWorker.quiet = False
    speeds = _ram(bench, ["Q8_0"])
    assert speeds is not None and speeds[False].basis == "provisional"


def test_provisional_speeds_are_kept_where_measuring_again_fails(bench: _Bench) -> None:
    _FakeWorker.quiet = False
    before = _ram(bench, ["F16"])
    _FakeWorker.quiet, _FakeWorker.clean = True, False
    assert _ram(bench, ["F16"]) == before


def test_speeds_in_doubt_are_measured_again_once(bench: _Bench) -> None:
    _ram(bench, ["F16"])
    bench.calibration().doubt()
    _FakeWorker.quiet = False
    assert _ram(bench, ["F16"]) is not None and len(_FakeWorker.asked) == 1  # not beside other programs
    _FakeWorker.quiet = True
    assert _ram(bench, ["F16"]) is not None and len(_FakeWorker.asked) == 2
    bench.calibration().doubt()  # the same day
    assert _ram(bench, ["F16"]) is not None and len(_FakeWorker.asked) == 2


def test_a_doubt_outlives_a_type_that_is_added_on_a_busy_machine(bench: _Bench) -> None:
    _ram(bench, ["F16"])
    bench.calibration().doubt()
    _FakeWorker.quiet = False
    _ram(bench, ["F16", "Q8_0"])
    _FakeWorker.quiet = True
    _ram(bench, ["F16", "Q8_0"])
    assert [one["types"] for one in _FakeWorker.asked] == [["F16"], ["Q8_0"], ["F16", "Q8_0"]]


def test_a_doubt_outlives_what_others_write(bench: _Bench) -> None:
    _ram(bench, ["F16"])
    other = bench.calibration()
    bench.calibration().doubt()
    other.baseline(count_parent=True)
    _ram(bench, ["F16"])
    assert len(_FakeWorker.asked) == 2


def test_a_doubt_is_heard_again_the_next_day(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for later, asked in ((0, 2), (3600, 2), (25 * 3600, 3)):
        monkeypatch.setattr(calibrate.time, "time", lambda later=later: now + later)
        _ram(bench, ["F16"])
        bench.calibration().doubt()
        monkeypatch.setattr(calibrate.time, "time", lambda later=later: now + later + 1)
        _ram(bench, ["F16"])
        assert len(_FakeWorker.asked) == asked


def test_a_busy_machine_still_knows_what_it_has_measured(bench: _Bench) -> None:
    before = _ram(bench, ["F16"])
    _FakeWorker.clean = False
    assert _ram(bench, ["Q8_0"]) is None
    assert _ram(bench, ["F16"]) == before
    assert _ram(bench, ["F16"], modes=(False, True)) is None  # repacked was never measured


def test_another_cpu_or_build_measures_anew(bench: _Bench) -> None:
    _baseline(bench.calibration())
    _baseline(bench.calibration("Another CPU"))
    bench.build = "build 2"
    _baseline(bench.calibration("Another CPU"))
    assert bench.measured == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"key": "other", "values": {}}', "\x00\xff"]
)
def test_a_damaged_cache_is_measured_anew(bench: _Bench, text: str) -> None:
    bench.path.parent.mkdir()
    bench.path.write_text(text, encoding="latin-1")
    _baseline(bench.calibration())
    assert bench.measured == 1
    assert json.loads(bench.path.read_text())["values"]["baseline"] == _BASELINE


def test_no_cache_can_be_written_and_it_still_works(bench: _Bench) -> None:
    bench.path.parent.write_text("a file where the folder should be")
    assert _baseline(bench.calibration()).decode_bytes == 7


def test_nothing_is_left_beside_the_cache(bench: _Bench) -> None:
    _baseline(bench.calibration())
    assert [path.name for path in bench.path.parent.iterdir()] == ["calibration.json"]


def test_a_full_disk_leaves_nothing_beside_the_cache(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(values: Any, file: Any) -> None:
        file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", fill)
    assert _baseline(bench.calibration()).decode_bytes == 7
    assert not list(bench.path.parent.iterdir())


def test_the_tiny_model_is_a_gguf_file(tmp_path: Path) -> None:
    """32 x 64 twice and a vector of 32; in each of 32 layers 32 x 32 seven times, two vectors; all F32."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(calibrate._tiny_model())
    spec = read_model(path)
    assert spec.architecture == "llama"
    assert spec.n_params == 2 * 2048 + 32 + 32 * (7 * 1024 + 2 * 32)
    assert spec.weights_bytes == 4 * spec.n_params == 942_208
    assert spec.file_bytes < 1 << 20
    theirs = GGUFReader(path)
    assert {tensor.name: list(tensor.shape) for tensor in theirs.tensors} == {
        tensor.name: list(tensor.shape) for tensor in spec.tensors
    }
    assert sum(int(tensor.n_bytes) for tensor in theirs.tensors) == 942_208
