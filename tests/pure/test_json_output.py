"""`--json`: every command has it, and whatever happens, one object is on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from fakes import make_report
from gguf_files import tiny_model

from memfit.cli import batch, inspect, main, models, run
from memfit.cli.main import cli
from memfit.engines.requests import StreamTotals
from memfit.errors import (
    DoesNotFitError,
    EngineError,
    HeaderError,
    MemfitError,
    UsageError,
    WrongValueError,
)
from memfit.processes.carried_errors import carry_error, rebuild_error
from memfit.units import GIB


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """The exit code, the one object on standard output or None where nothing is there, and the other text."""
    with pytest.raises(SystemExit) as stop:
        main.main(list(arguments))
    seen = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, json.loads(seen.out) if seen.out else None, seen.err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets `memfit models` end in an error, after it has printed an object if that is asked for."""

    def set_up(error: BaseException, *, after_printing: bool = False) -> None:
        def fail() -> list[Any]:
            if after_printing:
                models.write_json({"models": []})
            raise error

        monkeypatch.setattr(models, "local_models", fail)

    return set_up


def test_every_command_has_it() -> None:
    options = {name: {one for each in command.params for one in each.opts} for name, command in _commands()}
    assert [name for name, known in options.items() if "--json" not in known] == []


def test_every_option_has_its_variable() -> None:
    for _, command in _commands():
        for option in command.params:
            if isinstance(option, click.Option):
                name = next(one for one in option.opts if one.startswith("--")).removeprefix("--")
                assert option.envvar == f"MEMFIT_{name.upper().replace('-', '_')}"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UsageError("a bad size"), 2, (None, None, None)),
        (WrongValueError("vram", ": there is no GPU here"), 2, ("--vram", None, None)),
        (WrongValueError("max_tokens", " is 0", got=0, needed="above 0"), 2, ("--max-tokens", 0, "above 0")),
        (WrongValueError("context", " is 0"), 2, ("--ctx", None, None)),
        (UsageError("x", field="--ctx", got=-1, needed="more"), 2, ("--ctx", -1, "more")),
        (DoesNotFitError(tier="RAM", needs_bytes=2 * GIB, budget_bytes=GIB), 3, ("RAM", GIB, 2 * GIB)),
        (HeaderError("a.gguf", "tensor_count", "is -1"), 4, ("tensor_count", None, None)),
        (EngineError("it failed"), 5, (None, None, None)),
        (KeyboardInterrupt(), 130, (None, None, None)),
    ],
)
def test_an_error_is_one_object(
    error: BaseException,
    code: int,
    expected: tuple[Any, Any, Any],
    failing: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    done, document, said = _call(capsys, "models", "--json")
    assert done == code
    found = document["error"]
    assert (found["field"], found["got"], found["needed"]) == expected
    assert said.lstrip("\n") == f"memfit: {found['message']}\n"  # people are told as ever
    assert _call(capsys, "models") == (code, None, said)


def test_a_refusal_has_its_figures_beside_the_error(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(DoesNotFitError(tier="RAM", needs_bytes=3, budget_bytes=1, suggestions=("--ctx 256",)))
    code, document, _ = _call(capsys, "models", "--json")
    assert code == 3
    assert document.pop("error")["field"] == "RAM"
    assert document == {
        "fits": False,
        "needs_bytes": 3,
        "budget_bytes": 1,
        "short_bytes": 2,
        "try": ["--ctx 256"],
    }


def test_a_file_is_named_beside_what_is_wrong_in_it(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(HeaderError("a.gguf", "tensor_count", "is -1"))
    assert _call(capsys, "models", "--json")[1]["error"]["path"] == "a.gguf"


def test_a_fault_of_our_own_is_told_both_ways(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyError(False))
    code, document, said = _call(capsys, "models", "--json")
    assert code == 5
    assert document["error"]["message"].endswith("KeyError: False")
    assert "Traceback" in said and said.endswith("KeyError: False\n")


def test_an_error_after_the_object_adds_no_second_one(
    failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(EngineError("too late"), after_printing=True)
    assert _call(capsys, "models", "--json") == (5, {"models": []}, "memfit: too late\n")


@pytest.mark.parametrize(
    ("arguments", "field", "got", "needed"),
    [
        (["run", "demo", "--ctx", "many"], "--ctx", "many", "integer"),
        (["run", "demo", "--ctx=many"], "--ctx", "many", "integer"),
        (["run", "demo", "--ctx", "1", "--ctx", "x"], "--ctx", "x", "integer"),
        (["run", "demo", "--kv-type", "q5"], "--kv-type", "q5", "one of auto, f16, q8_0, q4_0"),
        (["rpc-server", "--port", "99999"], "--port", "99999", "integer between 0 and 65535"),
        (["run", "demo", "--temperature", "warm"], "--temperature", "warm", "float"),
        (["run", "demo", "--no-such"], "--no-such", None, None),
        (["run", "demo", "--ctx"], "--ctx", None, None),
        (["plan"], "MODEL", None, None),
        (["batch", "demo"], "--input", None, None),
        (["plan", "demo", "another"], None, None, None),
        (["no-such-command"], None, None, None),
        (["--no-such"], "--no-such", None, None),
        (["plan", "x.gguf", "--ctx", "-1"], "--ctx", -1, "between 1 and 2147483647"),
        (["plan", "x.gguf", "--prompt-tokens", "0"], "--prompt-tokens", 0, "between 1 and 2147483647"),
        (["run", "x.gguf", "-p", "x", "--top-p", "2"], "--top-p", 2.0, "above 0 and at most 1"),
        (["batch", "x.gguf", "--input", "i", "--output", "-"], "--json", None, None),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_wrong_usage_is_one_object(
    arguments: list[str],
    field: str | None,
    got: Any,
    needed: str | None,
    by_variable: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_variable:
        monkeypatch.setenv("MEMFIT_JSON", "1")
    else:
        arguments = [*arguments[:1], "--json", *arguments[1:]]
    code, document, said = _call(capsys, *arguments)
    assert code == 2
    found = document["error"]
    assert (found["field"], found["needed"]) == (field, needed)
    assert found["got"] == got
    assert found["message"] and said


def test_a_bad_variable_is_told_as_what_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFIT_CTX", "many")
    assert _call(capsys, "run", "demo", "--json")[1]["error"]["got"] == "many"


def test_a_prompt_that_looks_like_the_option_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("no")

    monkeypatch.setattr(run, "take_plan", fail)
    assert _call(capsys, "run", "demo", "-p", "--json") == (5, None, "memfit: no\n")


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = _call(capsys, "inspect", str(tmp_path / "none.gguf"), "--json")
    assert (code, set(document)) == (4, {"error"})


def test_a_result_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    code, document, _ = _call(capsys, "inspect", str(path), "--json")
    assert code == 0 and "error" not in document


def test_numbers_that_json_lacks_are_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    monkeypatch.setattr(inspect, "_facts_of_gguf", lambda *_, **__: {"rate": float("nan")})
    code, document, _ = _call(capsys, "inspect", str(path), "--json")
    assert code == 5 and "error" in document


@pytest.mark.parametrize(
    "error",
    [
        MemfitError("a"),
        UsageError("--ctx is 0; more", got=0, needed="more"),
        DoesNotFitError(tier="RAM", needs_bytes=2, budget_bytes=1),
        HeaderError("a.gguf", "version", "is 9"),
    ],
)
def test_an_error_from_another_process_says_the_same(error: MemfitError) -> None:
    carried = json.loads(json.dumps(carry_error(error)))
    assert rebuild_error(carried).to_json() == error.to_json()


def test_a_batch_says_what_came_of_it() -> None:
    report, sink = make_report(), SimpleNamespace(answered=7, failed=2)
    totals = StreamTotals(prompt_tokens=30, shared_tokens=20, generated_tokens=50, seconds=1.23456)
    document = json.loads(json.dumps(batch._summary(report.plan, report, totals, sink, "out.jsonl", 4)))
    assert {key: document[key] for key in ("output", "answered", "failed", "finished_before")} == {
        "output": "out.jsonl",
        "answered": 7,
        "failed": 2,
        "finished_before": 4,
    }
    assert (document["shared_tokens"], document["seconds"]) == (20, 1.235)
    assert document["usage"] == {"prompt_tokens": 30, "completion_tokens": 50}
    as_run_has_it = json.loads(json.dumps(report.to_json(prompt_tokens=30, completion_tokens=50)))
    assert {key: document[key] for key in as_run_has_it} == as_run_has_it
    nothing_left = batch._summary(report.plan, None, StreamTotals(), sink, "out.jsonl", 9)
    assert set(nothing_left) == set(document)
    assert nothing_left["measured"] is None and nothing_left["within_budget"] is None
