"""How many cells of a KV cache are in use where sequences share their beginnings.

Each sequence is a row of segments; a segment that several sequences begin with is held once. Numbers only:
which tokens the cells stand for, and the cells themselves, are others' business.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SharedCells"]


@dataclass(eq=False)
class _Segment:
    cells: int
    users: int  # sequences that it is part of


class SharedCells:
    """The cells of `sequences` sequences, all empty at first."""

    def __init__(self, sequences: int) -> None:
        self.used = 0
        self._rows: list[list[_Segment]] = [[] for _ in range(sequences)]

    def exclusive(self, sequence: int) -> int:
        """Cells that would be free without this sequence."""
        return sum(segment.cells for segment in self._rows[sequence] if segment.users == 1)

    def grow(self, sequence: int, cells: int) -> None:
        row = self._rows[sequence]
        if not row or row[-1].users > 1:
            row.append(_Segment(cells=0, users=1))
        row[-1].cells += cells
        self.used += cells

    def share(self, source: int, target: int, cells: int) -> None:
        """Let `target`, which is empty, begin with the first `cells` of `source`."""
        assert not self._rows[target], "a sequence is emptied before it is begun anew"
        self._rows[target] = shared = self._rows[source][: self._split(source, cells)]
        for segment in shared:
            segment.users += 1

    def cut(self, sequence: int, cells: int) -> None:
        """Keep only the first `cells` of a sequence."""
        kept = self._split(sequence, cells)
        row = self._rows[sequence]
        for segment in row[kept:]:
            segment.users -= 1
            if not segment.users:
                self.used -= segment.cells
        del row[kept:]

    def _split(self, sequence: int, cells: int) -> int:
        """Let a segment of the sequence end at `cells`; returns how many segments lie before."""
        before = 0
        for index, segment in enumerate(self._rows[sequence]):
            if before == cells:
                return index
            if before + segment.cells > cells:
                self._divide(segment, cells - before)
                return index + 1
            before += segment.cells
        assert before == cells, "a sequence holds what is kept of it"
        return len(self._rows[sequence])

    def _divide(self, segment: _Segment, cells: int) -> None:
        rest = _Segment(cells=segment.cells - cells, users=segment.users)
        segment.cells = cells
        for row in self._rows:
            if segment in row:
                row.insert(row.index(segment) + 1, rest)
