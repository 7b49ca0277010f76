"""`memfit monitor`: what memfit's processes hold and do, here or at an address; live, or printed once."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import UsageError, WrongValueError

if TYPE_CHECKING:
    from memfit.monitor.processes import CommandLine
    from memfit.monitor.snapshot import MachineWatch, ServerWatch, Snapshot

__all__ = ["command"]

_BETWEEN_SECONDS = 1.0  # two looks: CPU use and speeds are what has changed


@click.command("monitor")
@click.argument("address", required=False)
@click.option("--once", is_flag=True, help="Print once and end, as into a pipe.")
@click.option("--api-key", metavar="KEY", help="What the server wants, if it wants one.")
@json_option
def command(address: str | None, once: bool, api_key: str | None, as_json: bool) -> None:
    """Watch memory and speed of what runs: all of memfit here, or the server at ADDRESS.

    ADDRESS is http://127.0.0.1:8080, 127.0.0.1:8080 or :8080. On a terminal it goes on until q or Ctrl-C, and
    looks twice a second.
    """
    from memfit.monitor.servers import parse_address
    from memfit.monitor.snapshot import MachineWatch, ServerWatch

    _check_key(api_key)
    where = parse_address(address) if address is not None else None
    live = not once and not as_json and _can_show()
    if live:
        _require_textual()
    with ServerWatch(where, api_key) if where else MachineWatch(api_key, _told) as watch:
        if live:
            _show(watch)
            return
        snapshot = _look_once(watch)
    if as_json:
        write_json(snapshot.to_json())
    else:
        _print(snapshot)


def _check_key(key: str | None) -> None:
    if key is not None and (not key.isprintable() or not key or key != key.strip()):
        raise WrongValueError("api_key", " is empty, or has characters or spaces that no header keeps")


def _can_show() -> bool:
    """Textual draws on the terminal of standard error, and reads keys from that of standard input."""
    streams = (sys.__stdin__, sys.stdout, sys.__stderr__)
    return os.environ.get("TERM") not in (None, "", "dumb", "unknown") and all(
        one is not None and one.isatty() for one in streams
    )


def _require_textual() -> None:
    try:
        import textual  # noqa: F401
    except ImportError:
        raise UsageError(
            "the live view needs textual: pip install 'memfit[monitor]'; --once does without"
        ) from None


def _show(watch: MachineWatch | ServerWatch) -> None:
    from memfit.cli.monitor_view import sections
    from memfit.monitor.app import MonitorApp

    app = MonitorApp(watch.look, sections)
    app.run()
    if app.failure:
        raise app.failure


def _look_once(watch: MachineWatch | ServerWatch) -> Snapshot:
    """Raises the error of a server that was asked for by its address."""
    _require_answer(watch.look())
    time.sleep(_BETWEEN_SECONDS)
    snapshot = watch.look()
    _require_answer(snapshot)
    return snapshot


def _require_answer(snapshot: Snapshot) -> None:
    if snapshot.machine is None and (error := snapshot.servers[0].error):
        raise error


def _print(snapshot: Snapshot) -> None:
    from rich.text import Text

    from memfit.cli.monitor_view import sections
    from memfit.cli.render import console

    out = console()
    for number, (title, body) in enumerate(sections(snapshot)):
        if number:
            out.print()
        out.print(Text(title, style="bold underline"))
        out.print(body)


def _told(arguments: Sequence[str]) -> CommandLine:
    """By each command's own options, so that the value of one is not taken for the model."""
    from memfit.cli.main import cli
    from memfit.monitor.processes import CommandLine

    name = next((word for word in arguments if not word.startswith("-")), "")
    context = click.Context(cli, resilient_parsing=True)
    found = cli.get_command(context, name)
    if found is None:
        return CommandLine(command="memfit")
    inner = click.Context(found, parent=context, resilient_parsing=True)
    values, _, _ = found.make_parser(inner).parse_args(list(arguments[arguments.index(name) + 1 :]))
    # What is not given, click has a mark of its own for.
    given: dict[str, Any] = {
        key: value for key, value in values.items() if isinstance(value, (str, list, tuple))
    }
    model, host = given.get("model") or " ".join(given.get("models", ())), given.get("host", ())
    port = re.fullmatch("[0-9]{1,5}", given.get("port", "8080"), re.ASCII) if name == "serve" else None
    return CommandLine(
        command=name,
        model=model or None,
        host=host[0] if name == "serve" and host else None,
        port=int(port[0]) if port and 0 < int(port[0]) < 2**16 else None,
    )
