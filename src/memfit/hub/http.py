"""Reads ranges of a file on a server over HTTP. Trusts nothing that the server says about lengths.

Proxies come from the environment (HTTPS_PROXY, NO_PROXY). Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memfit.closing import Closing
from memfit.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "AGAIN",
    "FileRange",
    "RangeReader",
    "TryAgainError",
    "make_client",
    "network_errors",
    "number_in",
    "retry_after",
]

_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 20.0
_PIECE_SECONDS = 120.0  # a server that sends a byte now and then is never silent
_TRIES = 4
_BACKOFF_SECONDS = 0.5  # doubled with each try
_MOST_WAIT_SECONDS = 20.0  # of a server's own Retry-After
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses of what may pass
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """Consecutive bytes of a file, and what the server said of the whole."""

    data: bytes
    file_bytes: int
    etag: str  # "" if none was sent


class TryAgainError(Exception):
    """A failure that may pass; `wait_seconds` is the server's own wish."""

    def __init__(self, problem: str, wait_seconds: float = 0.0) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(problem)


class RangeReader(Closing):
    """Reads pieces of one remote file; a context manager around its connection.

    `headers` (a hub's token, say) are sent to the URL's own host only, never to where it redirects.
    `key` says how a user gets access who has none.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, *, key: str = "") -> None:
        self._url = url
        self._key = f"; {key}" if key else ""
        self._headers = dict(headers or {})
        self._client = make_client(_SILENCE_SECONDS)
        self._about: tuple[int, str] | None = None  # size and ETag, by the first answer

    def close(self) -> None:
        self._client.close()

    def read(self, start: int, length: int) -> FileRange:
        """Up to `length` bytes from `start` on: fewer only at the file's end.

        Raises:
            ModelNotFoundError: nothing is there.
            ModelError: no access, the server fails, ignores ranges or contradicts itself, or the file
                changed between two pieces.
        """
        piece = _trying(self._url, lambda: self._read(start, length))
        about = (piece.file_bytes, piece.etag)
        if self._about not in (None, about):
            raise ModelError(f"{self._url} changed while its header was being read; try again")
        self._about = about
        return piece

    def _read(self, start: int, length: int) -> FileRange:
        # Compressed, a range would be one of other bytes.
        wanted = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        with self._client.stream("GET", self._url, headers={**self._headers, **wanted}) as answer:
            self._require_success(answer, start)
            if answer.status_code == 206:
                match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if not match or int(match[1]) != start or not start <= int(match[2]) < int(match[3]):
                    raise ModelError(f"{self._url}: the server sent another range than the one asked for")
                size, promised = int(match[3]), min(length, int(match[3]) - start)
                if int(match[2]) - start + 1 < promised:
                    raise TryAgainError("the server sent less than was asked for")
            else:
                said = number_in(answer.headers.get("Content-Length"))
                if said is None:
                    raise ModelError(f"{self._url}: the server does not say how long the file is")
                size, promised = said, min(length, said)
            data = _receive(answer, promised)
        return FileRange(data=data, file_bytes=size, etag=answer.headers.get("ETag", "").strip())

    def _require_success(self, answer: httpx2.Response, start: int) -> None:
        status, said = answer.status_code, f"{answer.status_code} {answer.reason_phrase}"
        if status in AGAIN:
            raise TryAgainError(f"the server answers {status}", retry_after(answer))
        if status == 404:
            raise ModelNotFoundError(f"nothing is at {self._url}")
        if status in (401, 403):
            raise ModelError(f"{self._url}: no access ({said}){self._key}")
        if status == 416:
            raise ModelError(f"{self._url} is shorter than {start + 1} bytes, so it is no whole model")
        if status not in (200, 206):
            raise ModelError(f"{self._url}: the server answers {said}")
        if status == 200 and start > 0:
            raise ModelError(
                f"{self._url}: the server ignores range requests, so the header cannot be read alone; "
                "memfit pull downloads the whole file"
            )


def make_client(silence_seconds: float) -> httpx2.Client:
    """A client that follows ten redirects at most, and waits `silence_seconds` for a silent server."""
    import httpx2

    timeout = httpx2.Timeout(silence_seconds, connect=_CONNECT_SECONDS)
    return httpx2.Client(follow_redirects=True, timeout=timeout, max_redirects=10)


def _receive(answer: httpx2.Response, promised: int) -> bytes:
    """`promised` bytes of the body, and no more, whatever comes."""
    data = bytearray()
    ends = time.monotonic() + _PIECE_SECONDS
    for part in answer.iter_raw():
        data += part
        if len(data) >= promised:
            return bytes(data[:promised])
        if time.monotonic() > ends:
            raise ModelError(
                f"{answer.url}: the server is too slow: {len(data)} bytes in {_PIECE_SECONDS:.0f} s"
            )
    raise TryAgainError(f"the server sent {len(data)} of {promised} bytes")


def _trying(url: str, read: Callable[[], FileRange]) -> FileRange:
    for number in range(_TRIES):
        try:
            with network_errors(url, _SILENCE_SECONDS):
                return read()
        except TryAgainError as error:
            failure = error
        if number < _TRIES - 1:
            time.sleep(min(max(failure.wait_seconds, _BACKOFF_SECONDS * 2**number), _MOST_WAIT_SECONDS))
    raise ModelError(f"cannot read {url}: {failure}, {_TRIES} times")


@contextlib.contextmanager
def network_errors(url: str, silence_seconds: float) -> Iterator[None]:
    """httpx2's errors as ours, for a client of `make_client(silence_seconds)`.

    Raises:
        TryAgainError: what may pass.
        ModelError: what stays.
    """
    import httpx2

    try:
        yield
    except httpx2.TooManyRedirects:
        raise ModelError(f"{url}: the server redirects without end") from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise ModelError(f"{url} is no address: {error}") from None
    except httpx2.ReadTimeout:
        raise TryAgainError(f"the server says nothing for {silence_seconds:.0f} s") from None
    except httpx2.HTTPError as error:
        raise TryAgainError(str(error) or type(error).__name__) from None


def number_in(text: str | None) -> int | None:
    """The whole number that a header says; None for any other text, or where there is no such header."""
    return int(text) if text and text.isascii() and text.isdigit() else None


def retry_after(answer: httpx2.Response) -> float:
    """The seconds that the server wants to be left alone; 0 where it does not say."""
    return float(number_in(answer.headers.get("Retry-After")) or 0)
