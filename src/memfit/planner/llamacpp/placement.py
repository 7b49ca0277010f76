"""Decides in which place, RAM or one of several devices, every piece of a model lies. Pure.

    seconds of a request = sum over pieces (seconds at its place)
                         + sum over entries (split_seconds of the place that is entered)

A pass starts in RAM, goes through each layer's core and blocks and then the output, and its result
returns to RAM; an entry is paid wherever a piece lies elsewhere than the one before it. Counted in a
place's room: pieces and KV cache. Ignored, so to be taken off the room beforehand: compute buffers and
overhead. Ignored altogether: places that work at the same time.

It knows no engine, but two rules of one: homes of layers go up in the order of places, and the output lies
in RAM or where the last layer is at home.

HiGHS minimises it as a mixed-integer program, in three steps that keep it small:
1. Equal layers with one home are interchangeable, so the program only counts how many of them keep a block
   in a place: hundreds of unknowns for thousands, and none of the symmetry that keeps such a search from
   ending. Its bound is tight, too: mostly within 0.5 % (benchmarks/placement.py).
2. Without whole numbers it takes milliseconds, and says how many layers are at home in each place.
3. With whole numbers, homes may change only near where that puts them.
The bound of the second step holds for all homes, so it mostly proves what the third one finds; where it
does not, what is left of the time goes into all homes.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, product

__all__ = ["GAP", "Layer", "Piece", "Place", "Placement", "Problem", "cost", "layer_split", "solve"]

GAP = 0.005  # the best placement saves at most this share of an exact one's seconds
_ENOUGH = 0.002  # the share at which the search ends
_FEW_LAYERS = 8  # up to so many the first step is enough
_MOST_GROUPS = 8  # with more of them the second step takes mean layers, which bounds nothing
_WINDOW = 2  # layers
_Term = tuple[int, int]  # a column and its factor


@dataclass(frozen=True, kw_only=True)
class Place:
    """RAM, which comes first, or a device, in the engine's order."""

    name: str
    room_bytes: int  # what weights and KV cache may take there
    split_seconds: float  # per request: handing control and activations INTO this place once per pass
    least_bytes: int = 0  # what must lie there at least, whether that is fast or not


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tensors that always lie together."""

    name: str  # "blk.3.ffn_up", "blk.3.core", "output"
    size_bytes: int
    seconds: tuple[float, ...]  # per place: what this piece adds to a request if it lies there


@dataclass(frozen=True, kw_only=True)
class Layer:
    core: Piece  # attention, norms, router, shared and small tensors; its place is the layer's home
    kv_bytes: int  # KV cache; lies at the home, or in RAM if the problem says so
    blocks: tuple[Piece, ...]  # FFN or expert tensors in order of execution; any place each


@dataclass(frozen=True, kw_only=True)
class Problem:
    places: tuple[Place, ...]
    layers: tuple[Layer, ...]  # in order of execution
    output: Piece | None  # the output matrix; runs last
    kv_in_ram: bool = False

    def __post_init__(self) -> None:
        if not self.places or not self.layers:
            raise ValueError("a problem needs at least one place and one layer")
        pieces = [piece for layer in self.layers for piece in (layer.core, *layer.blocks)]
        for piece in [*pieces, self.output] if self.output else pieces:
            if len(piece.seconds) != len(self.places) or piece.size_bytes < 0:
                raise ValueError(
                    f"{piece.name}: {piece.size_bytes} bytes, seconds for {len(piece.seconds)} places"
                )


@dataclass(frozen=True, kw_only=True)
class Placement:
    homes: tuple[int, ...]  # place of each layer
    blocks: tuple[tuple[int, ...], ...]  # place of each layer's blocks
    output: int  # its place; 0 if there is none
    seconds: float  # of a request, as `cost` counts them
    used_bytes: tuple[int, ...]  # per place
    exact: bool  # proven best but for GAP, not merely good


def cost(
    problem: Problem, homes: Sequence[int], blocks: Sequence[Sequence[int]], output: int
) -> tuple[float, tuple[int, ...]]:
    """Seconds of a request and bytes used per place. Checks neither rooms nor rules."""
    places = problem.places
    seconds, used, here = 0.0, [0] * len(places), 0
    for piece, place in _steps(problem, homes, blocks, output):
        used[place] += piece.size_bytes
        seconds += piece.seconds[place] + (place != here) * places[place].split_seconds
        here = place
    for layer, home in zip(problem.layers, homes, strict=True):
        used[0 if problem.kv_in_ram else home] += layer.kv_bytes
    return seconds + (here != 0) * places[0].split_seconds, tuple(used)


def _steps(
    problem: Problem, homes: Sequence[int], blocks: Sequence[Sequence[int]], output: int
) -> Iterator[tuple[Piece, int]]:
    for layer, home, choice in zip(problem.layers, homes, blocks, strict=True):
        yield layer.core, home
        yield from zip(layer.blocks, choice, strict=True)
    if problem.output:
        yield problem.output, output


def _placement(
    problem: Problem, homes: Sequence[int], blocks: Sequence[Sequence[int]], output: int, exact: bool
) -> Placement | None:
    """None where a place overflows, or holds less than it must."""
    seconds, used = cost(problem, homes, blocks, output)
    rooms = ((place.least_bytes, place.room_bytes) for place in problem.places)
    if any(not least <= size <= most for size, (least, most) in zip(used, rooms, strict=True)):
        return None
    return Placement(
        homes=tuple(homes),
        blocks=tuple(map(tuple, blocks)),
        output=output,
        seconds=seconds,
        used_bytes=used,
        exact=exact,
    )


def layer_split(problem: Problem, *, partial: bool = False) -> Placement | None:
    """What llama.cpp does: devices take whole layers with their KV cache, the last layers first.

    `partial`: and as many blocks from the end of the layer before them as they have room for, which are no
    entry more. The output lies on the last device that holds a layer, whose room it counts in. None where
    RAM overflows, or a device holds less than it must.
    """
    homes = [0] * len(problem.layers)
    blocks: list[list[int]] = [[] for _ in homes]  # the places that are known, each layer's last blocks
    left, output = len(homes) - 1, 0
    for place in range(len(problem.places) - 1, 0, -1):
        room = problem.places[place].room_bytes
        if not output and problem.output:
            room -= problem.output.size_bytes
        while left >= 0 and (need := _rest_bytes(problem, left, len(blocks[left]))) <= room:
            blocks[left] = [place] * (len(problem.layers[left].blocks) - len(blocks[left])) + blocks[left]
            homes[left] = place
            room -= need
            left -= 1
            output = max(output, place)
        if partial and left >= 0 and place in homes:
            for block in problem.layers[left].blocks[::-1]:  # none of them is placed yet
                room -= block.size_bytes
                if room < 0:
                    break
                blocks[left].insert(0, place)
    for layer, known in zip(problem.layers, blocks, strict=True):
        known[:0] = [0] * (len(layer.blocks) - len(known))
    return _placement(problem, homes, blocks, output if problem.output else 0, False)


def _rest_bytes(problem: Problem, index: int, placed: int) -> int:
    """Of a layer whose last blocks, so many, are placed already."""
    layer = problem.layers[index]
    kv_bytes = 0 if problem.kv_in_ram else layer.kv_bytes
    rest = layer.blocks[: len(layer.blocks) - placed]
    return kv_bytes + sum(piece.size_bytes for piece in (layer.core, *rest))


def solve(problem: Problem, *, seconds_limit: float = 0.8) -> Placement | None:
    """The placement that takes a request the least time, or None where nothing fits.

    It is `exact` where that is proven within `seconds_limit`; else the better of what was found by then and
    `layer_split`. Only if there is neither does it search on, without a limit, for anything that fits.
    """
    end = time.monotonic() + seconds_limit
    split = layer_split(problem)
    if len(problem.places) == 1:
        return split and replace(split, exact=True)
    options = [split] if split else []
    windows, bound = _outlook(problem) if len(problem.layers) > _FEW_LAYERS else (None, 0.0)
    if bound == math.inf:
        return None
    for homes in (windows, None) if windows and bound else (windows,):
        if any(_proven(one, bound) for one in options) or (options and time.monotonic() > end):
            break
        program = _Program(problem, homes)
        found, least = program.placement(end - time.monotonic())
        options += [found] if found else []
        bound = max(bound, least if program.all_homes else 0.0)
    if not options and bound < math.inf:
        anything, _ = _Program(problem).placement(math.inf, priced=False)
        options = [anything] if anything else []
    if not options:
        return None
    best = min(options, key=lambda one: one.seconds)
    return replace(best, exact=_proven(best, bound))


def _proven(placement: Placement, bound: float) -> bool:
    return placement.seconds * (1 - GAP) <= bound + 1e-6  # HiGHS takes a microsecond for nothing


def _outlook(problem: Problem) -> tuple[list[list[int]] | None, float]:
    """Homes worth trying for each layer, and seconds that no placement is below: infinite if none fits."""
    few = len(_groups(problem.layers)) <= _MOST_GROUPS
    relaxed = _Program(problem if few else _alike(problem))
    values, bound = relaxed.minimise(whole=False)
    return relaxed.windows(values) if values else None, bound if few else 0.0


def _groups(layers: Sequence[Layer]) -> list[list[int]]:
    """Indices of layers that are equal but for their names."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        pieces = tuple((piece.size_bytes, piece.seconds) for piece in (layer.core, *layer.blocks))
        groups[layer.kv_bytes, pieces].append(index)
    return list(groups.values())


def _alike(problem: Problem) -> Problem:
    """The problem with the mean of all layers with as many blocks in the place of each."""
    kinds: dict[int, list[Layer]] = defaultdict(list)
    for layer in problem.layers:
        kinds[len(layer.blocks)].append(layer)
    means = {
        count: Layer(
            core=_mean([layer.core for layer in layers]),
            kv_bytes=sum(layer.kv_bytes for layer in layers) // len(layers),
            blocks=tuple(_mean(pieces) for pieces in zip(*(layer.blocks for layer in layers), strict=True)),
        )
        for count, layers in kinds.items()
    }
    return replace(problem, layers=tuple(means[len(layer.blocks)] for layer in problem.layers))


def _mean(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        name="mean",
        size_bytes=sum(piece.size_bytes for piece in pieces) // len(pieces),
        seconds=tuple(math.fsum(one) / len(pieces) for one in zip(*(p.seconds for p in pieces), strict=True)),
    )


class _Program:
    """A problem as a mixed-integer program.

    hops[i, h, n]   1 if layer i is at home in h and what follows it (a layer's home, the output, the
                    result) lies in n: a path through the layers.
    counts[g, h]    per block and place: how many layers of group g, equal layers, that are at home in h
                    keep the block there. As many as can be keep a block where they keep the block
                    before it, so entries into a place are what its count has grown by.
    """

    def __init__(self, problem: Problem, windows: Sequence[Sequence[int]] | None = None) -> None:
        """`windows` are the homes that each layer may have; all if None."""
        self.problem = problem
        self.places = range(len(problem.places))
        self.all_homes = windows is None or all(len(window) == len(self.places) for window in windows)
        self.costs: list[float] = []  # of each column
        self.limits: list[float] = []  # of each column; all start at 0
        self.integral: list[int] = []  # 1 for a column of whole numbers
        self.rows: list[tuple[dict[int, int], float, float]] = []  # factors of columns, least, most
        self.used: list[list[_Term]] = [[] for _ in self.places]  # bytes of each place
        self.hops: dict[tuple[int, int, int], int] = {}
        self.counts: dict[tuple[int, int], list[list[int]]] = {}
        self.groups = _groups(problem.layers)
        self._add_hops(windows or [self.places] * len(problem.layers))
        for group, home in product(range(len(self.groups)), self.places):
            self._add_blocks(group, home)
        self._add_rooms()

    def _column(self, seconds: float, limit: int, *, integral: bool = True) -> int:
        self.costs.append(seconds)
        self.limits.append(limit)
        self.integral.append(integral)
        return len(self.costs) - 1

    def _row(self, terms: Iterable[_Term], least: float, most: float) -> None:
        factors: dict[int, int] = defaultdict(int)
        for column, factor in terms:
            factors[column] += factor
        self.rows.append((factors, least, most))

    def _add_hops(self, windows: Sequence[Sequence[int]]) -> None:
        problem, enter = self.problem, [place.split_seconds for place in self.problem.places]
        last = len(problem.layers) - 1
        for index, layer in enumerate(problem.layers):
            for home, after in product(windows[index], self.places):
                ends = (0, home) if problem.output else (0,)
                if after not in ends if index == last else after < home or after not in windows[index + 1]:
                    continue
                hop = self.hops[index, home, after] = self._column(layer.core.seconds[home], 1)
                self.used[home].append((hop, layer.core.size_bytes))
                self.used[0 if problem.kv_in_ram else home].append((hop, layer.kv_bytes))
                if index == 0 and home:
                    self.costs[hop] += enter[home]
                if index == last and problem.output:
                    self.costs[hop] += problem.output.seconds[after] + (after != 0) * enter[0]
                    self.used[after].append((hop, problem.output.size_bytes))
        self._row(((hop, 1) for (index, *_), hop in self.hops.items() if index == 0), 1, 1)
        for index, home in product(range(last), self.places):
            arriving = [(hop, 1) for hop in self._hops([index], after=home)]
            self._row(arriving + [(hop, -1) for hop in self._hops([index + 1], home=home)], 0, 0)

    def _hops(self, layers: Sequence[int], home: int | None = None, after: int | None = None) -> list[int]:
        """Columns of these layers' hops; None stands for any place."""
        homes = self.places if home is None else (home,)
        afters = self.places if after is None else (after,)
        return [self.hops[key] for key in product(layers, homes, afters) if key in self.hops]

    def _add_blocks(self, group: int, home: int) -> None:
        members = self.groups[group]
        hops = self._hops(members, home)
        if not hops:
            return
        counts = self.counts[group, home] = []
        before = [hops if place == home else [] for place in self.places]  # they add up to its count
        for block in self.problem.layers[members[0]].blocks:
            columns = [self._column(seconds, len(members)) for seconds in block.seconds]
            for place, column in enumerate(columns):
                self.used[place].append((column, block.size_bytes))
            self._row([(column, 1) for column in columns] + [(hop, -1) for hop in hops], 0, 0)
            self._add_entries(before, [[column] for column in columns], len(members))
            counts.append(columns)
            before = [[column] for column in columns]
        self._add_entries(before, [self._hops(members, home, place) for place in self.places], len(members))

    def _add_entries(self, before: list[list[int]], after: list[list[int]], most: int) -> None:
        for place, old, new in zip(self.problem.places, before, after, strict=True):
            if new and place.split_seconds:
                entries = self._column(place.split_seconds, most, integral=False)
                terms = [(entries, 1), *((column, 1) for column in old), *((column, -1) for column in new)]
                self._row(terms, 0, math.inf)

    def _add_rooms(self) -> None:
        """In the largest unit that divides every size, so that HiGHS's tolerances do not count."""
        unit = math.gcd(*(size for terms in self.used for _, size in terms)) or 1
        for place, terms in zip(self.problem.places, self.used, strict=True):
            terms_in_units = ((column, size // unit) for column, size in terms)
            self._row(terms_in_units, -(-place.least_bytes // unit), place.room_bytes // unit)

    def minimise(
        self, seconds_limit: float = math.inf, *, whole: bool = True, priced: bool = True
    ) -> tuple[list[float] | None, float]:
        """The best columns found, and seconds that none is below: infinite if nothing fits.

        Without `whole` numbers it bounds the problem; if not `priced`, the first that fits is the best.
        """
        import highspy  # 0.07 s

        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in {
            "output_flag": False,
            "threads": 1,
            "time_limit": max(0.0, seconds_limit),
            "mip_rel_gap": _ENOUGH,
            "mip_feasibility_tolerance": 1e-9,
            "mip_pool_age_limit": 2,  # forgets cuts early, which finds good placements sooner
        }.items():
            solver.setOptionValue(name, value)
        width = len(self.costs)
        factors = [list(row.values()) for row, _, _ in self.rows]
        solver.passModel(
            width,
            len(self.rows),
            sum(map(len, factors)),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMinimize),
            0.0,
            self.costs if priced else [0.0] * width,
            [0.0] * width,
            self.limits,
            [least for _, least, _ in self.rows],
            [most for _, _, most in self.rows],
            list(accumulate(map(len, factors[:-1]), initial=0)),
            list(chain.from_iterable(row for row, _, _ in self.rows)),
            list(chain.from_iterable(factors)),
            self.integral if whole else [0] * width,
        )
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        # Columns are bounded, so the second of these means the first.
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None, math.inf
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        bound = info.objective_function_value if status == highspy.HighsModelStatus.kOptimal else 0.0
        if whole:  # HiGHS leaves out what beats the best found by less than the share it may end at
            bound = min(info.mip_dual_bound, info.objective_function_value * (1 - _ENOUGH))
        return list(solver.getSolution().col_value) if found else None, bound

    def windows(self, values: Sequence[float]) -> list[list[int]]:
        """Homes for each layer, near those that these columns give to as many layers in their order."""
        layers = range(len(self.problem.layers))
        counts = [sum(values[hop] for hop in self._hops(layers, home)) for home in self.places]
        starts = list(accumulate(counts, initial=0.0))
        return [
            [home for home in self.places if starts[home] - _WINDOW <= index < starts[home + 1] + _WINDOW]
            for index in layers
        ]

    def placement(self, seconds_limit: float, *, priced: bool = True) -> tuple[Placement | None, float]:
        """The best placement found, and the bound; see `minimise`."""
        values, bound = self.minimise(seconds_limit, priced=priced)
        return self._read([round(value) for value in values]) if values else None, bound

    def _read(self, values: list[int]) -> Placement | None:
        """The placement that these columns mean, or None where rounding them overflowed a place."""
        path = [(home, after) for (_, home, after), hop in self.hops.items() if values[hop]]
        blocks: list[tuple[int, ...]] = [() for _ in path]
        for (group, home), counts in self.counts.items():
            layers = [index for index in self.groups[group] if path[index][0] == home]
            routes: list[tuple[int, ...]] = [(home,) for _ in layers]
            for columns in counts:
                there = [place for place, column in enumerate(columns) for _ in range(values[column])]
                routes = [
                    (*route, there[i]) for route, i in zip(routes, _partners(routes, there), strict=True)
                ]
            there = [path[index][1] for index in layers]
            for route, i in zip(routes, _partners(routes, there), strict=True):
                blocks[layers[i]] = route[1:]
        homes = [home for home, _ in path]
        return _placement(self.problem, homes, blocks, path[-1][1], exact=False)


def _partners(routes: Sequence[tuple[int, ...]], there: Sequence[int]) -> list[int]:
    """An index into `there` for each route: as far as possible to the place where the route has ended."""
    free: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(there):
        free[place].append(index)
    staying = [free[route[-1]].pop(0) if free[route[-1]] else None for route in routes]
    rest = iter([index for indices in free.values() for index in indices])
    return [next(rest) if index is None else index for index in staying]
