"""Streams on their way to a client: kept alive until an answer flows, and closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from memfit.openai.answers import Frame
from memfit.server.admission import Place
from memfit.server.dialects import STREAM_HEADERS

__all__ = ["PING", "HeldStream", "with_pings"]

PING = b": still computing\n\n"
_PING_SECONDS = 10.0
_UNTIL_IT_FLOWS = 3  # frames: those that begin, and the first words


class HeldStream(StreamingResponse):
    """Gives back what it holds, also where its client left before it began."""

    def __init__(
        self, stream: AsyncGenerator[bytes], frames: AsyncGenerator[Frame], place: Place, *, media_type: str
    ) -> None:
        super().__init__(stream, media_type=media_type, headers=STREAM_HEADERS)
        self._generators, self._place = (stream, frames), place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            try:
                await super().__call__(scope, receive, send)
            finally:
                for one in self._generators:
                    await one.aclose()


async def with_pings(frames: AsyncGenerator[Frame], *, pings: bool) -> AsyncGenerator[Frame | None]:
    """The frames, and None for each while that nothing came, until an answer flows."""
    for _ in range(_UNTIL_IT_FLOWS if pings else 0):
        task = asyncio.ensure_future(anext(frames, None))
        try:
            while not (await asyncio.wait((task,), timeout=_PING_SECONDS))[0]:
                yield None
        except BaseException:
            task.cancel()
            await asyncio.wait((task,))
            raise
        frame = task.result()
        if frame is None:
            return
        yield frame
    async for frame in frames:
        yield frame
