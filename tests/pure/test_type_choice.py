"""Which type each tensor gets under a cap: as good as trying all, and never above it."""

from __future__ import annotations

import random
from itertools import product
from math import fsum

import pytest

from memfit.quantize.choice import Option, choose

_Options = dict[str, dict[str, Option]]


def _random_options(generator: random.Random, tensors: int) -> _Options:
    options: _Options = {}
    for index in range(tensors):
        weights, matters = generator.randrange(1, 60) * 1024, generator.lognormvariate(0, 2)
        options[f"t{index}"] = {
            kind: Option(
                size_bytes=int(weights * bits / 8),
                loss=matters * weights * generator.uniform(0.7, 1.3) * error,
            )
            for kind, bits, error in (("a", 2.5, 0.07), ("b", 3.4, 0.02), ("c", 4.5, 0.005), ("d", 8.5, 3e-5))
        }
    return options


def _size(options: _Options, types: dict[str, str]) -> int:
    return sum(options[name][kind].size_bytes for name, kind in types.items())


def _loss(options: _Options, types: dict[str, str]) -> float:
    return fsum(options[name][kind].loss for name, kind in types.items())


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_best_of_all(seed: int) -> None:
    generator = random.Random(seed)
    options = _random_options(generator, 6)
    cap = int(sum(one["c"].size_bytes for one in options.values()) * generator.uniform(0.7, 1.2))
    found = choose(options, cap)
    assert found is not None
    everything = (dict(zip(options, kinds, strict=True)) for kinds in product("abcd", repeat=len(options)))
    best = min(_loss(options, types) for types in everything if _size(options, types) <= cap)
    assert _size(options, found) <= cap
    assert _loss(options, found) <= best * 1.001


@pytest.mark.parametrize("seed", range(20))
def test_many_tensors_use_the_cap(seed: int) -> None:
    generator = random.Random(seed)
    options = _random_options(generator, 200)
    cap = int(sum(one["c"].size_bytes for one in options.values()) * generator.uniform(0.6, 1.7))
    found = choose(options, cap)
    assert found is not None
    assert 0.995 * cap <= _size(options, found) <= cap


def test_each_gets_its_best_where_there_is_room() -> None:
    options = _random_options(random.Random(1), 5)
    assert choose(options, 10**9) == dict.fromkeys(options, "d")
    exactly = sum(one["a"].size_bytes for one in options.values())
    assert choose(options, exactly) == dict.fromkeys(options, "a")
    assert choose(options, exactly - 1) is None


def test_nothing_to_choose_for() -> None:
    assert choose({}, 0) == {}
