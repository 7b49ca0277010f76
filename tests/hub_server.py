"""A model hub on loopback, which speaks the part of the Hugging Face hub's HTTP interface that clients use.

Repositories (`add_repo`) and plain files (`add_file`) come from memory, from disk, or are described: a
prefix and zeros up to any size, never allocated. It counts requests and bytes, and misbehaves on demand.
Its content network is "localhost" where the hub is "127.0.0.1", so a client sees two hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

__all__ = ["FAULTS", "HubServer", "Request", "Sparse"]

_CHUNK_BYTES = 64 * 1024
_LFS = (".gguf", ".safetensors", ".bin")
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
FAULTS = {
    # instead of any answer
    "status": "answer `value` instead, with `headers`",
    "length": "promise `value` bytes more in Content-Length than are sent",
    "total": "say wherever the size of the file is said that it has `value` bytes more",
    "range": "send a range that starts `value` bytes later than the one asked for, and say so",
    "loop": "redirect to the same place",
    "silence": "accept, and say nothing",
    # where a file's content is sent, so not where a hub redirects to its content network
    "stall": "send `value` bytes of the body, then nothing",
    "drop": "send `value` bytes of the body, then close the connection",
    "ignore_range": "send the whole file with 200",
    "corrupt": "flip the bits of the byte at offset `value` of the file",
}
_AT_ONCE = ("status", "loop", "silence")


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """A file that nobody holds: `prefix`, then zeros."""

    prefix: bytes
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Content:
    source: bytes | Path | Sparse

    @cached_property
    def size(self) -> int:
        if isinstance(self.source, Sparse):
            return self.source.size_bytes
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    def read(self, start: int, length: int) -> bytes:
        if isinstance(self.source, Path):
            with self.source.open("rb") as file:
                file.seek(start)
                return file.read(length)
        if isinstance(self.source, Sparse):
            length = max(0, min(length, self.size - start))
            return self.source.prefix[start : start + length].ljust(length, b"\0")
        return self.source[start : start + length]

    def parts(self, start: int, stop: int) -> Iterator[bytes]:
        for offset in range(start, stop, _CHUNK_BYTES):
            yield self.read(offset, min(_CHUNK_BYTES, stop - offset))

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, Sparse):  # nobody hashes 64 GB of zeros; nobody downloads them either
            return hashlib.sha256(self.source.prefix + str(self.size).encode()).hexdigest()
        return self._hash(hashlib.sha256())

    @cached_property
    def git_id(self) -> str:
        return self._hash(hashlib.sha1(b"blob %d\0" % self.size))

    def _hash(self, digest: Any) -> str:
        for part in self.parts(0, self.size):
            digest.update(part)
        return str(digest.hexdigest())


@dataclass(frozen=True, kw_only=True)
class _File:
    content: _Content
    lfs: bool
    etag: str  # without quotes; "" where the server says none

    def described(self, name: str) -> dict[str, Any]:
        pointer = _POINTER.format(self.etag, self.content.size).encode()
        blob = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest() if self.lfs else self.etag
        facts: dict[str, Any] = {"rfilename": name, "size": self.content.size, "blobId": blob}
        if self.lfs:
            facts["lfs"] = {"sha256": self.etag, "size": self.content.size, "pointerSize": len(pointer)}
        return facts


@dataclass(kw_only=True)
class _Repo:
    name: str
    gated: bool
    private: bool
    cdn: bool  # LFS files lie on the content network, as the real hub's do
    revisions: dict[str, dict[str, _File]] = field(default_factory=dict)  # commit hash → name → file
    main: str = ""

    def revision(self, name: str) -> str | None:
        return self.main if name == "main" else name if name in self.revisions else None


@dataclass(kw_only=True)
class _Fault:
    kind: str
    path: str
    times: int  # -1: for ever
    value: int | None
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class _Trigger:
    path: str
    bytes: int | None
    requests: int | None
    then: Callable[[], object]


class HubServer:
    """A context manager; `url` is the endpoint (HF_ENDPOINT). Whoever has one of `tokens` may read all."""

    def __init__(self, *, bytes_per_second: int | None = None) -> None:
        self.bytes_per_second = bytes_per_second  # of each response
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.bytes_sent: Counter[str] = Counter()  # bodies only, by path
        self._repos: dict[str, _Repo] = {}
        self._files: dict[str, _File] = {}
        self._faults: list[_Fault] = []
        self._triggers: list[_Trigger] = []
        self._lock = threading.RLock()
        self.stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # At its default a shutdown takes half a second.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more answers; what is under way is cut off at the process's end."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes | Path | Sparse],
        *,
        gated: bool = False,
        private: bool = False,
        cdn: bool = True,
    ) -> str:
        """A repository, or a new commit of one that is there. Returns the commit hash."""
        made = {}
        for path, source in files.items():
            content, lfs = _Content(source), path.endswith(_LFS)
            made[path] = _File(content=content, lfs=lfs, etag=content.sha256 if lfs else content.git_id)
        told = name + "".join(f"{path} {file.etag}\n" for path, file in sorted(made.items()))
        commit = hashlib.sha1(told.encode()).hexdigest()
        with self._lock:
            repo = self._repos.setdefault(name, _Repo(name=name, gated=gated, private=private, cdn=cdn))
            repo.gated, repo.private, repo.cdn = gated, private, cdn
            repo.revisions[commit], repo.main = made, commit
        return commit

    def replace_file(self, repo: str, path: str, source: bytes | Path | Sparse) -> None:
        """Other content under the same commit, which no honest hub does."""
        content = _Content(source)
        with self._lock:
            files = self._repos[repo].revisions[self._repos[repo].main]
            files[path] = _File(content=content, lfs=True, etag=content.sha256)

    def add_file(self, path: str, source: bytes | Path | Sparse, *, etag: str | None = None) -> str:
        """A plain file, or another content of one. Returns its URL. `etag=""` for a server without any."""
        content = _Content(source)
        with self._lock:
            file = _File(content=content, lfs=False, etag=content.sha256[:32] if etag is None else etag)
            self._files[f"/files/{path}"] = file
        return f"{self.url}/files/{quote(path)}"

    def misbehave(
        self,
        kind: str,
        value: int | None = None,
        *,
        path: str = "*",
        times: int = -1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """One of FAULTS, in the next `times` GET requests for paths that match; `behave` ends it."""
        assert kind in FAULTS, kind
        fault = _Fault(kind=kind, path=path, times=times, value=value, headers=headers or {})
        with self._lock:
            self._faults.append(fault)

    def behave(self) -> None:
        with self._lock:
            self._faults.clear()

    def when(
        self,
        path: str,
        then: Callable[[], object],
        *,
        bytes_sent: int | None = None,
        requests: int | None = None,
    ) -> None:
        """Call `then` once so many bytes went out, or requests came in, for paths that match the pattern."""
        with self._lock:
            self._triggers.append(_Trigger(path=path, bytes=bytes_sent, requests=requests, then=then))

    def requests_of(self, pattern: str, method: str | None = None) -> list[Request]:
        return [one for one in self.requests if fnmatch(one.path, pattern) and method in (None, one.method)]

    def _take_fault(self, path: str, *, at_once: bool) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                fits = (fault.kind in _AT_ONCE) == at_once and fnmatch(path, fault.path)
                if fault.times != 0 and fits:
                    fault.times -= 1
                    return fault
        return None

    def _note(self, path: str, *, sent: int = 0, request: Request | None = None) -> None:
        with self._lock:
            self.bytes_sent[path] += sent
            if request:
                self.requests.append(request)
            for trigger in list(self._triggers):
                bytes_so_far = sum(n for each, n in self.bytes_sent.items() if fnmatch(each, trigger.path))
                enough = trigger.bytes is not None and bytes_so_far >= trigger.bytes
                if trigger.requests is not None:
                    enough = enough or len(self.requests_of(trigger.path)) >= trigger.requests
                if enough:
                    self._triggers.remove(trigger)
                    trigger.then()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # clients are killed in tests
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self._path, query = unquote(parts.path), parse_qs(parts.query)
        self._token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        request = Request(
            method=self.command,
            path=self._path,
            range=self.headers["Range"],
            token=self._token,
            headers=dict(self.headers),
        )
        self.hub._note(self._path, request=request)
        self._fault = self.hub._take_fault(self._path, at_once=True) if self.command == "GET" else None
        if self._fault and self._fault.kind == "status":
            return self._refuse(self._fault.value or 500, "", "made to fail", self._fault.headers)
        if self._fault and self._fault.kind == "loop":
            return self._redirect(self.path)
        if self._fault:
            self.close_connection = True
            self.hub.stopping.wait()
            return None
        if self._path == "/api/models":
            return self._list(query.get("author", [""])[0])
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)", self._path):
            return self._info(match[1], "main", query)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", self._path):
            return self._info(match[1], match[2], query)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._path):
            return self._resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)/([0-9a-f]{40})/(.+)", self._path):
            return self._send_file(self.hub._repos[match[2]].revisions[match[3]][match[4]], {}, etag="cdn")
        if file := self.hub._files.get(self._path):
            return self._send_file(file, {}, etag=file.etag)
        return self._refuse(404, "", "Not found")

    def _list(self, author: str) -> None:
        owned = [
            repo for name, repo in self.hub._repos.items() if name.startswith(f"{author}/" if author else "")
        ]
        shown = [self._facts(repo, repo.main, {}) for repo in owned if not repo.private or self._may_read()]
        self._send_json(shown)

    def _info(self, name: str, revision: str, query: Mapping[str, list[str]]) -> None:
        if found := self._find(name, revision):
            self._send_json(self._facts(*found, query))

    def _facts(self, repo: _Repo, commit: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        blobs = query.get("blobs", ["false"])[0].lower() == "true"
        described = [file.described(path) for path, file in repo.revisions[commit].items()]
        return {
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "siblings": described if blobs else [{"rfilename": one["rfilename"]} for one in described],
        }

    def _may_read(self) -> bool:
        return self._token in self.hub.tokens

    def _find(self, name: str, revision: str) -> tuple[_Repo, str] | None:
        """The repository and the commit, or None after the refusal that the real hub would send."""
        repo = self.hub._repos.get(name)
        if repo is None or (repo.private and not self._may_read()):
            status = 404 if self._may_read() else 401
            self._refuse(status, "RepoNotFound", "Repository not found")
            return None
        commit = repo.revision(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if not found:
            return None
        repo, commit = found
        if repo.gated and not self._may_read():
            status, advice = (403, "not in the authorized list") if self._token else (401, "Please log in.")
            return self._refuse(status, "GatedRepo", f"Access to model {name} is restricted. {advice}")
        file = repo.revisions[commit].get(path)
        if file is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if file.lfs:
            headers.update({"X-Linked-Size": str(file.content.size), "X-Linked-ETag": f'"{file.etag}"'})
        if file.lfs and repo.cdn:
            host = f"http://localhost:{self.hub.port}"
            return self._redirect(f"{host}/cdn/{file.etag}/{name}/{commit}/{quote(path)}", headers)
        return self._send_file(file, headers, etag=file.etag)

    def _redirect(self, location: str, headers: Mapping[str, str] | None = None) -> None:
        self._start(302, {**(headers or {}), "Location": location, "Content-Length": "0"})

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        told = {"X-Error-Message": message, **(headers or {})}
        self._send_json({"error": message}, status, {**told, "X-Error-Code": code} if code else told)

    def _send_json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        told = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._start(status, {**told, **(headers or {})})
        if self.command == "GET":
            self.wfile.write(body)

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _lie(self, kind: str) -> int | None:
        return self._fault.value if self._fault and self._fault.kind == kind else None

    def _send_file(self, file: _File, headers: dict[str, str], *, etag: str) -> None:
        self._fault = self.hub._take_fault(self._path, at_once=False) if self.command == "GET" else None
        size = file.content.size
        start, stop, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        ignores = self._fault is not None and self._fault.kind == "ignore_range"
        if wanted and not ignores and condition in (None, f'"{etag}"'):
            start = int(wanted[1]) + (self._lie("range") or 0)
            stop = min(int(wanted[2]) + 1 if wanted[2] else size, size)
            status = 206
            if start >= size:
                return self._start(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
        said = size + (self._lie("total") or 0)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{said}"
        length = said - start if status == 200 else stop - start
        headers["Content-Length"] = str(length + (self._lie("length") or 0))
        headers.update({"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"})
        if etag:
            headers["ETag"] = f'"{etag}"'
        self._start(status, headers)
        if self.command == "GET":
            self._send_body(file.content, start, stop)
        return None

    def _send_body(self, content: _Content, start: int, stop: int) -> None:
        kind = self._fault.kind if self._fault else None
        ends = start + (self._fault.value or 0) if self._fault and kind in ("stall", "drop") else stop
        began, offset, flip = time.monotonic(), start, self._lie("corrupt")
        for part in content.parts(start, min(stop, ends)):
            if flip is not None and offset <= flip < offset + len(part):
                part = bytearray(part)
                part[flip - offset] ^= 0xFF
            self.wfile.write(part)
            offset += len(part)
            self.hub._note(self._path, sent=len(part))
            if rate := self.hub.bytes_per_second:
                time.sleep(max(0.0, (offset - start) / rate - (time.monotonic() - began)))
        if kind == "stall":
            self.hub.stopping.wait()
        if kind in ("stall", "drop", "length", "total"):  # fewer bytes than promised: nothing may follow
            self.close_connection = True
