"""Progress over bytes on stderr: a bar on a terminal, some lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from memfit.units import GIB, format_bytes

__all__ = ["progress_of_bytes"]

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
