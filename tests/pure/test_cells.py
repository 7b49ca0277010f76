"""Cells that sequences share, counted by hand and against sets of (history) tuples."""

from __future__ import annotations

import random

import pytest

from memfit.engines.cells import SharedCells


def test_shared_beginnings_count_once() -> None:
    cells = SharedCells(3)
    cells.grow(0, 100)
    cells.share(0, 1, 60)
    assert cells.used == 100
    cells.grow(0, 5)
    cells.grow(1, 7)
    assert cells.used == 112
    assert (cells.exclusive(0), cells.exclusive(1)) == (45, 7)
    cells.share(1, 2, 30)
    cells.cut(0, 0)
    assert cells.used == 67  # the first 60 are still the other two's
    cells.cut(1, 0)
    assert cells.used == 30
    cells.cut(2, 10)
    assert cells.used == 10


@pytest.mark.parametrize("seed", range(100))
def test_as_many_as_there_are_different_histories(seed: int) -> None:
    random.seed(seed)
    rows: list[list[int]] = [[] for _ in range(5)]  # each cell has a number of its own
    cells, made = SharedCells(5), 0
    for _ in range(60):
        one = random.randrange(5)
        kind = random.choice(("grow", "cut", "share"))
        if kind == "grow":
            count = random.randrange(1, 9)
            rows[one] += range(made, made + count)
            made += count
            cells.grow(one, count)
        elif kind == "cut":
            kept = random.randrange(len(rows[one]) + 1)
            rows[one] = rows[one][:kept]
            cells.cut(one, kept)
        else:
            other = random.choice([each for each in range(5) if each != one])
            count = random.randrange(len(rows[one]) + 1)
            cells.cut(other, 0)
            cells.share(one, other, count)
            rows[other] = rows[one][:count]
        assert cells.used == len({cell for row in rows for cell in row})
        for index, row in enumerate(rows):
            others = {cell for each, cells_ in enumerate(rows) if each != index for cell in cells_}
            assert cells.exclusive(index) == len(set(row) - others)
