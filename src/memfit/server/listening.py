"""Opens the server's sockets and serves until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from memfit.errors import MemfitError, UsageError
from memfit.planner.plan import Plan
from memfit.server.app import make_app
from memfit.server.connection import connection_class
from memfit.server.service import LoadPlan
from memfit.server.settings import Settings

__all__ = ["open_sockets", "serve"]

_BACKLOG = 512
_GRACE_SECONDS = 5  # for answers that run when the server is told to end
_TELLING_SECONDS = 2  # for telling those that still run


def open_sockets(settings: Settings) -> list[socket.socket]:
    """One for each host; port 0 is one that is free, the same for all.

    Raises:
        UsageError: an address cannot be had.
    """
    found: list[socket.socket] = []
    port = settings.port
    with contextlib.ExitStack() as opened:
        for host in settings.hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                one = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            except OSError as error:
                said = error.strerror or str(error)
                raise UsageError(
                    f"cannot listen on {host} port {port}: {said}; try another --port", field="--port"
                ) from None
            # Read anew from the descriptor it knows that it is TCP; else asyncio leaves Nagle's algorithm on,
            # and whatever is written in two parts comes 40 ms late.
            one = socket.socket(fileno=one.detach())
            opened.callback(one.close)
            found.append(one)
            port = one.getsockname()[1]
        opened.pop_all()
    return found


class _Server(uvicorn.Server):
    """Answers that run when it is told to end may end; those that take long are told that it does."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._app.state.host.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def serve(
    plan: Plan,
    load: LoadPlan,
    settings: Settings,
    sockets: list[socket.socket],
    say: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        MemfitError: the model cannot be loaded, or its worker dies again and again.
    """
    failures: list[MemfitError] = []

    def fail(error: MemfitError) -> None:
        failures.append(error)
        server.should_exit = True

    app = make_app(plan, load, settings, say, fail)
    server = _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=connection_class(settings.limits),
            ws="none",
            log_config=None,
            log_level="error",  # what a client does wrong is told to it
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.limits.connections,
            h11_max_incomplete_event_size=settings.limits.header_bytes,
            timeout_graceful_shutdown=_GRACE_SECONDS + _TELLING_SECONDS,
        ),
        app,
    )
    asyncio.run(server.serve(sockets=sockets))
    if failures:
        raise failures[0]
