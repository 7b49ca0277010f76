"""The one JSON object that a command prints under --json: its result, or why there is none.

docs/json.md has the objects. What is in a result, each command knows; here is only how it is printed, and
what an error that the command line found itself says of the option.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from memfit.errors import MemfitError, readable

__all__ = ["JsonOutput", "json_option", "json_wanted", "option_variable", "usage_json", "write_json"]


@dataclass
class JsonOutput:
    """What is known of this command's standard output; click's `obj`."""

    wanted: bool | None = None  # None: the command line was not understood so far
    written: bool = False  # an object is there, and must stay the only one


def _note(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    context.ensure_object(JsonOutput).wanted = value
    return value


# `--json`, the same for every command.
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,  # before the options that may be refused
    callback=_note,
    help="One JSON object on stdout, also for an error; sizes in bytes.",
)


def write_json(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print a command's object, or an error's."""
    text = json.dumps(document, indent=indent, allow_nan=False)
    if context := click.get_current_context(silent=True):
        context.ensure_object(JsonOutput).written = True
    click.echo(text)


def json_wanted(output: JsonOutput, arguments: Sequence[str]) -> bool:
    """Whether an error is to be an object too; by the bare words where they could not be parsed."""
    if output.written:
        return False
    if output.wanted is not None:
        return output.wanted
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    variable = os.environ.get("MEMFIT_JSON", "").strip().lower()
    return "--json" in options or variable in ("1", "true", "t", "yes", "y", "on")


def option_variable(option: click.Option) -> str:
    """The environment's name for an option: MEMFIT_KV_TYPE for --kv-type."""
    return "MEMFIT_" + _name(option).lstrip("-").replace("-", "_").upper()


def usage_json(error: click.ClickException, arguments: Sequence[str]) -> dict[str, Any]:
    """Of an error that click found: the option or argument, what was given for it, and what it takes."""
    field, got, needed = getattr(error, "option_name", None), None, None
    if isinstance(error, click.BadParameter) and (parameter := error.param):
        field = _name(parameter)
        got = _given(parameter, arguments)
        needed = _takes(parameter)
    text = readable(error.format_message())
    return MemfitError(text, field=field, got=got, needed=needed).to_json()


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name
    # Of several spellings the first long one is the name.
    return next((one for one in parameter.opts if one.startswith("--")), parameter.opts[0])


def _given(parameter: click.Parameter, arguments: Sequence[str]) -> str | None:
    """The text for an option, the last of several as click takes it; None where there is none."""
    for index in range(len(arguments) - 1, -1, -1):
        name, equals, value = arguments[index].partition("=")
        if name in parameter.opts:
            return value if equals else next(iter(arguments[index + 1 :]), None)
    variable = parameter.envvar
    return os.environ.get(variable) if isinstance(variable, str) else None


def _takes(parameter: click.Parameter) -> str | None:
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return "one of " + ", ".join(map(str, kind.choices))
    if isinstance(kind, click.IntRange):
        return f"integer between {kind.min} and {kind.max}"
    return None if kind is click.STRING else kind.name
