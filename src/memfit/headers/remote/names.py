"""What the names of a repository's files say: which belong to one model, and in what quantization.

Names only, as publishers write them: "model-Q4_K_M.gguf", "Q4_K_M/model-00001-of-00003.gguf". Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RemoteFile", "RemoteModel", "Variant", "choose", "shard_names", "variants"]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf|\.safetensors)", re.DOTALL | re.ASCII)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD[-_])?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|BF16|F16|FP16|F32|FP32|MXFP4(?:_MOE)?))(?![A-Za-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_COMPANION = re.compile(r"(^|[-_./])(mmproj|imatrix)|\.imatrix\.|-?vocab-only", re.IGNORECASE)
# What llama.cpp takes of a repository where none is asked for, and what comes nearest to it.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "IQ4_XS", "MXFP4", "MXFP4_MOE", "Q8_0")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a repository, or of any other server."""

    name: str  # path inside the repository, or the last part of a URL's path
    url: str
    size_bytes: int
    etag: str  # what identifies the content: LFS sha256 or git blob id; of a plain URL its ETag, "" if none
    sha256: str | None  # where the server says it


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    """The files of one model that is not here."""

    source: str  # as the user named it
    repo: str | None  # "org/name"; None for a plain URL
    revision: str | None  # commit hash
    files: tuple[RemoteFile, ...]  # in shard order

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One GGUF model of a repository: a file, or all shards of one."""

    label: str  # its quantization by its name, "Q4_K_M"; the file's name where that says none
    files: tuple[RemoteFile, ...]  # in shard order

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def shard_names(name: str) -> tuple[str, ...]:
    """The names of all shards, by the name of one; of a file that is no shard, its own."""
    match = _SHARD.fullmatch(name)
    if not match:
        return (name,)
    count = int(match[3])
    return tuple(f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}" for number in range(1, count + 1))


def variants(files: Sequence[RemoteFile]) -> tuple[Variant, ...]:
    """The GGUF models among a repository's files, the largest first; incomplete ones are left out."""
    known = {file.name: file for file in files}
    found = []
    for file in files:
        names = shard_names(file.name) if file.name.lower().endswith(".gguf") else ()
        if not names or names[0] != file.name or _COMPANION.search(file.name):
            continue
        if all(name in known for name in names):
            found.append(Variant(label=_label(file.name), files=tuple(known[name] for name in names)))
    return tuple(sorted(found, key=lambda one: -one.size_bytes))


def choose(found: Sequence[Variant], wanted: str | None) -> Variant | None:
    """The variant with the label `wanted`, whatever its case; without one, what llama.cpp would take."""
    if wanted is not None:
        exact = [one for one in found if one.label.upper() == wanted.upper()]
        return exact[-1] if exact else None
    by_label = {one.label.upper(): one for one in found}
    return next((by_label[label] for label in _PREFERRED if label in by_label), found[-1] if found else None)


def _label(name: str) -> str:
    """From the file's own name, or else from its folder's."""
    stem = (_SHARD.sub(r"\1", name) if _SHARD.fullmatch(name) else name.removesuffix(".gguf")).split("/")
    for part in reversed(stem):
        if matches := _LABEL.findall(part):
            return str(matches[-1]).upper().replace("UD_", "UD-")
    return stem[-1]
