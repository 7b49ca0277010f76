"""`pull`: downloads all files of a remote model, whole and verified, or not at all.

A file gets its final name only after its size and, where the server says one, its checksum were checked on
this disk; huggingface_hub checks sizes alone. Whatever interrupts, a partial file stays and is resumed.
Chooses no files and prints nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from memfit.errors import ModelError
from memfit.hardware.folders import sync_folder
from memfit.hub.cache_layout import CachePaths, cache_paths, model_root
from memfit.hub.remote_files import RemoteFile, RemoteModel
from memfit.hub.repository import token_headers
from memfit.hub.transfer import ChangedError, Patience, receive
from memfit.units import MIB, format_bytes

__all__ = ["Progress", "missing_bytes", "pull", "read_facts"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_SPARE_BYTES = 256 * MIB  # a disk that is full to the brim breaks other programs
_CHUNK_BYTES = 4 * MIB
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_ID = re.compile(r"[0-9a-f]{40}")


def pull(
    model: RemoteModel,
    *,
    on_progress: Progress | None = None,
    on_check: Progress | None = None,
    say: Callable[[str], None] | None = None,
    patience: Patience | None = None,
) -> tuple[Path, ...]:
    """Download what is missing, verify all of it, and return the paths to open, in the model's order.

    `on_progress` hears of downloading, `on_check` of reading for checksums, `say` of what is worth a line.
    Files that are here already are verified too, and fetched again if they are damaged.

    Raises:
        ModelNotFoundError, ModelError: no access, no network, no space, a wrong checksum, or a content that
            keeps changing. A partial download is left in place where it can be resumed.
    """
    if model.repo and _offline():
        raise ModelError(f"{model.source}: HF_HUB_OFFLINE is set, so nothing is downloaded")
    run = _Pull(model, on_progress or _ignore, on_check or _ignore, say or _ignore, patience)
    try:
        _require_space(model)
        paths = tuple(run.one(file) for file in model.files)
        _forget_others(model, paths)
        return paths
    except OSError as error:
        raise ModelError(
            f"cannot keep {model.source} in {model_root(model)}: {error.strerror or error}"
        ) from None


def missing_bytes(model: RemoteModel) -> int:
    """Bytes that `pull` would fetch: what is neither here nor in a partial file."""
    return sum(file.size_bytes - _held(model, file) for file in model.files)


@dataclass
class _Pull:
    """One run over a model's files, and its place in the whole; the first fields as `pull` takes them."""

    model: RemoteModel
    on_progress: Progress
    on_check: Progress
    say: Callable[[str], None]
    patience: Patience | None
    done: int = 0  # bytes of the files before the present one

    def __post_init__(self) -> None:
        self._headers = token_headers() if self.model.repo else {}

    def one(self, file: RemoteFile) -> Path:
        cached = self._prepared(file)
        with _locked(cached.lock, lambda: self.say(f"waiting: another program downloads {file.name}")):
            path = self._ensure(file, cached)
        self.done += path.stat().st_size
        self.on_progress(self.done, self.model.size_bytes)
        return path

    def _prepared(self, file: RemoteFile) -> CachePaths:
        cached = cache_paths(self.model, file)
        for path in (cached.blob, cached.shown, cached.lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        return cached

    def _ensure(self, file: RemoteFile, cached: CachePaths) -> Path:
        """The whole, verified file at its place, or where a plain URL's present content belongs."""
        present = cached.whole
        if present and self._is_sound(file, cached, present):
            _show(cached)
            return cached.shown
        if present:
            self.say(f"{present} is damaged; downloading it again")
            for path in (cached.shown, cached.blob):
                path.unlink(missing_ok=True)
        try:
            self._fetch(file, cached)
        except ChangedError as changed:
            cached.partial.unlink(missing_ok=True)
            file = self._after_change(file, changed)
            cached = self._prepared(file)
            try:
                self._fetch(file, cached)
            except ChangedError as again:
                cached.partial.unlink(missing_ok=True)
                raise ModelError(f"{file.url} {again}, for the second time while it was downloaded") from None
        return cached.shown

    def _after_change(self, file: RemoteFile, changed: ChangedError) -> RemoteFile:
        """What a plain URL has now. A commit never changes, so of a hub that is an error."""
        if self.model.repo or len(self.model.files) > 1 or changed.size_bytes is None:
            raise ModelError(
                f"{self.model.source}: {file.name} {changed}; run memfit pull again for what there is now"
            )
        if changed.etag and changed.etag == file.etag:
            raise ModelError(
                f"{file.url}: the server contradicts itself: the same ETag, and {changed.size_bytes} bytes "
                f"where it said {file.size_bytes}"
            )
        self.say(f"{file.name} changed on the server; starting over")
        file = replace(file, size_bytes=changed.size_bytes, etag=changed.etag, sha256=None)
        self.model = replace(self.model, files=(file,))
        return file

    def _fetch(self, file: RemoteFile, cached: CachePaths) -> None:
        if cached.facts:
            _write_facts(cached.facts, file, sha256="")  # whose partial file it is
        cached.partial.touch()
        receive(
            file,
            cached.partial,
            headers=self._headers,
            repo=self.model.repo,
            on_held=lambda held: self.on_progress(self.done + held, self.model.size_bytes),
            patience=self.patience,
        )
        with cached.partial.open("rb") as whole:
            os.fsync(whole.fileno())
        found, expected = self._checksum(file, cached.partial), self._expected(file)
        if expected and found != expected:
            cached.partial.unlink()
            raise ModelError(
                f"{self.model.source}: {file.name} has the checksum {found} and not {expected}; what came "
                "was deleted. Run memfit pull again; if it stays so, the file on the server is damaged"
            )
        if cached.facts:
            _write_facts(cached.facts, file, sha256=found)
        cached.partial.replace(cached.blob)
        sync_folder(cached.blob.parent)
        _show(cached)

    def _is_sound(self, file: RemoteFile, cached: CachePaths, path: Path) -> bool:
        if path.stat().st_size != file.size_bytes:
            return False
        expected = self._expected(file)
        if cached.facts:
            expected = expected or read_facts(cached.facts).get("sha256", "")
        return expected is None or self._checksum(file, path) == expected

    def _expected(self, file: RemoteFile) -> str | None:
        """The checksum that the hub says; a plain server's ETag is none."""
        known = self.model.repo and (_SHA256.fullmatch(file.etag) or _GIT_ID.fullmatch(file.etag))
        return file.sha256 or (file.etag if known else None)

    def _checksum(self, file: RemoteFile, path: Path) -> str:
        """SHA-256, or git's SHA-1 where that is what the hub says of the file."""
        is_git = len(self._expected(file) or "") == 40
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes) if is_git else hashlib.sha256()
        done = 0
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                self.on_check(done, file.size_bytes)
        return digest.hexdigest()


def _held(model: RemoteModel, file: RemoteFile) -> int:
    cached = cache_paths(model, file)
    for path in (cached.whole, cached.partial):
        with suppress(OSError):
            if path:
                return min(path.stat().st_size, file.size_bytes)
    return 0


def _require_space(model: RemoteModel) -> None:
    missing = missing_bytes(model)
    if not missing:
        return
    root = model_root(model)
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, missing + _SPARE_BYTES
    if free < needed:
        home = "HF_HOME" if model.repo else "XDG_CACHE_HOME"
        raise ModelError(
            f"no space for {model.source} in {root}: needs {format_bytes(needed)} "
            f"({format_bytes(missing)} to download and a reserve), {format_bytes(free)} are free, short "
            f"{format_bytes(needed - free)}; free some, memfit remove a model, or set {home} to a folder on "
            "another disk"
        )


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One download of a file at a time, of ours and of huggingface_hub's. A killed holder lets go."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def _show(cached: CachePaths) -> None:
    """Give the blob the name that it is opened by."""
    if cached.shown == cached.blob or not cached.blob.exists():
        return
    if cached.shown.exists() and cached.shown.samefile(cached.blob):
        return
    cached.shown.unlink(missing_ok=True)
    try:
        cached.shown.symlink_to(os.path.relpath(cached.blob, cached.shown.parent))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        cached.blob.replace(cached.shown)  # no links on this file system


def read_facts(path: Path) -> Mapping[str, str]:
    """What was noted of a plain URL's file: url, etag, sha256. Nothing where that is missing or damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in facts.items()} if isinstance(facts, dict) else {}


def _write_facts(path: Path, file: RemoteFile, *, sha256: str) -> None:
    text = json.dumps({"url": file.url, "etag": file.etag, "sha256": sha256}, indent=1)
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)


def _forget_others(model: RemoteModel, paths: tuple[Path, ...]) -> None:
    """Delete what a plain URL had before."""
    if model.repo is None:
        for folder in model_root(model).iterdir():
            if folder.is_dir() and folder != paths[0].parent:
                shutil.rmtree(folder, ignore_errors=True)


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _ignore(*_: object) -> None:
    pass
