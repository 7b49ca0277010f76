"""Each error's exit code is part of docs/contract.md, and its text must help."""

from __future__ import annotations

import pytest

from memfit import errors
from memfit.cli.main import cli, main
from memfit.errors import DoesNotFitError, HeaderError, InterruptedByUser, MemfitError
from memfit.units import GIB

_EXIT_CODES = {
    "MemfitError": 5,
    "UsageError": 2,
    "WrongValueError": 2,
    "ContextExceededError": 2,
    "DoesNotFitError": 3,
    "ModelError": 4,
    "ModelNotFoundError": 4,
    "HeaderError": 4,
    "EngineError": 5,
    "EngineMissingError": 5,
    "WorkerDiedError": 5,
    "OutputError": 6,
    "ReaderLeft": 141,
    "InterruptedByUser": 130,
}


_CLASSES = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]


def test_every_error_has_its_contracted_exit_code() -> None:
    assert {name: getattr(errors, name).exit_code for name in _CLASSES} == _EXIT_CODES


def test_all_errors_share_one_root() -> None:
    assert all(issubclass(getattr(errors, name), MemfitError) for name in _CLASSES)


def test_does_not_fit_says_needed_budget_short_and_what_to_try() -> None:
    error = DoesNotFitError(
        tier="ram",
        needs_bytes=7 * GIB + GIB // 2,
        budget_bytes=6 * GIB,
        suggestions=("--ctx 4096", "--kv-type q8_0"),
    )
    assert str(error) == (
        "does not fit in ram: needs 7.50 GiB, budget 6.00 GiB, short 1.50 GiB; "
        "try --ctx 4096 or --kv-type q8_0"
    )
    assert error.short_bytes == 1_610_612_736


def test_does_not_fit_without_suggestions_ends_after_the_numbers() -> None:
    error = DoesNotFitError(tier="vram", needs_bytes=2 * GIB, budget_bytes=GIB)
    assert str(error).endswith("short 1.00 GiB")


def test_header_error_names_file_and_field() -> None:
    error = HeaderError("a.gguf", "tensor_count", "is -1")
    assert str(error) == "cannot read a.gguf: tensor_count: is -1"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.UsageError("bad size"), 2, "memfit: bad size\n"),
        (DoesNotFitError(tier="ram", needs_bytes=2, budget_bytes=1), 3, "memfit: does not fit"),
        (HeaderError("x", "y", "z"), 4, "memfit: cannot read x: y: z\n"),
        (errors.WorkerDiedError("killed"), 5, "memfit: killed\n"),
        (InterruptedByUser(), 130, "memfit: interrupted\n"),
        (KeyboardInterrupt(), 130, "memfit: interrupted\n"),
    ],
)
def test_the_command_line_turns_errors_into_exit_codes(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(text)
