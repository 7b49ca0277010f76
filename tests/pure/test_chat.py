"""The chat loop against a fake session and a typist whose keys the test presses."""

from __future__ import annotations

import builtins
from collections.abc import Callable

import pytest
from fake_session import FakeSession
from fakes import make_report

from memfit.cli.chat import chat
from memfit.cli.main import main
from memfit.engines.requests import Sampling
from memfit.engines.session import Session
from memfit.errors import EngineError, MemfitError, ModelError, UsageError

_Chat = Callable[..., FakeSession]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> _Chat:
    """Chats with the given keys and answers; after the last key comes the end of input."""

    def run(
        keys: list[str | type[BaseException]],
        answers: list[str | MemfitError],
        *,
        system: str | None = None,
        finish_reason: str = "stop",
    ) -> FakeSession:
        typed = iter(keys)
        prompts: list[str] = []

        def type_line(prompt: str = "") -> str:
            prompts.append(prompt)
            key = next(typed, EOFError)
            if isinstance(key, str):
                return key
            raise key

        monkeypatch.setattr(builtins, "input", type_line)
        session = FakeSession(answers, make_report())
        session.finish_reason = finish_reason
        session.prompts = prompts  # type: ignore[attr-defined]
        chat(session, Sampling(), system)  # type: ignore[arg-type]  # it asks for a LlamaSession
        return session

    return run


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_the_fake_is_a_session() -> None:
    session: Session = FakeSession(["Hi"], make_report())  # checked by mypy
    assert "".join(session.stream("Hello")) == "Hi"
    session.close()


def test_the_history_is_sent_whole(talk: _Chat, capsys: pytest.CaptureFixture[str]) -> None:
    session = talk(["One", "  Two ", "Three"], ["1", "2", "3"])
    assert session.asked == [
        [_user("One")],
        [_user("One"), _assistant("1"), _user("Two")],
        [_user("One"), _assistant("1"), _user("Two"), _assistant("2"), _user("Three")],
    ]
    assert capsys.readouterr().out == "1\n2\n3\n"  # only the answers; all else is on stderr


def test_the_system_message_comes_first_and_stays(talk: _Chat) -> None:
    session = talk(["One", "/clear", "Two"], ["1", "2"], system="Be brief.")
    beginning = {"role": "system", "content": "Be brief."}
    assert session.asked == [[beginning, _user("One")], [beginning, _user("Two")]]


def test_clear_forgets(talk: _Chat) -> None:
    assert talk(["One", "/clear", "Two"], ["1", "2"]).asked == [[_user("One")], [_user("Two")]]


@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye", " /quit "])
def test_quit(talk: _Chat, word: str) -> None:
    assert talk([word, "One"], ["1"]).asked == []


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("/help", "/clear   forget the conversation"),
        ("/?", "goes on in the next."),
        ("/plan", "predicted  prompt 200 tok/s"),
        ("/plan", "because"),
        ("/report", "peak 220.00 MiB · predicted 217.00 MiB (-3.00 MiB off)"),
        ("/unknown", "no command /unknown; /help lists them"),
        ("/[red]", "no command /[red]; /help lists them"),
    ],
)
def test_commands_answer_on_stderr_and_do_not_ask_the_model(
    talk: _Chat, capsys: pytest.CaptureFixture[str], command: str, shown: str
) -> None:
    session = talk([command], [])
    output = capsys.readouterr()
    assert session.asked == []
    assert shown in output.err
    assert output.out == ""


def test_a_slash_within_a_sentence_is_for_the_model(talk: _Chat) -> None:
    assert talk(["/usr/bin is what?"], ["A folder"]).asked == [[_user("/usr/bin is what?")]]


def test_empty_lines_are_passed_over(talk: _Chat) -> None:
    assert talk(["", "   ", "One"], ["1"]).asked == [[_user("One")]]


def test_a_backslash_goes_on_in_the_next_line(talk: _Chat) -> None:
    session = talk(["One\\", "two \\", "three"], ["1"])
    assert session.asked == [[_user("One\ntwo \nthree")]]
    assert session.prompts == [">>> ", "... ", "... ", ">>> "]  # type: ignore[attr-defined]


def test_the_end_of_input_ends_the_chat(talk: _Chat) -> None:
    assert talk([], []).asked == []
    assert talk(["One\\"], []).asked == []  # in the middle of a message as well


def test_ctrl_c_at_the_prompt_drops_the_line_and_goes_on(
    talk: _Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    session = talk([KeyboardInterrupt, "One\\", KeyboardInterrupt, "Two"], ["2"])
    assert session.asked == [[_user("Two")]]
    assert capsys.readouterr().err.count("/quit or Ctrl-D ends") == 2


@pytest.mark.parametrize("error", [UsageError("too long; try --ctx 8192"), ModelError("no template")])
def test_an_error_leaves_the_history_as_it_was(
    talk: _Chat, capsys: pytest.CaptureFixture[str], error: MemfitError
) -> None:
    session = talk(["One", "Two", "Three"], ["1", error, "3"])
    assert session.asked[2] == [_user("One"), _assistant("1"), _user("Three")]
    output = capsys.readouterr()
    assert f"memfit: {error}\n" in output.err
    assert output.out == "1\n3\n"


def test_a_broken_engine_ends_the_chat(talk: _Chat) -> None:
    with pytest.raises(EngineError, match="died"):
        talk(["One", "Two"], [EngineError("died"), "2"])


def test_a_cut_answer_is_said_and_kept(talk: _Chat, capsys: pytest.CaptureFixture[str]) -> None:
    session = talk(["One", "Two"], ["1", "2"], finish_reason="length")
    assert session.asked[1] == [_user("One"), _assistant("1"), _user("Two")]
    assert capsys.readouterr().err.count("the answer was cut") == 2


def test_an_empty_cancelled_answer_is_not_a_turn(talk: _Chat) -> None:
    session = talk(["One", "Two"], ["", "2"], finish_reason="cancelled")
    assert _assistant("") not in session.asked[1]


def test_bytes_that_are_no_text_do_not_end_the_chat(talk: _Chat) -> None:
    class _UndecodableError(UnicodeDecodeError):
        def __init__(self) -> None:
            super().__init__("utf-8", b"\xff", 0, 1, "invalid start byte")

    assert talk([_UndecodableError, "One"], ["1"]).asked == [[_user("One")]]


class _Loaded(FakeSession):
    def __enter__(self) -> _Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("prompt", [["-p", "x"], []])
def test_a_system_message_without_a_template(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prompt: list[str]
) -> None:
    """It was dropped without a word."""
    session = _Loaded(["an answer"], make_report())
    session.has_chat_template = False
    monkeypatch.setattr("memfit.cli.run.ready_plan", lambda make_plan, err, yes: make_report().plan)
    monkeypatch.setattr("memfit.api.load", lambda plan, **options: session)
    monkeypatch.setattr("memfit.cli.run._prompt_text", lambda text, file: text)
    with pytest.raises(SystemExit) as end:
        main(["run", "demo", "--system", "Be brief.", *prompt])
    said = capsys.readouterr()
    assert end.value.code == 2, said.err
    assert "has no chat template, so it knows no --system" in said.err
    assert said.out == "" and session.asked == []
