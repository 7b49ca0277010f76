"""`memfit hardware`: what it prints of a machine, and the measuring of everything with a fake engine."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from memfit.cli import hardware as hardware_command
from memfit.cli.main import main
from memfit.cli.speeds import _rates_json
from memfit.engines.llamacpp import calibrate, lookup
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.hardware.disk_speed import DiskSpeed
from memfit.hardware.machine import Cpu, Disk, Gpu, Machine, Ram
from memfit.planner.speed import AttentionSpeed, WeightSpeed
from memfit.units import GIB, MIB


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a compiled engine that need not be there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "_engine_build", lambda: "build 1")
    return tmp_path / "cache" / "memfit" / "calibration.json"


_MACHINE = Machine(
    system="Linux 6.1.0",
    cpu=Cpu(
        model="Ryzen 5",
        architecture="x86_64",
        physical_cores=6,
        logical_cores=12,
        instruction_sets=("avx2",),
    ),
    ram=Ram(
        total_bytes=8 * GIB,
        available_bytes=6 * GIB,
        physical_bytes=64 * GIB,
        cgroup_limit_bytes=8 * GIB,
        swap_total_bytes=2 * GIB,
        swap_used_bytes=MIB,
        type="DDR4",
        megatransfers_per_second=3200,
    ),
    gpus=(
        Gpu(
            index=0,
            name="NVIDIA GeForce RTX 3060",
            total_bytes=12 * GIB,
            used_bytes=GIB,
            free_bytes=11 * GIB,
            others_bytes=512 * MIB,
            driver="550.54",
            cuda="12.4",
            compute_capability="8.6",
            link="PCIe 4.0 x16",
        ),
    ),
    gpu_note=None,
    disks=(
        Disk(
            mount="/mnt/\x1b[31m\udcff",
            device="/dev/sda1",
            filesystem="ext4",
            total_bytes=100 * GIB,
            free_bytes=50 * GIB,
            rotational=False,
        ),
    ),
)


def test_the_command_prints_plain_lines_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_command, "probe", lambda: _MACHINE)
    result = CliRunner().invoke(hardware_command.command, [], catch_exceptions=False)
    assert result.output.splitlines() == [
        "system  Linux 6.1.0",
        "CPU     Ryzen 5 (x86_64), cores 6, usable threads 12, avx2",
        "RAM     8.00 GiB, 6.00 GiB available, limited by a cgroup; the machine has 64.00 GiB, "
        "DDR4, 3200 MT/s",
        "swap    2.00 GiB, 1.00 MiB in use",
        "GPU 0   NVIDIA GeForce RTX 3060, 12.00 GiB, 11.00 GiB free, "
        "512.00 MiB held by other programs, driver 550.54, CUDA 12.4, compute capability 8.6, "
        "PCIe 4.0 x16",
        "disk    /mnt/?[31m?, 50.00 GiB free of 100.00 GiB, ext4 on /dev/sda1, solid state",
    ]


def test_the_command_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(_MACHINE, gpus=(), gpu_note="Driver/library version mismatch")
    monkeypatch.setattr(hardware_command, "probe", lambda: machine)
    result = CliRunner().invoke(hardware_command.command, [], catch_exceptions=False)
    assert "GPU     Driver/library version mismatch" in result.output.splitlines()


def test_json_holds_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_command, "probe", lambda: _MACHINE)
    result = CliRunner().invoke(hardware_command.command, ["--json"], catch_exceptions=False)
    found = json.loads(result.output)
    assert found["ram"]["total_bytes"] == 8_589_934_592
    assert found["gpus"][0]["link"] == "PCIe 4.0 x16"
    assert found["disks"][0]["free_bytes"] == 53_687_091_200
    assert list(found) == ["system", "cpu", "ram", "gpus", "gpu_note", "disks", "speeds"]
    assert found["speeds"] == {"devices": [], "disks": []}  # nothing was measured yet


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    hardware_command._print_table([*hardware_command._rows(_MACHINE)])
    assert "NVIDIA GeForce RTX 3060" in capsys.readouterr().out


# --- measuring everything ---


class _FakeWorker:
    """Answers "kernels". Its n-th instance is twice as fast as the one before."""

    instances: int
    asked: list[dict[str, Any]]
    busy: int  # so many answers come from a busy machine

    def __init__(self) -> None:
        type(self).instances += 1
        self.rate = 1e9 * 2 ** (type(self).instances - 1)

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert do == "kernels"
        if type(self).busy:
            type(self).busy -= 1
            return {"speeds": None}
        type(self).asked.append(values)
        weight = {"bytes_per_second": 2 * self.rate, "operations_per_second": 30 * self.rate}
        # The toy CPU repacks Q4_K only; Q8_0 has no heads of 80.
        weights = {name: None if values["repack"] and name != "Q4_K" else weight for name in values["types"]}
        attention = {
            name: None if name == "Q8_0/80" else {"generation": 4 * self.rate, "prompt": 50 * self.rate}
            for name in values["attention"]
        }
        basics = {
            "activation_bytes_per_second": 6 * self.rate,
            "node_seconds": 7e-6,
            "split_seconds": 8e-6,
            "split_bytes_per_second": 9 * self.rate,
        }
        return {
            "speeds": {
                "weights": weights,
                "attention": attention,
                "basics": basics if values["basics"] else {},
            },
            "is_quiet": True,
        }

    def __enter__(self) -> _FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[_FakeWorker]:
    _FakeWorker.instances, _FakeWorker.asked, _FakeWorker.busy = 0, [], 0
    monkeypatch.setattr(calibrate, "LlamaWorker", _FakeWorker)
    monkeypatch.setattr(calibrate, "mount_of", lambda _: "/mnt")
    monkeypatch.setattr(hardware_command, "mount_of", lambda _: "/mnt")
    monkeypatch.setattr(calibrate, "measure_reads", lambda _: _DISK)
    machine = dataclasses.replace(_MACHINE, gpus=(), gpu_note=None)
    monkeypatch.setattr(hardware_command, "probe", lambda: machine)
    return _FakeWorker


_DISK = DiskSpeed(direct=True, bytes_per_second={MIB: 1.5 * GIB, 4 * MIB: 2.0 * GIB})
_REMOTE = SimpleNamespace(engine_name="10.0.0.7:50052")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(hardware_command.command, [*arguments], catch_exceptions=False)


def _calibration() -> LlamaCalibration:
    return LlamaCalibration(cpu_model=_MACHINE.cpu.model, say=pytest.fail)


def test_every_family_of_weights_and_every_head_is_measured(engine: type[_FakeWorker]) -> None:
    found = json.loads(_run("--calibrate", "--json").stdout)
    (cpu,) = found["devices"]
    assert (cpu["name"], cpu["threads"]) == ("cpu", 6)
    families = [
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("F16", "BF16", "F32", "IQ4_NL", "IQ4_XS", "MXFP4"),
    ]
    assert list(cpu["weights"]) == list(cpu["repacked_weights"]) == families
    heads = [f"{kind}/{head}" for kind in ("F16", "Q8_0") for head in (64, 80, 96, 128, 256)]
    assert list(cpu["attention"]) == heads
    assert {(one["device"], one["threads"]) for one in engine.asked} == {(None, 6)}


def test_json_has_whole_rates_under_names_with_units(engine: type[_FakeWorker]) -> None:
    found = json.loads(_run("--calibrate", "--json").stdout)
    (cpu,) = found["devices"]
    rates = {
        "generation_bytes_per_second": 2_000_000_000,
        "prompt_operations_per_second": 30_000_000_000,
    }
    assert cpu["weights"]["Q5_K"] == cpu["repacked_weights"]["Q4_K"] == rates
    assert cpu["repacked_weights"]["Q5_K"] is None
    assert cpu["attention"]["Q8_0/80"] is None
    assert cpu["attention"]["F16/64"] == {
        "generation_operations_per_second": 4_000_000_000,
        "prompt_operations_per_second": 50_000_000_000,
    }
    assert (cpu["activation_bytes_per_second"], cpu["node_seconds"]) == (6_000_000_000, 7e-6)
    assert "split_seconds" not in cpu  # nobody enters RAM
    assert found["disks"] == [
        {
            "mount": "/mnt",
            "direct": True,
            "reads": [
                {"block_bytes": 1048576, "bytes_per_second": 1610612736},
                {"block_bytes": 4194304, "bytes_per_second": 2147483648},
            ],
        }
    ]


def test_a_remote_device_is_measured_too(engine: type[_FakeWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "find_devices", lambda _, budget, __: [_REMOTE] * len(budget.rpc))
    cpu, remote = json.loads(_run("--calibrate", "--json", "--rpc", "10.0.0.7:50052").stdout)["devices"]
    assert (remote["name"], remote["threads"]) == ("10.0.0.7:50052", None)
    assert list(remote["weights"]) == list(cpu["weights"])
    assert remote["repacked_weights"] == {}
    assert (remote["split_seconds"], remote["split_bytes_per_second"]) == (8e-6, 9_000_000_000)
    asked = [one for one in engine.asked if one["device"]]
    assert {(one["device"], one["threads"], one["repack"]) for one in asked} == {
        ("10.0.0.7:50052", None, False)
    }
    monkeypatch.setattr(calibrate.time, "time", lambda: 2e10)  # another machine may answer there by now
    assert [one.name for one in _calibration().measured().devices] == ["cpu"]


def test_plans_use_what_was_measured(engine: type[_FakeWorker]) -> None:
    """Another measurement would fail: `say` does."""
    _run("--calibrate")
    speeds = _calibration().ram_speeds(
        ["Q4_K", "MXFP4"], ["Q8_0/80", "F16/64"], repack_modes=(False, True), threads=6
    )
    assert speeds is not None
    assert speeds[True].weight("Q4_K").bytes_per_second == 2e9
    assert list(speeds[True].attention) == [f"F16/{head}" for head in (64, 80, 96, 128, 256)] + [
        f"Q8_0/{head}" for head in (64, 96, 128, 256)
    ]
    assert list(_calibration().measured().disks.values()) == [_DISK]


def test_it_measures_anew_what_is_cached(engine: type[_FakeWorker]) -> None:
    first = json.loads(_run("--calibrate", "--json").stdout)
    second = json.loads(_run("--calibrate", "--json").stdout)
    shown = json.loads(_run("--json").stdout)["speeds"]
    assert second == shown
    rates = [one["devices"][0]["weights"]["F16"]["generation_bytes_per_second"] for one in (first, second)]
    assert rates == [2_000_000_000, 4_000_000_000]


def test_a_moment_of_noise_is_waited_out(engine: type[_FakeWorker]) -> None:
    engine.busy = 3
    assert _run("--calibrate").exit_code == 0
    assert len(engine.asked) == 16 + 10 + 1 + 16  # each once: plain weights, attention, basics, repacked


def test_a_busy_machine_keeps_what_it_had(
    engine: type[_FakeWorker],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _run("--calibrate")
    before = cache.read_bytes()
    ticks = iter(range(1000))
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: next(ticks))  # a second passes with every look
    engine.busy = 1000
    with pytest.raises(SystemExit) as left:
        main(["hardware", "--calibrate"])
    assert left.value.code == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "other programs keep this machine busy, so this CPU cannot be measured now" in err
    assert 1000 - engine.busy == 46  # the first try after 45 s is the last
    assert cache.read_bytes() == before


def test_a_disk_that_cannot_be_measured_is_named(
    engine: type[_FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> DiskSpeed:
        raise OSError(28, "0.50 GiB free", str(folder))

    monkeypatch.setattr(calibrate, "measure_reads", refuse)
    result = _run("--calibrate", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["disks"] == []
    assert "reads from /mnt are not measured: " in result.stderr
    assert "0.50 GiB free" in result.stderr


def test_progress_goes_to_stderr_a_line_for_each_thing(engine: type[_FakeWorker]) -> None:
    assert _run("--calibrate").stderr.splitlines() == [
        "memfit: measuring this CPU",
        "memfit: measuring this CPU with repacked weights",
        "memfit: measuring reads from /mnt",
    ]


def test_the_table(engine: type[_FakeWorker]) -> None:
    lines = [" ".join(line.split()) for line in _run("--calibrate").stdout.splitlines()]
    assert lines[0] == "CPU with 6 threads"
    assert "Q4_K 1.86 GiB/s 30.0 Gop/s 1.86 GiB/s 30.0 Gop/s" in lines
    assert "Q5_K 1.86 GiB/s 30.0 Gop/s - -" in lines
    assert "F16/64 4.0 Gop/s 50.0 Gop/s" in lines
    assert "Q8_0/80 - -" in lines
    assert "activations 5.59 GiB/s · a node of the graph 7.0 µs" in lines
    assert lines[-1] == (
        "reads from /mnt: 1.50 GiB/s in blocks of 1.00 MiB, 2.00 GiB/s in blocks of 4.00 MiB"
    )


def test_without_calibrate_the_cached_figures_are_shown_briefly(engine: type[_FakeWorker]) -> None:
    _run("--calibrate")
    asked = len(engine.asked)
    assert [line for line in _run().output.splitlines() if line.startswith("speed")] == [
        "speed   CPU with 6 threads: generation up to 1.86 GiB/s of weights, prompts up to 30.0 Gop/s "
        "(16 types measured)",
        "speed   reads from /mnt: 1.50 GiB/s in blocks of 1.00 MiB, 2.00 GiB/s in blocks of 4.00 MiB",
    ]
    assert len(engine.asked) == asked


def test_without_an_engine_the_machine_is_shown_all_the_same(
    engine: type[_FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise calibrate.EngineMissingError("not installed")

    monkeypatch.setattr(calibrate, "_engine_build", missing)
    result = _run()
    assert result.exit_code == 0
    assert result.output.startswith("system")


def test_rpc_alone_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["hardware", "--rpc", "10.0.0.7:50052"])
    assert left.value.code == 2
    assert "--calibrate" in capsys.readouterr().err


def test_showing_loads_nothing_heavy() -> None:
    code = (
        "import sys; from memfit.cli.hardware import command\n"
        "try:\n    command(['--json'])\n"
        "finally:\n    print([n for n in ('torch', 'numpy', 'rich', 'llama_cpp') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("kind", [AttentionSpeed, WeightSpeed])
def test_json_names_every_rate_that_is_ever_measured(kind: type) -> None:
    """Some only where a batch wanted them."""
    measured = {one.name: 1.0 for one in dataclasses.fields(kind)}
    assert len(_rates_json({"Q4_0": measured})["Q4_0"]) == len(measured)
