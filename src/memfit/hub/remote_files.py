"""A repository's files by their names: shards of one model, its quantization, and companions (projectors).

The names are as publishers write them: "model-Q4_K_M.gguf", "Q4_K_M/model-00001-of-00003.gguf". Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfit.units import format_bytes

__all__ = [
    "RemoteFile",
    "RemoteModel",
    "Variant",
    "choose",
    "clash",
    "shard_names",
    "stays_inside",
    "variants",
]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf|\.safetensors)", re.DOTALL | re.ASCII)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD[-_])?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|BF16|F16|FP16|F32|FP32|MXFP4(?:_MOE)?))(?![A-Za-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_COMPANION = re.compile(r"(^|[-_./])(mmproj|imatrix)|\.imatrix\.|-?vocab-only", re.IGNORECASE)
# Of a draft head, or an adapter, beside the model that it belongs to.
_BESIDE = re.compile(
    r"(^|[-_./])(mtp|nextn|(spec(ulative)?[-_]?)?draft(er)?|eagle[-_]?\d?|medusa|speculator|lora|adapter)s?(?=[-_./]|$)",
    re.IGNORECASE,
)
_SAME_SIZE = 0.01  # two layouts of one model differ by a header
# What llama.cpp takes of a repository where none is asked for, and what comes nearest to it.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "IQ4_XS", "MXFP4", "MXFP4_MOE", "Q8_0")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a repository, or of any other server."""

    name: str  # path inside the repository, or the last part of a URL's path
    size_bytes: int
    url: str = ""  # "" of a file that is here
    etag: str = ""  # what identifies the content: LFS sha256 or git blob id; of a plain URL its ETag, if any
    sha256: str | None = None  # where the server says it


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

    @property
    def stem(self) -> str:
        """The file's name without its quantization: equal for the quantizations of one model."""
        name = _without_ending(self.files[0].name.rpartition("/")[2])
        return re.sub(r"[-_.\s]+", "-", _LABEL.sub("", name)).strip("-").lower()

    @property
    def is_beside(self) -> bool:
        """Whether its name says that it is a companion which could also run alone."""
        return _BESIDE.search(_without_ending(self.files[0].name)) is not None

    def is_like(self, other: Variant) -> bool:
        """Whether both are one model in two layouts: whole and split, or in two folders."""
        largest = max(self.size_bytes, other.size_bytes)
        return self.stem == other.stem and abs(self.size_bytes - other.size_bytes) <= _SAME_SIZE * largest


def shard_names(name: str) -> tuple[str, ...]:
    """The names of all shards, by the name of one; of a file that is no shard, its own."""
    match = _SHARD.fullmatch(name)
    if not match:
        return (name,)
    count = int(match[3])
    return tuple(f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}" for number in range(1, count + 1))


def stays_inside(name: Any) -> bool:
    """Whether a server's name for a file is a path inside a folder; it becomes one on this disk."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 1024
        and "\\" not in name
        and name.isprintable()
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def variants(files: Sequence[RemoteFile]) -> tuple[Variant, ...]:
    """The GGUF models among a repository's files, the largest first; incomplete ones and companions are left
    out. A draft head or an adapter counts as one where there is another model, and not a smaller one."""
    known = {file.name: file for file in files}
    found = []
    for file in files:
        names = shard_names(file.name) if file.name.lower().endswith(".gguf") else ()
        if not names or names[0] != file.name or _COMPANION.search(file.name):
            continue
        if all(name in known for name in names):
            found.append(Variant(label=_label(file.name), files=tuple(known[name] for name in names)))
    mains = [one for one in found if not one.is_beside]
    kept = [one for one in found if not one.is_beside or not mains or _outgrows(one, mains)]
    return tuple(sorted(kept, key=lambda one: -one.size_bytes))


def _outgrows(one: Variant, mains: Sequence[Variant]) -> bool:
    """Whether it is larger than a model of the same quantization: then its name only says what is inside."""
    same = [main.size_bytes for main in mains if main.label.upper() == one.label.upper()]
    return bool(same) and one.size_bytes > min(same)


def choose(found: Sequence[Variant], wanted: str | None) -> tuple[Variant, ...]:
    """The variant with the label `wanted`, whatever its case; without one, what llama.cpp would take.

    Several where different models have that label, the largest first; none where none has.
    """
    if wanted is None:
        labels = {one.label.upper() for one in found}
        wanted = next((label for label in _PREFERRED if label in labels), found[-1].label if found else "")
    models: list[Variant] = []
    for one in (one for one in found if one.label.upper() == wanted.upper()):
        like = next((index for index, other in enumerate(models) if one.is_like(other)), None)
        if like is None:
            models.append(one)
        elif len(one.files) <= len(models[like].files):
            models[like] = one
    return tuple(models)


def clash(repo: str, chosen: Sequence[Variant]) -> str:
    """What to say of several models with one label: all their names, as MODEL takes them."""
    named = ", ".join(f"hf:{repo}/{one.files[0].name} ({format_bytes(one.size_bytes)})" for one in chosen)
    return f"hf:{repo} holds {len(chosen)} models as {chosen[0].label}; name one: {named}"


def _without_ending(name: str) -> str:
    match = _SHARD.fullmatch(name)
    return match[1] if match else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)


def _label(name: str) -> str:
    """From the file's own name, or else from its folder's."""
    stem = _without_ending(name).split("/")
    for part in reversed(stem):
        if matches := _LABEL.findall(part):
            return str(matches[-1]).upper().replace("UD_", "UD-")
    return stem[-1]
