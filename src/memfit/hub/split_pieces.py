"""Files cut in pieces by the program split, unlike llama.cpp's shards: their names, and how to join them."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["SplitPiece", "as_piece", "how_to_join"]

# "x.gguf.part1of2", "x.gguf-split-a", "x.gguf.part-03", "x.gguf.001", "x.gguf.aa"
_PIECE = re.compile(
    r"(?P<whole>.+\.(?:gguf|safetensors))"
    r"(?:[._-]?(?:part|split)[._-]?(?P<mark>[a-z]{1,3}|\d{1,5})(?:[._-]?of[._-]?(?P<count>\d{1,5}))?"
    r"|[._](?P<number>\d{2,3}|a[a-z]))",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class SplitPiece:
    """One piece of a file."""

    name: str
    whole: str  # the name of what it is a piece of
    order: tuple[int, str]  # sorts the pieces of one whole
    count: int | None  # how many there are, where the names say so


def as_piece(name: str) -> SplitPiece | None:
    """What a file name, or a path, says of a piece; None where it is no piece's name."""
    match = _PIECE.fullmatch(name)
    if match is None:
        return None
    mark = (match["mark"] or match["number"]).lower()
    order = (int(mark), "") if mark.isdigit() else (len(mark), mark)
    return SplitPiece(
        name=name, whole=match["whole"], order=order, count=int(match["count"]) if match["count"] else None
    )


def how_to_join(names: Iterable[str], folder: str = "") -> str | None:
    """The command that joins the pieces in a folder, or how many are missing; None where there are none.

    Of the pieces of several files, those of the first file by name are told.
    """
    wholes: dict[str, list[SplitPiece]] = defaultdict(list)
    for name in names:
        if piece := as_piece(name):
            wholes[piece.whole].append(piece)
    if not wholes:
        return None
    whole, found = min(wholes.items())
    found.sort(key=lambda piece: piece.order)
    prefix = f"{folder}/" if folder else ""
    count = max((piece.count or 0 for piece in found), default=0)
    if len(found) < count:
        return f"{len(found)} of the {count} parts of {whole}: get the others, then join them by cat"
    pieces = " ".join(shlex.quote(prefix + piece.name) for piece in found)
    return f"{whole} in {len(found)} parts; join them: cat {pieces} > {shlex.quote(prefix + whole)}"
