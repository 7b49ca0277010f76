"""From tokens' bytes to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence

from memfit.engines.channel import Channel
from memfit.engines.requests import ChosenToken
from memfit.engines.results import send_text

__all__ = ["TextAssembler", "TextSender"]

_FLUSH_SECONDS = 0.025  # text is sent this often: each line wakes the parent on a core that computes


class TextAssembler:
    """Feed it the bytes of token after token; it gives back text that is safe to show.

    Held back: an unfinished UTF-8 character, and an ending that could become a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stop: str | None = None  # the stop string that was found; it and what follows are dropped

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def feed(self, piece: bytes) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece)
        # The one that is complete first wins, however the text was cut into tokens.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, at, self.stop = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        return self._release(self._possible_stop())

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(0)

    def _possible_stop(self) -> int:
        """Length of the longest ending that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _release(self, keep: int) -> str:
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


class TextSender:
    """Sends an answer's text in few lines if it is wanted as it comes, and remembers all of it."""

    def __init__(
        self, channel: Channel, number: int, stops: Sequence[str], *, sends: bool, one_by_one: bool = False
    ) -> None:
        """`number` is the request's. `one_by_one` sends each piece by itself."""
        self._assembler = TextAssembler(stops)
        self._channel, self._number, self._sends = channel, number, sends
        self._flush_seconds = 0.0 if one_by_one else _FLUSH_SECONDS
        self._pieces: list[str] = []
        self._tokens: list[ChosenToken] = []  # of pieces that were not sent
        self._sent = 0  # pieces
        self._sent_at = 0.0

    @property
    def stopped(self) -> bool:
        return self._assembler.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._assembler.stop

    def feed(self, piece: bytes, token: ChosenToken | None = None) -> None:
        """`token` is what the piece is of, where tokens are named."""
        if token:
            self._tokens.append(token)
        if text := self._assembler.feed(piece):
            self._pieces.append(text)
            if self._sends and time.monotonic() - self._sent_at >= self._flush_seconds:
                self._flush()

    def _flush(self) -> None:
        if self._sends and (self._sent < len(self._pieces) or self._tokens):
            text = "".join(self._pieces[self._sent :])
            send_text(self._channel, self._number, text, self._tokens)
            self._tokens = []
            self._sent, self._sent_at = len(self._pieces), time.monotonic()

    def finish(self) -> str:
        """All of the text, once no more tokens come."""
        if self.stopped:
            self._tokens = []  # of the stop string, which is not shown
        elif rest := self._assembler.finish():
            self._pieces.append(rest)
        self._flush()
        return "".join(self._pieces)
