"""Files cut in pieces by split, not by llama.cpp: their names, and how they become one again. Pure."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Part", "as_part", "how_to_join"]

# "x.gguf.part1of2", "x.gguf-split-a", "x.gguf.part-03", "x.gguf.001", "x.gguf.aa"
_PART = re.compile(
    r"(?P<whole>.+\.(?:gguf|safetensors))"
    r"(?:[._-]?(?:part|split)[._-]?(?P<mark>[a-z]{1,3}|\d{1,5})(?:[._-]?of[._-]?(?P<count>\d{1,5}))?"
    r"|[._](?P<number>\d{2,3}|a[a-z]))",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece."""

    name: str
    whole: str  # the name of what it is a piece of
    order: tuple[int, str]  # sorts the pieces of one whole
    count: int | None  # how many there are, where the names say so


def as_part(name: str) -> Part | None:
    """By its name, which may be a path; None where it says of no piece."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    mark = (match["mark"] or match["number"]).lower()
    order = (int(mark), "") if mark.isdigit() else (len(mark), mark)
    return Part(
        name=name, whole=match["whole"], order=order, count=int(match["count"]) if match["count"] else None
    )


def how_to_join(names: Iterable[str], folder: str = "") -> str | None:
    """Of the names in a folder that are pieces: the command that joins those of the first whole, or what is
    missing for it. None where there are none."""
    wholes: dict[str, list[Part]] = defaultdict(list)
    for name in names:
        if part := as_part(name):
            wholes[part.whole].append(part)
    if not wholes:
        return None
    whole, parts = min(wholes.items())
    parts.sort(key=lambda part: part.order)
    prefix = f"{folder}/" if folder else ""
    count = max((part.count or 0 for part in parts), default=0)
    if len(parts) < count:
        return f"{len(parts)} of the {count} parts of {whole}: get the others, then join them by cat"
    pieces = " ".join(shlex.quote(prefix + part.name) for part in parts)
    return f"{whole} in {len(parts)} parts; join them: cat {pieces} > {shlex.quote(prefix + whole)}"
