"""Finds the placement that takes a request the least time, by HiGHS: a mixed-integer program. Pure.

Three steps keep the program small:
1. Equal layers on one device are interchangeable, so the program only counts how many of them keep an FFN
   tensor on a device: hundreds of unknowns for thousands, and none of the symmetry that keeps such a search
   from ending. Its bound is tight, too: mostly within 0.5 % (benchmarks/placement.py).
2. Without whole numbers it takes milliseconds, and says how many layers lie on each device.
3. With whole numbers, layers may change their device only near where that puts them.
The bound of the second step holds for all devices, so it mostly proves what the third one finds; where it
does not, what is left of the time goes into all devices.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, product

from memfit.planner.integer_program import IntegerProgram
from memfit.planner.llamacpp.placement import Layer, Piece, Placement, Problem, checked_placement, layer_split

__all__ = ["GAP", "solve"]

GAP = 0.005  # the best placement saves at most this share of an exact one's seconds
_ENOUGH = 0.002  # the share at which the search ends
_FEW_LAYERS = 8  # up to so many the first step is enough
_MOST_GROUPS = 8  # with more of them the second step takes mean layers, which bounds nothing
_WINDOW = 2  # layers


def solve(problem: Problem, *, seconds_limit: float = 0.8) -> Placement | None:
    """The placement that takes a request the least time, or None where nothing fits.

    It is `exact` where that is proven within `seconds_limit`; else the better of what was found by then and
    `layer_split`. Only if there is neither does it search on, without a limit, for anything that fits.
    """
    end = time.monotonic() + seconds_limit
    split = layer_split(problem)
    if len(problem.devices) == 1:
        return split and replace(split, exact=True)
    options = [split] if split else []
    windows, bound = _outlook(problem) if len(problem.layers) > _FEW_LAYERS else (None, 0.0)
    if bound == math.inf:
        return None
    for layer_devices in (windows, None) if windows and bound else (windows,):
        if any(_proven(one, bound) for one in options) or (options and time.monotonic() > end):
            break
        program = _Program(problem, layer_devices)
        found, least = program.placement(end - time.monotonic())
        options += [found] if found else []
        bound = max(bound, least if program.all_devices else 0.0)
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
    """Devices worth trying for each layer, and seconds that no placement is below: infinite if none fits."""
    few = len(_groups(problem.layers)) <= _MOST_GROUPS
    relaxed = _Program(problem if few else _alike(problem))
    values, bound = relaxed.minimise(whole=False)
    return relaxed.windows(values) if values else None, bound if few else 0.0


def _groups(layers: Sequence[Layer]) -> list[list[int]]:
    """Indices of layers that are equal but for their names."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        pieces = tuple((piece.size_bytes, piece.seconds) for piece in (layer.core, *layer.ffn_tensors))
        groups[layer.kv_bytes, pieces].append(index)
    return list(groups.values())


def _alike(problem: Problem) -> Problem:
    """The problem with the mean of all layers with as many FFN tensors in the place of each."""
    kinds: dict[int, list[Layer]] = defaultdict(list)
    for layer in problem.layers:
        kinds[len(layer.ffn_tensors)].append(layer)
    means = {
        count: Layer(
            core=_mean([layer.core for layer in layers]),
            kv_bytes=sum(layer.kv_bytes for layer in layers) // len(layers),
            ffn_tensors=tuple(
                _mean(pieces) for pieces in zip(*(layer.ffn_tensors for layer in layers), strict=True)
            ),
        )
        for count, layers in kinds.items()
    }
    return replace(problem, layers=tuple(means[len(layer.ffn_tensors)] for layer in problem.layers))


def _mean(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        name="mean",
        size_bytes=sum(piece.size_bytes for piece in pieces) // len(pieces),
        seconds=tuple(math.fsum(one) / len(pieces) for one in zip(*(p.seconds for p in pieces), strict=True)),
    )


class _Program(IntegerProgram):
    """A problem as a mixed-integer program.

    hops[i, h, n]   1 if layer i is on device h and what follows it (a layer's device, the output, the
                    result) is on n: a path through the layers.
    counts[g, h]    per FFN tensor and device: how many layers of group g, equal layers, that are on device h
                    keep the tensor there. As many as can be keep an FFN tensor where they keep the tensor
                    before it, so graph splits into a device are what its count has grown by.
    """

    def __init__(self, problem: Problem, windows: Sequence[Sequence[int]] | None = None) -> None:
        """`windows` are the devices that each layer may have; all if None."""
        super().__init__(enough=_ENOUGH)
        self.problem = problem
        self.devices = range(len(problem.devices))
        self.all_devices = windows is None or all(len(window) == len(self.devices) for window in windows)
        self.used: list[list[tuple[int, int]]] = [[] for _ in self.devices]  # bytes of each device
        self.hops: dict[tuple[int, int, int], int] = {}
        self.counts: dict[tuple[int, int], list[list[int]]] = {}
        self.groups = _groups(problem.layers)
        self._add_hops(windows or [self.devices] * len(problem.layers))
        for group, layer_device in product(range(len(self.groups)), self.devices):
            self._add_ffn_tensors(group, layer_device)
        self._add_rooms()

    def _add_hops(self, windows: Sequence[Sequence[int]]) -> None:
        problem, enter = self.problem, [device.split_seconds for device in self.problem.devices]
        last = len(problem.layers) - 1
        for index, layer in enumerate(problem.layers):
            for layer_device, after in product(windows[index], self.devices):
                if index < last:
                    follows = after >= layer_device and after in windows[index + 1]
                else:
                    follows = after in ((0, layer_device) if problem.output else (0,))
                if not follows:
                    continue
                hop = self.column(layer.core.seconds[layer_device], 1)
                self.hops[index, layer_device, after] = hop
                self.used[layer_device].append((hop, layer.core.size_bytes + layer.kv_bytes))
                if index == 0 and layer_device:
                    self.costs[hop] += enter[layer_device]
                if index == last and problem.output:
                    self.costs[hop] += problem.output.seconds[after] + (after != 0) * enter[0]
                    self.used[after].append((hop, problem.output.size_bytes))
        self.row(((hop, 1) for (index, *_), hop in self.hops.items() if index == 0), 1, 1)
        for index, layer_device in product(range(last), self.devices):
            arriving = [(hop, 1) for hop in self._hops([index], after=layer_device)]
            leaving = [(hop, -1) for hop in self._hops([index + 1], layer_device)]
            self.row(arriving + leaving, 0, 0)

    def _hops(
        self, layers: Sequence[int], layer_device: int | None = None, after: int | None = None
    ) -> list[int]:
        """Columns of these layers' hops; None stands for any device."""
        layer_devices = self.devices if layer_device is None else (layer_device,)
        afters = self.devices if after is None else (after,)
        return [self.hops[key] for key in product(layers, layer_devices, afters) if key in self.hops]

    def _add_ffn_tensors(self, group: int, layer_device: int) -> None:
        members = self.groups[group]
        hops = self._hops(members, layer_device)
        if not hops:
            return
        counts = self.counts[group, layer_device] = []
        # They add up to its count.
        before = [hops if device == layer_device else [] for device in self.devices]
        for block in self.problem.layers[members[0]].ffn_tensors:
            columns = [self.column(seconds, len(members)) for seconds in block.seconds]
            for device, column in enumerate(columns):
                self.used[device].append((column, block.size_bytes))
            self.row([(column, 1) for column in columns] + [(hop, -1) for hop in hops], 0, 0)
            self._add_splits(before, [[column] for column in columns], len(members))
            counts.append(columns)
            before = [[column] for column in columns]
        after = [self._hops(members, layer_device, device) for device in self.devices]
        self._add_splits(before, after, len(members))

    def _add_splits(self, before: list[list[int]], after: list[list[int]], most: int) -> None:
        for device, old, new in zip(self.problem.devices, before, after, strict=True):
            if new and device.split_seconds:
                splits = self.column(device.split_seconds, most, integral=False)
                terms = [(splits, 1), *((column, 1) for column in old), *((column, -1) for column in new)]
                self.row(terms, 0, math.inf)

    def _add_rooms(self) -> None:
        """In the largest unit that divides every size, so that HiGHS's tolerances do not count."""
        unit = math.gcd(*(size for terms in self.used for _, size in terms)) or 1
        for device, terms in zip(self.problem.devices, self.used, strict=True):
            terms_in_units = ((column, size // unit) for column, size in terms)
            self.row(terms_in_units, -(-device.least_bytes // unit), device.room_bytes // unit)

    def windows(self, values: Sequence[float]) -> list[list[int]]:
        """Devices for each layer, near those that these columns give to as many layers in their order."""
        layers = range(len(self.problem.layers))
        counts = [
            sum(values[hop] for hop in self._hops(layers, layer_device)) for layer_device in self.devices
        ]
        starts = list(accumulate(counts, initial=0.0))
        return [
            [
                layer_device
                for layer_device in self.devices
                if starts[layer_device] - _WINDOW <= index < starts[layer_device + 1] + _WINDOW
            ]
            for index in layers
        ]

    def placement(self, seconds_limit: float, *, priced: bool = True) -> tuple[Placement | None, float]:
        """The best placement found, and the bound; see `minimise`."""
        values, bound = self.minimise(seconds_limit, priced=priced)
        return self._read([round(value) for value in values]) if values else None, bound

    def _read(self, values: list[int]) -> Placement | None:
        """The placement that these columns mean, or None where rounding them overflowed a device."""
        path = [(layer_device, after) for (_, layer_device, after), hop in self.hops.items() if values[hop]]
        ffn_devices: list[tuple[int, ...]] = [() for _ in path]
        for (group, layer_device), counts in self.counts.items():
            layers = [index for index in self.groups[group] if path[index][0] == layer_device]
            routes: list[tuple[int, ...]] = [(layer_device,) for _ in layers]
            for columns in counts:
                there = [device for device, column in enumerate(columns) for _ in range(values[column])]
                routes = [
                    (*route, there[i]) for route, i in zip(routes, _partners(routes, there), strict=True)
                ]
            there = [path[index][1] for index in layers]
            for route, i in zip(routes, _partners(routes, there), strict=True):
                ffn_devices[layers[i]] = route[1:]
        layer_devices = [layer_device for layer_device, _ in path]
        return checked_placement(self.problem, layer_devices, ffn_devices, path[-1][1])


def _partners(routes: Sequence[tuple[int, ...]], there: Sequence[int]) -> list[int]:
    """An index into `there` for each route: as far as possible to the device where the route has ended."""
    free: dict[int, list[int]] = defaultdict(list)
    for index, device in enumerate(there):
        free[device].append(index)
    staying = [free[route[-1]].pop(0) if free[route[-1]] else None for route in routes]
    rest = iter([index for indices in free.values() for index in indices])
    return [next(rest) if index is None else index for index in staying]
