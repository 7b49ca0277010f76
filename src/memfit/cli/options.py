"""Options that several subcommands share, and the values they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from memfit.planner.request import KV_TYPES, Budget, Workload

__all__ = [
    "budget_options",
    "json_option",
    "take_budget",
    "take_workload",
    "verbose_option",
    "workload_options",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def budget_options(command: _Command) -> _Command:
    option = click.option(
        "--ram",
        metavar="SIZE",
        help="Most RAM to use: 8GiB, 800MiB, 90% of what is free.  [what is free]",
    )
    return option(command)


def workload_options(command: _Command) -> _Command:
    options = (
        click.option(
            "--ctx",
            type=int,
            metavar="N",
            help="Context in tokens, over all sequences.  [4096 or the model's]",
        ),
        click.option("--parallel", type=int, default=1, metavar="N", help="Sequences.", show_default=True),
        click.option(
            "--kv-type",
            type=click.Choice(["auto", *KV_TYPES]),
            default="auto",
            show_default=True,
            help="Type of the KV cache; auto takes q8_0 only where f16 does not fit.",
        ),
        click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [physical cores]"),
        click.option(
            "--repack",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            show_default=True,
            help="Rewrite weights for this CPU's kernels while loading; auto takes what measures faster.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)


def verbose_option(command: _Command) -> _Command:
    return click.option("--verbose", is_flag=True, help="Show the engine's log on stderr.")(command)


def take_budget(options: dict[str, Any]) -> Budget:
    """Remove the budget options from a command's keyword arguments and build the value."""
    return Budget(ram=options.pop("ram"))


def take_workload(options: dict[str, Any], **expected: int) -> Workload:
    """Likewise for the workload; `expected` are its prompt_tokens and generated_tokens."""
    return Workload(
        context=options.pop("ctx"),
        parallel=options.pop("parallel"),
        kv_type=options.pop("kv_type"),
        threads=options.pop("threads"),
        repack=options.pop("repack"),
        **expected,
    )
