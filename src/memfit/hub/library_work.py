"""What a server has done to the library, in a process whose memory ends with the work: downloads with their
progress, a list with what headers say, deletions.

All answers are JSON. Only the subprocess calls it (subprocess.py).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError, UsageError
from memfit.headers.gguf_model import read_model
from memfit.hub import library
from memfit.hub.download import pull
from memfit.hub.library import LocalModel, local_models, matching
from memfit.hub.repository import find_remote

__all__ = ["delete", "describe_models", "download"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = 0.1  # between two words about progress


def download(model: str, send: Callable[..., None]) -> dict[str, Any]:
    """Pull a model; `send` hears events: `found`, `downloading` and `checking` with bytes, `say`. Errors as
    `find_remote` and `pull`."""
    remote = find_remote(model)
    first = remote.files[0]
    mark = first.sha256 or first.etag
    digest = mark if _SHA256.fullmatch(mark) else hashlib.sha256(remote.source.encode()).hexdigest()
    send("found", digest=digest, size_bytes=remote.size_bytes)
    paths = pull(
        remote,
        on_progress=_seldom(lambda done, whole: send("downloading", done=done, whole=whole)),
        on_check=_seldom(lambda done, whole: send("checking", done=done, whole=whole)),
        say=lambda text: send("say", text=text),
    )
    return {"paths": list(map(str, paths))}


def describe_models() -> list[dict[str, Any]]:
    """Every whole model. What a header does not say, or what cannot be read, is empty."""
    return [_described(one) for one in local_models() if one.complete]


def delete(model: str, kept: Collection[Path]) -> dict[str, Any]:
    """Delete one model, unless it has one of the files that are `kept`: then `freed_bytes` is null.

    Raises:
        ModelNotFoundError, ModelError: as `library.remove`.
        UsageError: the name means several.
    """
    chosen = matching(model)
    whole = [one.name for one in chosen if one.kind != "partial"]
    if len(whole) > 1:
        raise UsageError(f"{model} means several models; name one of them: {', '.join(whole)}")
    ours = {path.resolve() for path in kept}
    if any(path.resolve() in ours for one in chosen for path in one.paths):
        return {"freed_bytes": None}
    return {"freed_bytes": library.remove(model)}


def _described(model: LocalModel) -> dict[str, Any]:
    first = model.paths[0]
    content = first.resolve()
    mark = content.name if _SHA256.fullmatch(content.name) else _hash(f"{model.name} {model.size_bytes}")
    return {
        "name": model.name,
        "paths": [str(path.resolve()) for path in model.paths],
        "size_bytes": model.size_bytes,
        "modified": content.stat().st_mtime,
        "digest": mark,
        "format": model.kind,
        **_header(model),
    }


def _header(model: LocalModel) -> dict[str, Any]:
    found: dict[str, Any] = {"family": "", "parameters": 0, "quantization": "", "context": 0}
    if model.kind != "gguf":
        return found
    try:
        spec = read_model(model.paths[0], source=model.name)
    except MemfitError:  # whoever uses it says why
        return found
    return {
        "family": spec.architecture,
        "parameters": spec.n_params,
        "quantization": spec.quantization,
        "context": spec.context_length,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seldom(tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """A progress that is told now and then, and at its end."""
    last = 0.0

    def progress(done: int, whole: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= whole or now - last >= _SECONDS:
            last = now
            tell(done, whole)

    return progress
