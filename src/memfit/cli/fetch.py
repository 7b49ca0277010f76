"""From a command's MODEL to a loaded one: planned by its header, downloaded if the user agrees, loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from memfit.errors import ModelError, UsageError
from memfit.planner.plan import Plan
from memfit.processes.helper import python_module
from memfit.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.engines.worker_session import WorkerSession

__all__ = ["MakePlan", "load_shown", "ready_plan", "yes_option"]

yes_option = click.option("--yes", is_flag=True, help="Download what is missing without asking.")

# Plans another source with the same budget and workload; MODEL where it is None.
MakePlan = Callable[[str | None], Plan]


def ready_plan(make_plan: MakePlan, out: Console, *, yes: bool) -> Plan:
    """Planned, downloaded where it has to be, and planned again on the file itself.

    Raises:
        DoesNotFitError: before anything is downloaded.
        UsageError: nobody is there to be asked, or the answer is no.
        ModelError: the download fails.
    """
    from memfit.cli.render import print_plan
    from memfit.hub.header_only import is_header_only

    planned = make_plan(None)
    planned.require_fit()
    if not any(map(is_header_only, planned.spec.paths)):
        return planned
    source, size = planned.spec.source, format_bytes(planned.spec.file_bytes)
    print_plan(planned, out)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"{source} is not here: add --yes to download {size}, or run: memfit pull {source}"
            )
        if not click.confirm(f"Download {size}?", default=True, err=True):
            raise UsageError(f"{source} was not downloaded")
    # A process of its own, as in hub/subprocess.py; it shows its progress, and says what went wrong.
    code = subprocess.run([*python_module("memfit"), "pull", source], stdout=subprocess.DEVNULL).returncode
    if code:
        raise ModelError(
            f"{source} was not downloaded; what has come is kept, and memfit pull goes on with it"
        )
    planned = make_plan(source)
    planned.require_fit()
    return planned


def load_shown(plan: Plan, out: Console, *, hard_cap: bool = False, verbose: bool = False) -> WorkerSession:
    """Loaded, with the progress on `out`. Errors as `memfit.load`."""
    from memfit.api import load
    from memfit.cli.render import loading_progress

    with loading_progress(out) as on_progress:
        return load(plan, count_parent=True, hard_cap=hard_cap, on_progress=on_progress, verbose=verbose)
