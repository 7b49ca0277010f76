"""Every option of every command with values that make no sense: exit code 2 and the option's name, at once.

What plans, loads or lends is replaced, so that whatever comes as far as that has accepted its options.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from gguf_files import tiny_model

from memfit import api
from memfit.batch import job_plan
from memfit.cli.main import cli, main
from memfit.engines.llamacpp.rpc_supervisor import RpcSupervisor
from memfit.engines.protocol import PlanOptions
from memfit.errors import EngineError
from memfit.planner.request import Budget, Workload

_NUMBERS = ("-1", "abc", "", " ", "nan", "inf", "-inf", "1e400", "0x10", "é☃", "--", "\udcff", "-" + "1" * 30)
_SILLY = (
    *_NUMBERS,
    "0",
    "1" + "0" * 30,
    "1" * 5000,
    "1.5",
    "x" * 5000,
    "/dev/null",
    "/",
    "%",
    "101%",
    "1 XiB",
)
# Without what is silly, each of them comes as far as planning, or lending.
_COMMANDS = {
    "plan": ("tiny.gguf",),
    "run": ("tiny.gguf", "-p", "x"),
    "bench": ("tiny.gguf",),
    "batch": ("tiny.gguf", "--input", "in.jsonl", "--output", "out.jsonl"),
    "rpc-server": ("--port", "0"),  # the default port may be another test's
}
_SIZES = ("--ram", "--vram", "--memory")
_LAYERS = "--gpu-layers"  # a number, or a word
_TEXTS = ("--override-tensor", "--prompt", "--system", "--stop", "--host", "--machine", "--rpc")
_FILES = ("--file", "--html", "--input", "--output", "--plan", "--png", "--schema")


class _ReachedError(EngineError):
    """The options were accepted."""


@pytest.fixture(autouse=True)
def _accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> Any:
        raise _ReachedError("reached")

    def plan(*_: object, budget: Budget, workload: Workload, **__: object) -> Any:
        reached()

    def plan_job(*asked: object, workload: Workload, **_: object) -> Any:
        assert isinstance(asked[-1], PlanOptions)
        reached()

    monkeypatch.chdir(tmp_path)
    tiny_model().write(tmp_path / "tiny.gguf")
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    monkeypatch.setattr(api, "plan", plan)
    monkeypatch.setattr(job_plan, "plan_job", plan_job)
    monkeypatch.setattr(RpcSupervisor, "start", reached)


def _options() -> Iterator[tuple[str, str, click.ParamType]]:
    context = click.Context(cli)
    for name in _COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag:
                yield name, next(one for one in option.opts if one.startswith("--")), option.type


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    seen = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    assert "Traceback" not in seen.err
    error: dict[str, Any] = json.loads(seen.out)["error"]
    return stop.value.code, error, seen.err


@pytest.mark.parametrize("command", _COMMANDS)
def test_sensible_options_are_accepted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(capsys, command, *_COMMANDS[command])[:2] == (
        5,
        {"message": "reached", "field": None, "got": None, "needed": None},
    )


def test_each_kind_of_option_is_known() -> None:
    """So that none is left out below."""
    kinds = (click.types.IntParamType, click.types.FloatParamType, click.Choice)
    strange = {name for _, name, kind in _options() if not isinstance(kind, kinds)}
    assert strange <= {_LAYERS, *_SIZES, *_TEXTS, *_FILES}


@pytest.mark.parametrize(("command", "option", "kind"), list(_options()))
def test_no_value_ends_in_a_traceback(
    command: str, option: str, kind: click.ParamType, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in _SILLY:
        code, error, said = _call(capsys, command, *_COMMANDS[command], f"{option}={value}")
        if code == 5:
            assert error["message"] == "reached", value
        else:
            assert code == 2, value
            if option not in (*_FILES, *_TEXTS):
                assert option in said.splitlines()[-1], value
                assert str(error["field"]).startswith(option), value


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, name)
        for command, name, kind in _options()
        if name in (_LAYERS, *_SIZES) or kind.name != "text"
    ],
)
def test_what_is_no_number_is_refused(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in _NUMBERS:
        code, error, said = _call(capsys, command, *_COMMANDS[command], f"{option}={value}")
        assert code == 2, value
        assert option in said.splitlines()[-1]
        assert error["got"] is not None


@pytest.mark.parametrize("size", ["-1", "0", "lots", "", "101%", "0%", "nan", "1" + "0" * 30, "5 XiB"])
@pytest.mark.parametrize("option", ["--ram=", "--vram=", "--vram=1=", "--rpc=host:1="])
def test_a_size_that_is_none(option: str, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is looked for."""
    code, error, _ = _call(capsys, "run", "none.gguf", "-p", "x", option + size)
    assert code == 2
    assert error["field"].startswith(option.split("=")[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--engine", "llamacpp"], ("--engine llamacpp", "--engine transformers")),
        (["--double-quant"], ("--double-quant", "--load-in")),
        (["--html", "plan.html"], ("--html", "--load-in")),
    ],
)
def test_options_that_precisions_leave_out_are_refused(
    options: list[str], named: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code, error, _ = _call(capsys, "plan", ".", *options)
    assert code == 2 and all(name in error["message"] for name in named)


@pytest.mark.parametrize(
    "model", ["", ".", "/", "x" * 5000, "\udcff", "é☃.gguf", "-", "hf:", "https://", "https://[::1/x.gguf"]
)
@pytest.mark.parametrize("command", ["inspect", "pull", "remove"])
def test_a_model_that_is_none(command: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error, _ = _call(capsys, command, model)
    assert code in (2, 4) and error["message"]
