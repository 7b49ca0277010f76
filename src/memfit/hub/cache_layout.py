"""Where the files of a remote model lie on this disk once they are downloaded.

A hub's files lie in the Hugging Face cache, so other programs share them: a blob named by its content's hash,
and a link to it under the commit. Files of other servers lie in memfit's cache folder, by URL and content.
Only names paths; downloads and deletes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memfit.errors import ModelError
from memfit.hardware.folders import cache_folder
from memfit.hub.remote_files import RemoteFile, RemoteModel, stays_inside

__all__ = ["CachePaths", "cache_paths", "hub_cache", "model_root", "urls_folder"]

_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class CachePaths:
    """The paths of one remote file on this disk."""

    partial: Path  # what has come so far; nobody takes it for a model
    blob: Path  # the whole, verified content
    shown: Path  # the name to open it by: a link to the blob; of a plain URL the blob itself
    facts: Path | None  # what a plain URL's file is; written before the file gets its name
    lock: Path  # held while it is downloaded; for a hub's file the one that huggingface_hub takes too

    @property
    def whole(self) -> Path | None:
        """Where the whole file lies, if it does."""
        # Where links are impossible (exFAT), the file itself lies in the snapshot.
        return next((path for path in (self.shown, self.blob) if path.is_file()), None)


def hub_cache() -> Path:
    """huggingface_hub's cache folder, by the environment as it is now and not as it was at its import."""
    home = os.environ.get("HF_HOME") or str(cache_folder().parent / "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(named or f"{home}/hub")).expanduser()


def urls_folder() -> Path:
    """Where the downloads from plain URLs lie."""
    return cache_folder() / "models"


def model_root(model: RemoteModel) -> Path:
    """The folder that all files of the model lie under, of whatever revision or content."""
    if model.repo:
        return hub_cache() / f"models--{model.repo.replace('/', '--')}"
    return urls_folder() / _digest(model.files[0].url)[:24]


def cache_paths(model: RemoteModel, file: RemoteFile) -> CachePaths:
    """Where this file of the model belongs.

    Raises:
        ModelError: the server's names would lead out of the folder.
    """
    if not stays_inside(file.name):
        raise ModelError(
            f"{model.source}: the server names a file {file.name!r}, which is no path inside a folder"
        )
    root = model_root(model)
    if model.repo is None:
        # All shards beside each other; another content in another folder, so that two are never mixed.
        content = _digest("\0".join(f"{one.etag}\0{one.size_bytes}" for one in model.files))
        whole = root / content[:12] / PurePosixPath(file.name).name
        return CachePaths(
            partial=whole.with_name(f"{whole.name}.incomplete"),
            blob=whole,
            shown=whole,
            facts=whole.with_name(f"{whole.name}.json"),
            lock=root / ".lock",
        )
    revision = model.revision or ""
    for part in (file.etag, revision):
        if not _SAFE.fullmatch(part):
            raise ModelError(f"{model.source}: the hub identifies {file.name} by {part!r}, which is no name")
    return CachePaths(
        # Not the bare name: older versions of huggingface_hub leave files with holes under that.
        partial=root / "blobs" / f"{file.etag}.memfit.incomplete",
        blob=root / "blobs" / file.etag,
        shown=root / "snapshots" / revision / file.name,
        facts=None,
        lock=hub_cache() / ".locks" / root.name / f"{file.etag}.lock",
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
