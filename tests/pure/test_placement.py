"""The placement solver against sums by hand and against every legal assignment of small problems."""

from __future__ import annotations

import itertools
import random

import pytest

from memfit.planner.llamacpp.placement import DeviceRoom, Layer, Piece, Placement, Problem, cost, layer_split
from memfit.planner.llamacpp.solver import GAP, solve


def _piece(size_bytes: int, *seconds: float) -> Piece:
    return Piece(name="piece", size_bytes=size_bytes, seconds=seconds)


def _devices(*rooms: int, split_seconds: float = 0.0) -> tuple[DeviceRoom, ...]:
    return tuple(DeviceRoom(room_bytes=room, split_seconds=split_seconds) for room in rooms)


def _solve(problem: Problem) -> Placement | None:
    """With time enough for a busy machine: no test here is about speed."""
    return solve(problem, seconds_limit=60)


def _found(problem: Problem) -> Placement:
    found = _solve(problem)
    assert found is not None
    return found


def _layer(*, kv_bytes: int = 0) -> Layer:
    """Its core gains 9 s on a device, its block 1 s, for 10 bytes each."""
    return Layer(core=_piece(10, 10, 1), kv_bytes=kv_bytes, ffn_tensors=(_piece(10, 2, 1),))


def _two_layers(split_seconds: float) -> Problem:
    return Problem(
        devices=_devices(100, 20, split_seconds=split_seconds), layers=(_layer(), _layer()), output=None
    )


def test_cost_counts_pieces_kv_and_every_entry() -> None:
    devices = (
        DeviceRoom(room_bytes=0, split_seconds=0.5),
        DeviceRoom(room_bytes=0, split_seconds=0.25),
    )
    layers = (_layer(kv_bytes=3), _layer(kv_bytes=4))
    problem = Problem(devices=devices, layers=layers, output=_piece(7, 5, 3))
    # RAM, block into the GPU, core and block there, output back in RAM.
    assert cost(problem, (0, 1), ((1,), (1,)), 0) == (10 + 1 + 1 + 1 + 5 + 0.25 + 0.5, (10 + 3 + 7, 30 + 4))
    # The result returns from the GPU.
    assert cost(problem, (0, 1), ((0,), (1,)), 1) == (10 + 2 + 1 + 1 + 3 + 0.25 + 0.5, (20 + 3, 20 + 4 + 7))


def test_cores_gain_more_than_blocks_where_entries_are_free() -> None:
    found = _found(_two_layers(0))
    assert (found.layer_devices, found.ffn_devices, found.output) == ((1, 1), ((0,), (0,)), 0)
    assert (found.seconds, found.used_bytes, found.exact) == (1 + 2 + 1 + 2, (20, 20), True)


def test_four_entries_of_three_seconds_still_pay() -> None:
    assert _found(_two_layers(3)).seconds == 6 + 4 * 3  # a whole layer on the device: 14 + 2 * 3


def test_entries_too_dear_keep_a_layer_together() -> None:
    found = _found(_two_layers(4.5))
    assert found.seconds == 10 + 2 + 1 + 1 + 2 * 4.5  # the cores: 6 + 4 * 4.5; all in RAM: 24
    assert found.layer_devices == (0, 1)


def test_kv_lies_at_home() -> None:
    layers = (_layer(kv_bytes=10), _layer(kv_bytes=10))
    at_home = Problem(devices=_devices(100, 20), layers=layers, output=None)
    assert _found(at_home).layer_devices == (0, 1)
    assert _found(at_home).used_bytes == (10 + 10 + 10 + 10, 10 + 10)  # core and KV of one layer


def test_the_output_lies_in_ram_or_with_the_last_layer() -> None:
    # The first device has room for the output only, the second for the layer only.
    layer = Layer(core=_piece(50, 10, 1, 1), kv_bytes=0, ffn_tensors=())
    problem = Problem(devices=_devices(100, 20, 50), layers=(layer,), output=_piece(20, 8, 1, 1))
    found = _found(problem)
    assert (found.layer_devices, found.output, found.seconds) == ((2,), 0, 1 + 8)


def test_homes_go_up() -> None:
    # The first layer gains on device 2 and the second on device 1: only one of them can have it.
    first = Layer(core=_piece(10, 9, 9, 1), kv_bytes=0, ffn_tensors=())
    second = Layer(core=_piece(10, 9, 2, 9), kv_bytes=0, ffn_tensors=())
    found = _found(Problem(devices=_devices(100, 10, 10), layers=(first, second), output=None))
    assert (found.layer_devices, found.seconds) == ((0, 1), 11)


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_something_that_fits_is_found_where_whole_layers_do_not(limit: float) -> None:
    # A layer fits neither in RAM nor on the device, but its parts do.
    problem = Problem(devices=_devices(10, 10), layers=(_layer(),), output=None)
    assert layer_split(problem) is None
    found = solve(problem, seconds_limit=limit)
    assert found is not None
    assert found.used_bytes == (10, 10)


def test_a_device_slower_than_ram_stays_empty() -> None:
    layer = Layer(core=_piece(10, 1, 2), kv_bytes=5, ffn_tensors=(_piece(10, 1, 3),))
    found = _found(Problem(devices=_devices(1000, 1000), layers=(layer,) * 20, output=_piece(10, 1, 2)))
    assert found.used_bytes == (20 * 25 + 10, 0)


def test_ram_alone() -> None:
    layer = Layer(core=_piece(10, 1), kv_bytes=5, ffn_tensors=(_piece(10, 2),))
    found = _found(Problem(devices=_devices(60), layers=(layer, layer), output=_piece(10, 4)))
    assert (found.layer_devices, found.ffn_devices, found.seconds) == ((0, 0), ((0,), (0,)), 10)
    assert (found.used_bytes, found.exact) == ((60,), True)
    assert _solve(Problem(devices=_devices(59), layers=(layer, layer), output=_piece(10, 4))) is None


@pytest.mark.parametrize("count", [1, 30])
def test_rooms_smaller_than_anything(count: int) -> None:
    problem = Problem(devices=_devices(9, 9), layers=(_layer(),) * count, output=None)
    assert _solve(problem) is None
    assert _solve(Problem(devices=_devices(1000, 9), layers=(_layer(),) * count, output=None)) is not None


def test_pieces_without_bytes_fit_everywhere() -> None:
    layer = Layer(core=_piece(0, 2, 1), kv_bytes=0, ffn_tensors=(_piece(0, 2, 1),))
    found = _found(Problem(devices=_devices(0, 0), layers=(layer, layer), output=_piece(0, 2, 1)))
    assert (found.seconds, found.used_bytes) == (5, (0, 0))


def test_a_room_is_kept_to_the_byte() -> None:
    # Sizes without a common divisor, as large as real ones.
    core, block = 90_000_001, 180_000_007
    layer = Layer(core=_piece(core, 10, 1), kv_bytes=0, ffn_tensors=(_piece(block, 20, 2),) * 3)
    ram, device = 40 * core + 60 * block, 60 * block
    for short, fits in ((0, True), (1, False)):
        problem = Problem(devices=_devices(ram - short, device), layers=(layer,) * 40, output=None)
        assert (_solve(problem) is not None) is fits


def test_many_layers_reach_what_the_bytes_allow() -> None:
    # Entries are free and every byte gains the same, so only the bytes on each device count.
    layer = Layer(core=_piece(3, 3, 1.5, 1), kv_bytes=0, ffn_tensors=(_piece(5, 5, 2.5, 5 / 3),) * 3)
    found = _found(Problem(devices=_devices(1000, 300, 300), layers=(layer,) * 40, output=None))
    least = (40 * 18 - 600) + 300 / 2 + 300 / 3
    assert least <= found.seconds <= least / (1 - GAP)
    assert found.exact


def test_layers_that_all_differ() -> None:
    chance = random.Random(2)
    layers = tuple(
        Layer(
            core=_piece(size, size, size / 8), kv_bytes=1, ffn_tensors=(_piece(2 * size, size, size / 4),) * 2
        )
        for size in (chance.randint(50, 150) for _ in range(30))
    )
    whole = sum(5 * layer.core.size_bytes + 1 for layer in layers)
    problem = Problem(devices=_devices(whole // 2, whole * 6 // 10), layers=layers, output=None)
    split, found = layer_split(problem), solve(problem, seconds_limit=5)
    assert split is not None and found is not None
    assert found.seconds < split.seconds
    assert list(found.layer_devices) == sorted(found.layer_devices)
    assert cost(problem, found.layer_devices, found.ffn_devices, found.output) == (
        found.seconds,
        found.used_bytes,
    )


def test_layer_split_fills_devices_from_the_last_layer_backwards() -> None:
    layer = Layer(core=_piece(10, 4, 2, 1), kv_bytes=5, ffn_tensors=(_piece(10, 4, 2, 1),))
    problem = Problem(devices=_devices(1000, 60, 40), layers=(layer,) * 5, output=_piece(10, 3, 2, 1))
    # 25 bytes a layer: one and the output on the second device, two on the first, two in RAM.
    split = layer_split(problem)
    assert split is not None
    assert (split.layer_devices, split.output) == ((0, 0, 1, 1, 2), 2)
    assert split.ffn_devices == ((0,), (0,), (1,), (1,), (2,))
    assert (split.used_bytes, split.seconds, split.exact) == ((50, 50, 35), 16 + 8 + 2 + 1, False)


def test_layer_split_skips_a_device_without_room_for_a_layer_and_the_output() -> None:
    layer = Layer(core=_piece(10, 4, 2, 1), kv_bytes=5, ffn_tensors=(_piece(10, 4, 2, 1),))
    problem = Problem(devices=_devices(1000, 60, 34), layers=(layer,) * 3, output=_piece(10, 3, 2, 1))
    split = layer_split(problem)
    assert split is not None
    assert (split.layer_devices, split.output) == ((0, 1, 1), 1)


def test_layer_split_is_none_where_ram_overflows() -> None:
    problem = Problem(devices=_devices(19, 20), layers=(_layer(), _layer()), output=None)
    assert layer_split(problem) is None


# --- whole layers, and blocks of the one before them ---


def _blocks_layer(*seconds: float) -> Layer:
    """33 bytes: a core of 10 with 5 of KV, then blocks of 4, 6 and 8; a byte takes `seconds` per device."""

    def piece(size: int) -> Piece:
        return _piece(size, *(size * one for one in seconds))

    return Layer(core=piece(10), kv_bytes=5, ffn_tensors=(piece(4), piece(6), piece(8)))


def _partial(problem: Problem) -> Placement:
    found = layer_split(problem, partial=True)
    assert found is not None
    assert cost(problem, found.layer_devices, found.ffn_devices, found.output) == (
        found.seconds,
        found.used_bytes,
    )
    return found


@pytest.mark.parametrize(
    ("more", "ffn_devices"),
    [
        (0, (0, 0, 0)),
        (7, (0, 0, 0)),  # a block of 4 or 6 would fit, but it is not the last
        (8, (0, 0, 1)),
        (13, (0, 0, 1)),
        (14, (0, 1, 1)),
        (18, (1, 1, 1)),
        (32, (1, 1, 1)),  # not the core without its KV
        (33, None),  # a whole layer more
    ],
)
@pytest.mark.parametrize("output", [0, 7])
def test_blocks_before_the_whole_layers_by_hand(
    more: int, ffn_devices: tuple[int, ...] | None, output: int
) -> None:
    """Two whole layers of four, with the output where there is one, and so many bytes more."""
    problem = Problem(
        devices=_devices(1000, 2 * 33 + output + more),
        layers=(_blocks_layer(2, 1),) * 4,
        output=_piece(output, 2, 1) if output else None,
    )
    found = _partial(problem)
    if ffn_devices is None:
        assert (found.layer_devices, found.ffn_devices) == ((0, 1, 1, 1), ((0, 0, 0), *[(1, 1, 1)] * 3))
    else:
        assert (found.layer_devices, found.ffn_devices) == (
            (0, 0, 1, 1),
            ((0, 0, 0), ffn_devices, *[(1, 1, 1)] * 2),
        )
    there = sum(size for size, device in zip((4, 6, 8), ffn_devices or (), strict=False) if device)
    device = (2 if ffn_devices else 3) * 33 + there + output
    assert found.used_bytes == (4 * 33 + output - device, device)
    assert (found.output, found.exact) == (1 if output else 0, False)


@pytest.mark.parametrize("more", [0, 8, 14, 18])
def test_blocks_before_the_whole_layers_cost_no_entry(more: int) -> None:
    """The device is entered once and left once, at 100 s each, however many blocks go with its layers."""
    layers = (_blocks_layer(2, 1),) * 3
    problem = Problem(devices=_devices(1000, 33 + more, split_seconds=100), layers=layers, output=None)
    # 28 bytes of weights in a layer, at 2 s in RAM and 1 s there.
    assert _partial(problem).seconds == 3 * 28 * 2 - (28 + more) + 2 * 100


@pytest.mark.parametrize(("room", "output"), [(32, 0), (33 + 6, 7)])
def test_no_blocks_where_no_whole_layer_fits(room: int, output: int) -> None:
    """All three blocks would; with an output of 7, a layer without it."""
    problem = Problem(
        devices=_devices(1000, room),
        layers=(_blocks_layer(2, 1),) * 2,
        output=_piece(output, 2, 1) if output else None,
    )
    found = _partial(problem)
    assert found == layer_split(problem)
    assert (found.layer_devices, found.output, found.used_bytes) == ((0, 0), 0, (66 + output, 0))


def test_no_blocks_where_no_layer_is_left() -> None:
    problem = Problem(devices=_devices(1000, 1000), layers=(_blocks_layer(2, 1),) * 2, output=None)
    found = _partial(problem)
    assert found == layer_split(problem)
    assert (found.layer_devices, found.used_bytes) == ((1, 1), (0, 66))


@pytest.mark.parametrize(
    ("room", "layer_devices", "ffn_devices", "used"),
    [
        # The rest of a layer of which the second device has blocks of 6 and 8: 19 bytes, its KV with it.
        (18, (0, 0, 2), ((0, 0, 0), (0, 2, 2)), (33 + 19, 0, 33 + 14)),
        (19, (0, 1, 2), ((0, 0, 0), (1, 2, 2)), (33, 19, 33 + 14)),
        (19 + 8, (0, 1, 2), ((0, 0, 1), (1, 2, 2)), (33 - 8, 19 + 8, 33 + 14)),
        (19 + 33, (1, 1, 2), ((1, 1, 1), (1, 2, 2)), (0, 19 + 33, 33 + 14)),
    ],
)
def test_a_layer_is_shared_by_two_devices(
    room: int, layer_devices: tuple[int, ...], ffn_devices: tuple[tuple[int, ...], ...], used: tuple[int, ...]
) -> None:
    layers = (_blocks_layer(4, 2, 1),) * 3
    found = _partial(Problem(devices=_devices(1000, room, 33 + 14 + 3), layers=layers, output=None))
    assert (found.layer_devices, found.ffn_devices) == (layer_devices, (*ffn_devices, (2, 2, 2)))
    assert found.used_bytes == used


def test_a_last_device_without_a_whole_layer_is_skipped() -> None:
    layers = (_blocks_layer(4, 2, 1),) * 3
    found = _partial(
        Problem(devices=_devices(1000, 33 + 8 + 7, 32 + 7), layers=layers, output=_piece(7, 3, 2, 1))
    )
    assert (found.layer_devices, found.ffn_devices[1], found.output) == ((0, 0, 1), (0, 0, 1), 1)
    assert found.used_bytes == (33 + 25, 33 + 8 + 7, 0)


def test_blocks_on_a_device_may_be_what_ram_lacks() -> None:
    layers = (_blocks_layer(2, 1),) * 2
    for ram, fits in ((33 - 14, True), (33 - 15, False)):
        problem = Problem(devices=_devices(ram, 33 + 14), layers=layers, output=None)
        assert layer_split(problem) is None
        assert (layer_split(problem, partial=True) is not None) is fits


def test_a_device_that_must_hold_more_than_whole_layers() -> None:
    layers = (_blocks_layer(2, 1),) * 2
    for least, fits in ((33 + 14, True), (33 + 15, False)):
        device = DeviceRoom(room_bytes=33 + 17, split_seconds=0.0, least_bytes=least)
        problem = Problem(devices=(*_devices(1000), device), layers=layers, output=None)
        assert layer_split(problem) is None
        assert (layer_split(problem, partial=True) is not None) is fits


def test_whole_layers_and_blocks_of_random_problems_keep_to_the_rules() -> None:
    more = 0
    for seed in range(300):
        problem = _random_problem(random.Random(seed))
        whole, found = layer_split(problem), layer_split(problem, partial=True)
        if found is None:
            assert whole is None, seed
            continue
        rooms = [device.room_bytes for device in problem.devices]
        assert all(used <= room for used, room in zip(found.used_bytes, rooms, strict=True)), seed
        path = [
            device
            for layer_device, ffn_devices in zip(found.layer_devices, found.ffn_devices, strict=True)
            for device in (layer_device, *ffn_devices)
        ]
        assert path == sorted(path), seed  # so each device is entered once at most
        assert found.output in ((0, found.layer_devices[-1]) if problem.output else (0,)), seed
        assert set(path) <= {0, *found.layer_devices}, (
            seed
        )  # blocks only where a whole layer, or the rest of one, is
        if whole:
            assert found.used_bytes[0] <= whole.used_bytes[0], seed
            more += found.used_bytes[0] < whole.used_bytes[0]
    assert more > 10  # the rules are tried


def test_a_problem_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="at least one device and one layer"):
        Problem(devices=_devices(1), layers=(), output=None)
    with pytest.raises(ValueError, match="piece: 10 bytes, seconds for 2 devices"):
        Problem(devices=_devices(1, 1, 1), layers=(_layer(),), output=None)


def _random_problem(chance: random.Random) -> Problem:
    count = chance.choice((2, 3))

    def piece() -> Piece:
        size = 0 if chance.random() < 0.1 else chance.randint(1, 12)
        return _piece(size, *(round(3 * chance.random(), 2) for _ in range(count)))

    kinds = [
        Layer(
            core=piece(),
            kv_bytes=chance.randint(0, 6),
            ffn_tensors=tuple(piece() for _ in range(chance.randint(0, 2))),
        )
        for _ in range(chance.randint(1, 2))
    ]
    layers = tuple(chance.choice(kinds) for _ in range(chance.randint(1, 3)))
    output = piece() if chance.random() < 0.6 else None
    pieces = [piece for layer in layers for piece in (layer.core, *layer.ffn_tensors)]
    whole = sum(one.size_bytes for one in pieces) + sum(layer.kv_bytes for layer in layers)
    devices = tuple(
        DeviceRoom(
            room_bytes=int(whole * chance.random() * (0.9 if index else 1.3)),
            split_seconds=chance.choice((0.0, chance.random())),
        )
        for index in range(count)
    )
    return Problem(devices=devices, layers=layers, output=output)


def _least_seconds(problem: Problem) -> float | None:
    """The best of all legal assignments."""
    devices = range(len(problem.devices))
    lengths = [len(layer.ffn_tensors) for layer in problem.layers]
    least: float | None = None
    for layer_devices in itertools.combinations_with_replacement(devices, len(lengths)):
        for output in {0, layer_devices[-1]} if problem.output else {0}:
            for choice in itertools.product(*(itertools.product(devices, repeat=n) for n in lengths)):
                seconds, used = cost(problem, layer_devices, choice, output)
                fits = all(
                    need <= device.room_bytes for need, device in zip(used, problem.devices, strict=True)
                )
                if fits and (least is None or seconds < least):
                    least = seconds
    return least


@pytest.mark.parametrize("few_layers", [8, 0], ids=["at once", "near the relaxed one"])
def test_random_problems_against_every_assignment(few_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfit.planner.llamacpp.solver._FEW_LAYERS", few_layers)
    infeasible = 0
    for seed in range(200):
        problem = _random_problem(random.Random(seed))
        least, found = _least_seconds(problem), _solve(problem)
        infeasible += least is None
        assert (found is None) == (least is None), seed
        if found is None or least is None:
            continue
        assert found.exact, seed
        assert least - 1e-9 <= found.seconds <= least / (1 - GAP) + 1e-6, seed
        assert list(found.layer_devices) == sorted(found.layer_devices), seed
        assert found.output in ((0, found.layer_devices[-1]) if problem.output else (0,)), seed
        assert cost(problem, found.layer_devices, found.ffn_devices, found.output) == (
            found.seconds,
            found.used_bytes,
        )
        rooms = [device.room_bytes for device in problem.devices]
        assert all(need <= room for need, room in zip(found.used_bytes, rooms, strict=True)), seed
    assert 50 < infeasible < 150  # both kinds are tried
