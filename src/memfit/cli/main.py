"""The command line's entry: finds the subcommand's file, and exits with the code that errors.py lists.

A subcommand is imported only when it is called, so `memfit --help` stays fast.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from memfit import __version__
from memfit.cli.json_output import JsonOutput, json_wanted, option_variable, usage_json, write_json
from memfit.cli.llamacpp_options import own_option
from memfit.cli.streams import open_streams
from memfit.errors import InterruptedByUser, MemfitError, OutputError, ReaderLeft, readable

__all__ = ["main"]

# name → one line for --help; the module under memfit.cli has the same name, with _ for -
_COMMANDS = {
    "hardware": "CPU, RAM, swap, GPUs and disks of this machine.",
    "doctor": "What works here, what is missing, and the command that mends it.",
    "inspect": "The facts in a model's header.",
    "plan": "What will lie where and how fast it will run; loads no weights.",
    "run": "Answer a prompt, or chat, inside a memory budget.",
    "bench": "Measured speed and memory against the prediction.",
    "serve": "Serve a model over HTTP to the clients of OpenAI, Ollama and others.",
    "monitor": "Live memory and speed of what runs, here or at a server's address.",
    "batch": "Answer a file of requests, many at a time; a killed run goes on.",
    "perplexity": "How well a model predicts a text, and how far it is from another.",
    "compare": "Models side by side: size, what is lost, speed.",
    "quantize": "Make a smaller file of a model.",
    "imatrix": "Collect which weights of a model matter, for quantize.",
    "pull": "Download a model from the Hugging Face hub or a URL, and verify it.",
    "models": "The models on this disk that need no path.",
    "remove": "Delete a downloaded model.",
    "rpc-server": "Serve this machine's device to other machines over RPC.",
}

# name → the command that is called: a former name, and what memfit itself starts; no help lists them
_UNLISTED = {"worker": "rpc-server", "calibration-run": "calibration-run"}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name if cmd_name in _COMMANDS else _UNLISTED.get(cmd_name)
        if name is None:
            return None
        module = importlib.import_module(f"memfit.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        _read_environment(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click would import every subcommand for its help line.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _read_environment(command: click.Command) -> None:
    """Let every option also come from MEMFIT_<OPTION>, the same for all commands."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.envvar is None:
            parameter.envvar = option_variable(parameter)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="memfit")
def cli() -> None:
    """Run large language models inside an exact memory budget."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code (errors.py lists them; 0 is done)."""
    with open_streams():
        code = _exit_code(arguments)
        try:
            sys.stdout.flush()
        except OutputError as error:
            if code == 0:  # else another error came first, or this one
                _tell(error)
                code = error.exit_code
    sys.exit(code)


def _exit_code(arguments: list[str] | None) -> int:
    output = JsonOutput()
    try:
        result: Any = cli.main(arguments, prog_name="memfit", standalone_mode=False, obj=output)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        found: Exception = InterruptedByUser()
    except (click.ClickException, MemfitError) as error:
        found = error
    except Exception as error:
        traceback.print_exc()
        found = MemfitError(f"a fault in memfit itself, told above: {type(error).__name__}: {error}")
    return _fail(found, output, sys.argv[1:] if arguments is None else arguments)


def _fail(error: Exception, output: JsonOutput, arguments: Sequence[str]) -> int:
    """A sentence for people, with --json an object for programs; the exit code."""
    if isinstance(error, click.ClickException):
        if isinstance(error, click.NoSuchOption) and (
            own := own_option(error.option_name, arguments, _known(error))
        ):
            error = click.NoSuchOption(error.option_name, f"{error.message} {own}", ctx=error.ctx)
        error.show()
        code, document = error.exit_code, usage_json(error, arguments)
    else:
        assert isinstance(error, MemfitError)
        _tell(error)
        code, document = error.exit_code, error.to_json()
    if json_wanted(output, arguments):
        with contextlib.suppress(OutputError):  # the error that came first says more
            write_json(document)
    return code


def _known(error: click.NoSuchOption) -> set[str]:
    """The options of the command that refused one."""
    parameters = error.ctx.command.params if error.ctx else []
    return {name for parameter in parameters for name in parameter.opts}


def _tell(error: MemfitError) -> None:
    if not isinstance(error, ReaderLeft):
        click.echo(f"memfit: {readable(str(error))}", err=True)
