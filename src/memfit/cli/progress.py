"""Progress over bytes and steps on stderr: a bar on a terminal, some lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from memfit.units import GIB, format_bytes

__all__ = ["progress_of_bytes", "progress_of_steps"]

_LINES = 10  # where there is no terminal
_LONG_BYTES = GIB  # what takes more than a second

_Progress = Callable[[int, int], None]  # bytes that are done, and all


@contextmanager
def progress_of_bytes(out: Console, say: Callable[[str], None]) -> Iterator[Callable[[str], _Progress]]:
    """Makes what shows one kind of work: a bar on a terminal, some lines elsewhere."""
    if not out.is_terminal:
        yield lambda verb: _lines(verb, say)
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=out, transient=True) as live:

        def bar(verb: str) -> _Progress:
            task = live.add_task(verb, visible=False)
            return lambda done, total: live.update(task, completed=done, total=total, visible=done < total)

        yield bar


@contextmanager
def progress_of_steps(out: Console, say: Callable[[str], None]) -> Iterator[Callable[[str, int, int], None]]:
    """Shows kinds of work after each other: what is done, how many of it, and of how many."""
    if not out.is_terminal:
        yield lambda what, done, whole: _line(what, done, whole, say)
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=out, transient=True) as live:
        tasks: dict[str, bars.TaskID] = {}

        def show(what: str, done: int, whole: int) -> None:
            if what not in tasks:
                tasks[what] = live.add_task(what, total=whole)
            live.update(tasks[what], completed=done, visible=done < whole)

        yield show


def _line(what: str, done: int, whole: int, say: Callable[[str], None]) -> None:
    """For each tenth."""
    if done < whole and done * _LINES // whole > (done - 1) * _LINES // whole:
        say(f"{what} {done} of {whole}")


def _lines(verb: str, say: Callable[[str], None]) -> _Progress:
    """A line for each tenth of what takes long."""
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        tenth = done * _LINES // total if total else _LINES
        if total >= _LONG_BYTES and tenth != last:
            say(f"{verb} {format_bytes(done)} of {format_bytes(total)}")
        last = tenth

    return show
