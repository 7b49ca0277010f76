"""The chat of `memfit run` without a prompt: a history, a few commands, Ctrl-C ends an answer only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from memfit.cli.render import console, print_plan, print_report, print_why, write
from memfit.engines.requests import Sampling
from memfit.engines.session import Session
from memfit.errors import ModelError, UsageError, readable

__all__ = ["chat"]

_HELP = """\
/help    this list
/plan    the memory map, and why each choice was made
/report  predicted against measured so far
/clear   forget the conversation
/quit    end (or Ctrl-D)
Ctrl-C ends an answer. A line that ends in \\ goes on in the next."""


def chat(
    session: Session, sampling: Sampling, system: str | None, schema: Mapping[str, Any] | None = None
) -> None:
    """Read lines from the terminal and answer them until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history and editing
    err = console(stderr=True)
    err.print("Chat; /help lists the commands, /quit ends.")
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    while (line := _read_line()) is not None:
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit" | "/bye":
                return
            case "/help" | "/?":
                err.print(_HELP, markup=False)
            case "/plan":
                print_plan(session.report().plan, err)
                print_why(session.report().plan, err)
            case "/report":
                print_report(session.report(), err)
            case "/clear":
                messages = list(beginning)
            case command if command.startswith("/") and " " not in command:
                err.print(f"no command {command}; /help lists them", markup=False)
            case text:
                asked = [*messages, {"role": "user", "content": text}]
                messages = _answer(session, sampling, asked, schema)


def _answer(
    session: Session, sampling: Sampling, messages: list[dict[str, str]], schema: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """The conversation after one more answer; without the last message where that failed."""
    try:
        completion = session.chat(messages, sampling, write, schema=schema)
    except (UsageError, ModelError) as error:
        sys.stderr.write(f"memfit: {readable(str(error))}\n")
        return messages[:-1]
    write("\n")
    if not completion.text:
        return messages[:-1]
    if completion.finish_reason == "length":
        sys.stderr.write("memfit: the answer was cut; /clear starts afresh, --ctx gives more room\n")
    return [*messages, {"role": "assistant", "content": completion.text}]


def _read_line() -> str | None:
    """One message, or None at the end of input."""
    lines: list[str] = []
    prompt = ">>> "
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            sys.stderr.write(f"memfit: that is not UTF-8: {error.reason}\n")
            return ""
        except KeyboardInterrupt:
            sys.stderr.write("\n/quit or Ctrl-D ends\n")
            return ""
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
        prompt = "... "
