"""The shared options: texts into a Budget and a Workload, and refusals that exit with 2 and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fakes import make_gpu, make_machine
from gguf_files import tiny_model

from memfit.cli.main import main
from memfit.cli.options import budget_options, take_budget, take_workload, workload_options
from memfit.engines.llamacpp import planning
from memfit.errors import UsageError
from memfit.hardware.profile import profile_names
from memfit.planner.request import Budget, Workload


def _budget(*arguments: str) -> Budget:
    taken: list[Budget] = []

    @click.command
    @budget_options
    def command(**options: Any) -> None:
        taken.append(take_budget(options))
        assert options == {}  # all of them are taken

    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return taken[0]


def _workload(*arguments: str) -> Workload:
    taken: list[Workload] = []

    @click.command
    @workload_options
    def command(**options: Any) -> None:
        taken.append(take_workload(options))
        assert options == {}

    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return taken[0]


# --- a budget ---


def test_nothing_asked_is_nothing_said() -> None:
    assert _budget() == Budget()
    assert _workload() == Workload()


@pytest.mark.parametrize(
    ("texts", "vram"),
    [
        (["8GiB"], "8GiB"),
        (["90%"], "90%"),
        (["0=8GiB"], {0: "8GiB"}),
        (["0=8GiB", "3=50%"], {0: "8GiB", 3: "50%"}),
        (["12=1024"], {12: "1024"}),
    ],
)
def test_vram(texts: list[str], vram: object) -> None:
    assert _budget(*(part for text in texts for part in ("--vram", text))).vram == vram


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["8GiB", "4GiB"], "--vram 8GiB is for every GPU; give it alone, or each as N=SIZE"),
        (["0=8GiB", "4GiB"], "--vram 4GiB is for every GPU; give it alone, or each as N=SIZE"),
        (
            ["0=8GiB", "0=4GiB"],
            "--vram 0=4GiB: name each GPU once, by number or name: 0=4GiB",
        ),
        (
            ["0=8GiB", "00=4GiB"],
            "--vram 00=4GiB: name each GPU once, by number or name: 0=4GiB",
        ),
        (
            ["0=8GiB", "gpu0=4GiB"],
            "--vram gpu0=4GiB: name each GPU once, by number or name: 0=4GiB",
        ),
        (["-1=8GiB"], "--vram -1=8GiB: name each GPU once, by number or name: 0=8GiB"),
        (["=8GiB"], "--vram =8GiB: name each GPU once, by number or name: 0=8GiB"),
        (["0="], "--vram 0=: name each GPU once, by number or name: 0=SIZE"),
        (["x="], "--vram x=: name each GPU once, by number or name: 0=SIZE"),
        (["²=1GiB"], "--vram ²=1GiB: name each GPU once, by number or name: 0=1GiB"),
    ],
)
def test_vram_that_makes_no_sense(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _budget(*(part for text in texts for part in ("--vram", text)))
    assert str(caught.value) == message


def test_rpc() -> None:
    budget = _budget("--rpc", "host:1", "--rpc", "192.168.1.7:50052=6GiB", "--rpc", "[::1]:2=50%")
    assert budget.rpc == {"host:1": None, "192.168.1.7:50052": "6GiB", "[::1]:2": "50%"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["host:1", "host:1"], "--rpc host:1: give each HOST:PORT once, alone or with =SIZE"),
        (["host:1=1GiB", "host:1=2GiB"], "--rpc host:1=2GiB: give each HOST:PORT once, alone or with =SIZE"),
        (["host:1="], "--rpc host:1=: give each HOST:PORT once, alone or with =SIZE"),
        (["host"], "--rpc is 'host'; it must be HOST:PORT or HOST:PORT=SIZE"),
        (["=1GiB"], "--rpc is ''; it must be HOST:PORT or HOST:PORT=SIZE"),
        (["host:99999=1GiB"], "--rpc is 'host:99999'; it must be HOST:PORT or HOST:PORT=SIZE"),
    ],
)
def test_rpc_that_makes_no_sense(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _budget(*(part for text in texts for part in ("--rpc", text)))
    assert str(caught.value) == message


def test_ram_and_disk() -> None:
    assert _budget("--ram", "3GiB", "--no-disk") == Budget(ram="3GiB", disk=False)


def test_a_workload() -> None:
    every = "--ctx 1000 --parallel 2 --kv-type q8_0 --threads 3 --repack on --prompt-tokens 4 --gen-tokens 5"
    assert _workload(*every.split(), "--depth", "0") == Workload(
        context=1000,
        parallel=2,
        kv_type="q8_0",
        threads=3,
        repack="on",
        prompt_tokens=4,
        generated_tokens=5,
        depth=0,
    )


# --- what people see ---


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_model().write(tmp_path / "tiny.gguf"))


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    seen = capsys.readouterr()
    assert (stop.value.code, seen.out) == (2, "")
    return seen.err


def test_vram_without_a_gpu(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe", make_machine)
    assert _refused(capsys, "plan", model, "--vram", "8GiB") == (
        "memfit: --vram: there is no GPU here (none was found); memfit hardware shows what "
        "there is, --rpc takes a GPU of another machine\n"
    )
    assert _refused(capsys, "plan", model, "--vram", "0=8GiB").startswith("memfit: --vram: there is no GPU")


def test_vram_on_a_profile_without_a_gpu(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(capsys, "plan", model, "--machine", "pi-8gb", "--vram", "1GiB")
    assert said.startswith("memfit: --vram: there is no GPU here")


def test_vram_of_a_gpu_that_is_not_there(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe", lambda: make_machine(gpus=(make_gpu(0), make_gpu(1))))
    said = "memfit: --vram 5: there is no GPU 5; memfit hardware shows which there are\n"
    assert _refused(capsys, "plan", model, "--vram", "5=1GiB") == said
    assert _refused(capsys, "plan", model, "--vram", "0=1GiB", "--vram", "5=1GiB") == said
    on_a_profile = _refused(capsys, "plan", model, "--machine", "rtx3060-12gb", "--vram", "1=1GiB")
    assert on_a_profile.startswith("memfit: --vram 1: there is no GPU 1;")


def test_a_remote_device_is_none_of_a_profiles(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(capsys, "plan", model, "--machine", "rtx3060-12gb", "--rpc", "host:1")
    assert said == (
        "memfit: --rpc names a device of this machine, --machine another machine; use one of them\n"
    )


def test_an_unknown_machine_names_those_there_are(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(capsys, "plan", model, "--machine", "rtx9999")
    assert said.startswith('memfit: no machine profile "rtx9999"')
    assert all(name in said for name in profile_names())


@pytest.mark.parametrize("command", ["plan", "run", "bench"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rpc", "nowhere"], "--rpc is 'nowhere'"),
        (
            ["--rpc", "host:1", "--rpc", "host:1"],
            "--rpc host:1: give each HOST:PORT once, alone or with =SIZE",
        ),
        (["--rpc", "host:1="], "--rpc host:1=: give each HOST:PORT once, alone or with =SIZE"),
        (["--vram", "0="], "--vram 0=: name each GPU once, by number or name: 0=SIZE"),
        (["--vram", "1GiB", "--vram", "2GiB"], "--vram 1GiB is for every GPU"),
        (["--depth", "-1"], "--depth is -1"),
    ],
)
def test_refusals_exit_with_2(
    command: str, arguments: list[str], words: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in _refused(capsys, command, model, *arguments)


def test_a_nonsense_size_for_a_gpu_exits_with_2(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe", lambda: make_machine(gpus=(make_gpu(),)))
    for text, words in (("lots", "--vram: 'lots' is not a size"), ("0=101%", "--vram 0: '101%' is more")):
        assert words in _refused(capsys, "plan", model, "--vram", text)


def test_commands_that_no_help_lists(capsys: pytest.CaptureFixture[str]) -> None:
    helps = {}
    for arguments in ((), ("rpc-server",), ("worker",), ("calibration-run",)):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        assert stop.value.code == 0
        helps[arguments] = capsys.readouterr().out
    listed = {line.split()[0] for line in helps[()].partition("Commands:")[2].splitlines() if line.strip()}
    assert "rpc-server" in listed and not {"worker", "calibration-run"} & listed
    assert helps["worker",] == helps["rpc-server",].replace("memfit rpc-server", "memfit worker")


def test_a_calibration_run_by_hand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["calibration-run", "llamacpp", "tiny.gguf", "by-hand"])
    assert stop.value.code == 2
    assert "started by memfit itself" in capsys.readouterr().err
