"""The live view: looks twice a second, on a thread of its own, and shows what another room draws of it."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.console import RenderableType
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import Footer, Static

from memfit.monitor.snapshot import Snapshot

__all__ = ["MonitorApp"]

_LOOK_SECONDS = 0.5
_END_SECONDS = 1.0  # for the look that is under way when the view ends

_Section = tuple[str, RenderableType]  # its title, and what it says


class _Looked(Message):
    def __init__(self, found: Snapshot | Exception) -> None:
        super().__init__()
        self.found = found


class MonitorApp(App[None]):
    """`look` may take its time, `draw` may not."""

    TITLE = "memfit monitor"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-wide")]  # noqa: RUF012 - as Textual declares it
    CSS = """
    VerticalScroll { scrollbar-size-vertical: 1; }
    .section { height: auto; border: round $primary; border-title-color: $text; border-title-style: bold; }
    .-wide .section { padding: 0 1; }
    .-narrow .section { border: none; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+q,ctrl+c", "quit", "Quit", priority=True, key_display="q"),
        Binding("up,k", "scroll(-1)", "Scroll", key_display="↑↓", priority=True),
        Binding("down,j", "scroll(1)", show=False, priority=True),
        Binding("pageup,b", "page(-1)", show=False, priority=True),
        Binding("pagedown,space", "page(1)", show=False, priority=True),
    ]

    def __init__(self, look: Callable[[], Snapshot], draw: Callable[[Snapshot], Sequence[_Section]]) -> None:
        super().__init__()
        self._look, self._draw = look, draw
        self.failure: Exception | None = None  # that ended it
        self._ending = threading.Event()
        # A daemon: a server that is silent keeps nobody from leaving.
        self._looking = threading.Thread(target=self._go_on_looking, name="memfit-monitor", daemon=True)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="all", can_focus=True):
            yield Static("looking …", classes="section")
        yield Footer()

    def on_mount(self) -> None:
        # The terminal is given back, whoever ends us.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self._looking.start()

    def on_unmount(self) -> None:
        self._ending.set()
        self._looking.join(_END_SECONDS)

    def _go_on_looking(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                found: Snapshot | Exception = self._look()
            except Exception as error:  # told on the other thread
                found = error
            if self._ending.is_set():
                return
            self.post_message(_Looked(found))
            self._ending.wait(max(0.0, began + _LOOK_SECONDS - time.monotonic()))

    async def on__looked(self, message: _Looked) -> None:
        if isinstance(message.found, Exception):
            self.failure = message.found
            self.exit()
            return
        sections = self._draw(message.found)
        everything = self.query_one("#all", VerticalScroll)
        shown = list(everything.query(Static))
        for gone in shown[len(sections) :]:
            await gone.remove()
        while len(shown) < len(sections):
            shown.append(Static(classes="section"))
            await everything.mount(shown[-1])
        for (title, body), place in zip(sections, shown, strict=False):
            place.border_title = title
            place.update(body)

    def action_scroll(self, lines: int) -> None:
        self.query_one("#all", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        everything = self.query_one("#all", VerticalScroll)
        everything.scroll_relative(y=pages * max(1, everything.size.height - 1), animate=False)
