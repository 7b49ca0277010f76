"""Downloads one URL into a partial file, and resumes where that ends, until it has its full size.

Trusts no length and no range that a server states. Its caller, download.py, checks the checksum and gives the
file its final name. huggingface_hub's own download is not used: version 2.4's starts from zero after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memfit.errors import ModelError, ModelNotFoundError
from memfit.hub.http import AGAIN, TryAgainError, make_client, network_errors, number_in, retry_after
from memfit.hub.remote_files import RemoteFile
from memfit.hub.repository import how_to_access, is_missing, page_of
from memfit.units import GIB, KIB, MIB, format_bytes

if TYPE_CHECKING:
    import httpx2

__all__ = ["ChangedError", "Patience", "receive"]

# Content networks refuse answers of more than 50 GB, but not pieces of larger files.
_PIECE_BYTES = 8 * GIB
_LEAST_PROGRESS_BYTES = MIB  # a try that brought this much has not failed
_DRIP_BYTES = 16 * KIB  # in a time of silence; less is as good as nothing


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a failing server is waited for."""

    tries: int = 5  # in a row without progress
    silence_seconds: float = 30.0
    backoff_seconds: float = 1.0  # doubled with each try
    longest_wait_seconds: float = 60.0  # also of a server's own Retry-After


class ChangedError(Exception):
    """The server has another content now; `size_bytes` and `etag` of that one, where it says them."""

    def __init__(self, problem: str, *, size_bytes: int | None = None, etag: str = "") -> None:
        self.size_bytes = size_bytes
        self.etag = etag
        super().__init__(problem)


def receive(
    file: RemoteFile,
    partial: Path,
    *,
    headers: Mapping[str, str],
    repo: str | None,
    on_held: Callable[[int], None],
    patience: Patience | None = None,
) -> None:
    """Fill `partial` up to the file's size. `on_held` hears how many bytes it has; that may also fall.

    `headers` go to the URL's own host only. `repo` is the hub's name of the repository, None for other
    servers: those vouch for their content with an ETag or else are never resumed.

    Raises:
        ChangedError: the server's content is not the one that `file` describes.
        ModelNotFoundError, ModelError: no access, or no luck within `patience`.
        OSError: the disk is full or cannot be written.
    """
    patience = patience or Patience()
    failures = 0
    with make_client(patience.silence_seconds) as client:
        transfer = _Transfer(client, file, partial, headers, repo, on_held, patience)
        while (held := transfer.held()) < file.size_bytes:
            try:
                with network_errors(file.url, patience.silence_seconds):
                    transfer.append(held)
                failures = 0
                continue
            except TryAgainError as error:
                problem, wait = str(error), error.wait_seconds
            failures = 1 if transfer.held() >= held + _LEAST_PROGRESS_BYTES else failures + 1
            if failures >= patience.tries or wait > patience.longest_wait_seconds:
                raise ModelError(_gave_up(file, problem, wait, failures, transfer.held()))
            pause = max(wait, patience.backoff_seconds * 2 ** (failures - 1))
            time.sleep(min(pause, patience.longest_wait_seconds))


@dataclass(frozen=True)
class _Transfer:
    """The requests for one file; the fields as `receive` takes them."""

    client: httpx2.Client
    file: RemoteFile
    partial: Path
    headers: Mapping[str, str]
    repo: str | None
    on_held: Callable[[int], None]
    patience: Patience

    @property
    def _resumable(self) -> bool:
        # A weak ETag vouches for the meaning, not for the bytes.
        return self.repo is not None or (bool(self.file.etag) and not self.file.etag.startswith("W/"))

    def held(self) -> int:
        """Bytes that can be built on; what cannot be is deleted."""
        try:
            size = self.partial.stat().st_size
        except FileNotFoundError:
            return 0
        if size > self.file.size_bytes or (size < self.file.size_bytes and not self._resumable):
            self.partial.unlink()
            return 0
        return size

    def append(self, held: int) -> None:
        """One request, and what it brings."""
        stop = self.file.size_bytes
        if self._resumable:
            stop = min(held + _PIECE_BYTES, stop)
        with self.client.stream("GET", self.file.url, headers=self._asked(held, stop)) as answer:
            self._require_success(answer)
            self._require_same(answer)
            start, stop = self._range(answer, held, stop)
            with self.partial.open("r+b" if start else "wb") as out:
                out.seek(start)
                out.truncate()
                position = start
                for part in self._parts(answer):
                    if position + len(part) > stop:
                        raise ChangedError(f"sends more than the {self.file.size_bytes} bytes it announced")
                    out.write(part)
                    position += len(part)
                    self.on_held(position)
        if position < stop:
            raise TryAgainError(f"the server stopped after {format_bytes(position - start)}")

    def _asked(self, held: int, stop: int) -> dict[str, str]:
        # Compressed, offsets would count other bytes.
        asked = {**self.headers, "Accept-Encoding": "identity"}
        if held or stop < self.file.size_bytes:
            asked["Range"] = f"bytes={held}-{stop - 1}"
            # A hub's ETag is not the one of the content network that it redirects to.
            if self.repo is None and self._resumable:
                asked["If-Range"] = self.file.etag
        return asked

    def _require_success(self, answer: httpx2.Response) -> None:
        status = answer.status_code
        if status in AGAIN:
            raise TryAgainError(f"the server answers {status} {answer.reason_phrase}", retry_after(answer))
        if status == 416:
            total = answer.headers.get("Content-Range", "").removeprefix("bytes */")
            raise ChangedError("is shorter now", size_bytes=number_in(total), etag=_etag(answer))
        if status in (401, 403) and answer.history and not answer.headers.get("X-Error-Code"):
            # The address that a hub redirects to is signed for a while only; asked again, it signs anew.
            raise TryAgainError(f"{answer.url.host} answers {status} {answer.reason_phrase}")
        if status not in (200, 206):
            raise _refusal(self.file, self.repo, answer, with_token="authorization" in self.headers)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ModelError(f"{self.file.url}: the server sends it compressed, which was not asked for")

    def _require_same(self, answer: httpx2.Response) -> None:
        if self.repo is None:
            etag = _etag(answer)
            if etag != self.file.etag and (etag or answer.status_code == 206):
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                length = number_in(total) if answer.status_code == 206 else _length(answer)
                raise ChangedError("has another content now", size_bytes=length, etag=etag)
            return
        hops = [*answer.history, answer]
        # The hub says it where it redirects, or else sends the file itself.
        hub = next((hop for hop in hops if "X-Linked-ETag" in hop.headers), hops[0])
        said = hub.headers.get("X-Linked-ETag", "" if answer.history else hub.headers.get("ETag", ""))
        etag, size = said.removeprefix("W/").strip('"'), hub.headers.get("X-Linked-Size")
        if (etag and etag != self.file.etag) or (size and size != str(self.file.size_bytes)):
            raise ChangedError("has another content now than the hub listed")

    def _range(self, answer: httpx2.Response, held: int, stop: int) -> tuple[int, int]:
        """The bytes of the file that the answer's body holds: from, and up to."""
        size = self.file.size_bytes
        if answer.status_code == 206:
            said = answer.headers.get("Content-Range", "")
            span, _, total = said.removeprefix("bytes ").partition("/")
            if number_in(total) not in (None, size):
                raise ChangedError(
                    f"has {total} bytes now, not {size}", size_bytes=number_in(total), etag=_etag(answer)
                )
            first, last = (number_in(one) for one in span.partition("-")[::2])
            if first != held or last is None or not held <= last < stop:
                raise ModelError(
                    f"{self.file.url}: the server sends another range ({said or 'it does not say which'}) "
                    f"than bytes {held}-{stop - 1}, which it was asked for"
                )
            return held, last + 1
        if (length := _length(answer)) not in (None, size):
            raise ChangedError(f"has {length} bytes now, not {size}", size_bytes=length, etag=_etag(answer))
        return 0, size  # the server ignores ranges: all of it comes again

    def _parts(self, answer: httpx2.Response) -> Iterator[bytes]:
        """The body as it comes. A byte now and then is never silence, so that is watched too."""
        window, received = time.monotonic() + self.patience.silence_seconds, 0
        for part in answer.iter_raw():
            yield part
            received += len(part)
            if time.monotonic() > window:
                if received < _DRIP_BYTES:
                    raise TryAgainError(f"the server sent only {received} bytes in a long while")
                window, received = time.monotonic() + self.patience.silence_seconds, 0


def _refusal(file: RemoteFile, repo: str | None, answer: httpx2.Response, *, with_token: bool) -> ModelError:
    """What the server's status means for the user."""
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    if repo is None:
        if status == 404:
            return ModelNotFoundError(f"nothing is at {file.url}")
        return ModelError(f"{file.url}: the server answers {status} {answer.reason_phrase}")
    if code == "GatedRepo":
        token = "the account of your token has no access yet" if with_token else "no token was sent"
        return ModelError(f"hf:{repo} is gated, and {token}: {how_to_access(repo)}")
    if status == 401 and "credentials" in answer.headers.get("X-Error-Message", ""):
        return ModelError(
            f"hf:{repo}: the hub does not accept your token: renew HF_TOKEN, or run: hf auth login"
        )
    if status == 401 or code == "RepoNotFound":
        return ModelNotFoundError(is_missing(repo))
    page = page_of(repo)
    if status == 403:
        return ModelError(
            f"hf:{repo}: no access to {file.name} (403): see {page}, and the rights of HF_TOKEN"
        )
    if status == 404:
        return ModelNotFoundError(f"hf:{repo} has no file {file.name} any more: see {page}")
    return ModelError(f"hf:{repo}: the server answers {status} {answer.reason_phrase} for {file.name}")


def _gave_up(file: RemoteFile, problem: str, wait_seconds: float, failures: int, held: int) -> str:
    kept = f"; {format_bytes(held)} are kept, and memfit pull goes on from there" if held else ""
    if wait_seconds:
        return f"cannot download {file.url}: {problem} and wants {wait_seconds:.0f} s of rest{kept}"
    return f"cannot download {file.url}: {problem}, {failures} times in a row{kept}"


def _etag(answer: httpx2.Response) -> str:
    return str(answer.headers.get("ETag", "")).strip()


def _length(answer: httpx2.Response) -> int | None:
    """Bytes of the body, where the server says them."""
    return number_in(answer.headers.get("Content-Length"))
