"""Placement of a model's tensors on devices: fakes' toy model, placed by hand.

A layer is a core of 8 MiB with a KV cache of 4 (4,096 tokens), and three blocks of 16. The output has
12 MiB; the embedding, 10, lies in RAM. DeviceOracle, which follows llama.cpp's source, has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from fakes import (
    DeviceOracle,
    engine_devices,
    make_device,
    make_layered_spec,
    make_speed,
    make_tensor,
    make_tier,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.cost_model import CostModel
from memfit.planner.llamacpp.offload import Offloader, _Found, _problem
from memfit.planner.llamacpp.placement import DeviceRoom, Placement, Problem, cost
from memfit.planner.llamacpp.solver import solve
from memfit.planner.llamacpp.tensor_devices import (
    devices_of,
    exceptions_of,
    placed_config,
    sent_bytes,
)
from memfit.planner.plan import TierUse
from memfit.planner.request import Workload
from memfit.planner.speed import (
    _EFFICIENCY,
    AttentionSpeed,
    DeviceSpeed,
    predict,
)
from memfit.units import GIB, KIB, MIB
from thorough import times

_LARGE = 8 * GIB
_BESIDE = 5 * MIB  # compute buffers and scratch of a device
_VECTORS = 64 * KIB  # more than all vectors together
# RAM attends a thousand times slower than it multiplies, so KV caches are worth most on a device.
_SLOW_ATTENTION = make_speed(attention={"F16/64": AttentionSpeed(generation=1e6, prompt=1e6)})
_FAST = make_speed(1e11)
_ALIKE = make_speed(attention={"F16/64": AttentionSpeed(generation=1e12, prompt=1e12)})


def _config(spec: ModelSpec) -> LlamaConfig:
    return LlamaConfig(
        paths=spec.paths,
        context=4096,
        parallel=1,
        kv_type="f16",
        ubatch=512,
        threads=4,
        repack=False,
        load_mode="mmap",
    )


def _offloader(
    spec: ModelSpec,
    *limits: int,
    speeds: Sequence[DeviceSpeed] | None = None,
    workload: Workload | None = None,
    asked: bool = False,
    reserved: int = 0,
) -> Offloader:
    """`limits` are RAM's and each device's; they hold buffers too, but no runtime. No device was `asked`
    for by name, but for tests about that."""
    devices = [make_device(f"gpu{index}", limit) for index, limit in enumerate(limits[1:])]
    oracle = DeviceOracle(spec)

    def tiers(config: LlamaConfig) -> list[TierUse]:
        answer = oracle.ask(config)
        held = answer.devices or [None] * len(devices)
        names = ["ram", *(device.name for device in devices)]
        found = [
            make_tier(
                use.weights_bytes if use else 0,
                use.kv_cache_bytes if use else 0,
                use.compute_bytes + use.scratch_bytes if use else 0,
                0 if index else answer.process_bytes,
                limits[index],
                name=name,
            )
            for index, (name, use) in enumerate(zip(names, [answer, *held], strict=True))
        ]
        return [
            replace(tier, reserved_bytes=tier.weights_bytes + reserved if use else 0)
            for tier, use in zip(found, [None, *held], strict=True)
        ]

    speeds = speeds or [_SLOW_ATTENTION, *(_FAST for _ in devices)]
    wanted = [0, *(limit * asked for limit in limits[1:])]
    return Offloader(spec, workload or Workload(), devices, limits, wanted, speeds, tiers, solve)


def _place(
    spec: ModelSpec,
    *limits: int,
    speeds: Sequence[DeviceSpeed] | None = None,
    workload: Workload | None = None,
    asked: bool = False,
    reserved: int = 0,
) -> LlamaConfig | None:
    config = _config(spec)
    base = DeviceOracle(spec).ask(config)
    offloader = _offloader(spec, *limits, speeds=speeds, workload=workload, asked=asked, reserved=reserved)
    return offloader.place(config, base)


def _placed(
    spec: ModelSpec,
    *limits: int,
    speeds: Sequence[DeviceSpeed] | None = None,
    workload: Workload | None = None,
    asked: bool = False,
    reserved: int = 0,
) -> LlamaConfig:
    found = _place(spec, *limits, speeds=speeds, workload=workload, asked=asked, reserved=reserved)
    assert found is not None
    return found


def _there(spec: ModelSpec, config: LlamaConfig, device: int = 1) -> set[str]:
    """Names of the matrices in a device."""
    return {
        one.name.removesuffix(".weight")
        for one, where in engine_devices(spec, config)
        if where == device and len(one.shape) > 1
    }


# --- what goes where first ---


def test_attention_and_kv_go_first() -> None:
    """Room for all three layers' 8 + 4, and not for one block."""
    spec = make_layered_spec()
    placed = _placed(spec, _LARGE, 3 * 12 * MIB + _BESIDE + _VECTORS)
    assert placed.layers == (3,)
    assert _there(spec, placed) == {f"blk.{layer}.attn_q" for layer in range(3)}
    (device,) = DeviceOracle(spec).ask(placed).devices
    assert device.kv_cache_bytes == 12 * MIB


@pytest.mark.parametrize("ffn_devices", range(10))
def test_then_block_by_block(ffn_devices: int) -> None:
    """Each 16 MiB more hold one block more, whichever: tensors are not moved by whole layers."""
    spec = make_layered_spec()
    placed = _placed(spec, _LARGE, (36 + 16 * ffn_devices) * MIB + _BESIDE + _VECTORS)
    assert placed.layers == (3,)
    there = _there(spec, placed)
    assert sum("ffn" in name for name in there) == ffn_devices
    assert "output" not in there


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_follows_where_there_is_room(tied: bool) -> None:
    """Of 12 MiB; a tied one is the embedding of 10, which stays in RAM too."""
    spec = make_layered_spec(tied=tied)
    name, size = ("token_embd", 10) if tied else ("output", 12)
    whole = (3 * 60 + size) * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, _LARGE, whole)
    assert (placed.layers, placed.overrides) == ((3,), ())
    assert _there(spec, placed, 1) == {f"blk.{i}.{part}" for i in range(3) for part in _PARTS} | {name}
    assert _there(spec, placed, 0) == {"token_embd"}
    without = _placed(spec, _LARGE, whole - MIB)
    there = _there(spec, without)
    # A block is worth more than the output, which a prompt needs once only; so that stays behind.
    assert name not in there
    assert len(there) == 12


_PARTS = ("attn_q", "ffn_gate", "ffn_up", "ffn_down")


def test_experts_go_last() -> None:
    """A token uses 2 of 8 experts, so a byte of them is worth a quarter of a byte of the dense layer's."""
    spec = make_layered_spec(experts={1: 8, 2: 8})
    cores = 36 * MIB + _BESIDE + _VECTORS
    dense = {f"blk.0.ffn_{kind}" for kind in ("gate", "up", "down")}
    workload = Workload(prompt_tokens=1)
    for blocks in range(3):
        there = _there(spec, _placed(spec, _LARGE, cores + 16 * blocks * MIB, workload=workload))
        assert {name for name in there if "ffn" in name} <= dense
        assert sum("ffn" in name for name in there) == blocks
    there = _there(spec, _placed(spec, _LARGE, cores + (48 + 12) * MIB, workload=workload))
    assert {name for name in there if "attn" not in name} == {*dense, "output"}
    there = _there(spec, _placed(spec, _LARGE, cores + (48 + 12 + 32) * MIB, workload=workload))
    assert sum("_exps" in name for name in there) == 2
    assert {*dense, "output"} <= there


def test_routers_and_shared_experts_stay_with_attention() -> None:
    more = tuple(
        make_tensor(f"blk.{layer}.{name}.weight", (1024, 1024), "Q8_0", MIB)
        for layer in range(3)
        for name in ("ffn_gate_inp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp")
    )
    spec = make_layered_spec(experts=dict.fromkeys(range(3), 8), more=more)
    there = _there(spec, _placed(spec, _LARGE, 3 * (12 + 4) * MIB + _BESIDE + _VECTORS))
    assert there == {one.name.removesuffix(".weight") for one in more} | {
        f"blk.{layer}.attn_q" for layer in range(3)
    }


# --- whole layers ---


def test_whole_layers_where_nothing_is_clearly_better() -> None:
    """Two layers of eight with the output fill the device. The best tensors would be 128 MiB of blocks
    instead of 112, which leaves 320 of 448 in RAM instead of 336: 5 % less time, below 10."""
    spec = make_layered_spec(8)
    placed = _placed(spec, _LARGE, (120 + 12) * MIB + _BESIDE + _VECTORS, speeds=[_ALIKE, _FAST])
    assert (placed.layers, placed.overrides) == ((2,), ())


def test_not_whole_layers_where_they_leave_the_device_half_empty() -> None:
    """A layer and a half would fit: the half is used, tensor by tensor."""
    spec = make_layered_spec(4)
    limit = (60 + 12 + 32) * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, _LARGE, limit, speeds=[_ALIKE, _FAST])
    assert placed.overrides
    (device,) = DeviceOracle(spec).ask(placed).devices
    assert limit - device.total_bytes < 8 * MIB


def test_not_whole_layers_where_tensors_are_clearly_better() -> None:
    """The same room as for two whole layers with the output holds the attention of all four."""
    spec = make_layered_spec(4)
    placed = _placed(spec, _LARGE, (120 + 12) * MIB + _BESIDE + _VECTORS)
    assert placed.layers == (4,)


def test_a_place_that_is_slow_to_enter_is_entered_once() -> None:
    """An entry costs 129 passes of 200 s, a MiB in RAM 670 s: 145 MiB are worth one entry, for two layers
    and a block beside them, and not another for the rest. Which of their blocks stay is all the same."""
    spec = make_layered_spec(4)
    slow = replace(_FAST, split_seconds=200.0)
    layer_device = make_speed(1e6)
    placed = _placed(spec, _LARGE, 150 * MIB, speeds=[layer_device, slow])
    assert DeviceOracle(spec).ask(placed).generation.splits[1] == 1
    there = _there(spec, placed)
    assert {name for name in there if name.endswith("attn_q")} == {"blk.2.attn_q", "blk.3.attn_q"}
    blocks = {name.split(".")[1] for name in there if "ffn" in name}
    assert len(there) == 2 + 7 and blocks == {"1", "2", "3"}
    unused = _placed(spec, _LARGE, 150 * MIB, speeds=[make_speed(1e11), slow])
    assert unused == _config(spec)


# --- several devices ---


def test_a_device_slower_than_ram_is_left_unused() -> None:
    spec = make_layered_spec()
    assert _placed(spec, _LARGE, _LARGE, speeds=[_FAST, make_speed(1e9)]) == _config(spec)


@pytest.mark.parametrize("ffn_devices", range(1, 9))
def test_a_slow_device_that_was_asked_for_is_filled(ffn_devices: int) -> None:
    """RAM is faster and would hold everything."""
    spec = make_layered_spec()
    limit = (36 + 16 * ffn_devices) * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, _LARGE, limit, speeds=[_FAST, make_speed(1e9)], asked=True)
    (device,) = DeviceOracle(spec).ask(placed).devices
    assert 0.97 * limit <= device.total_bytes <= limit


@pytest.mark.parametrize(("output", "room", "least"), [(60, 150, 0.97), (100, 200, 0.99)])
def test_a_large_output_does_not_keep_a_worker_from_being_filled(
    output: int, room: int, least: float
) -> None:
    """While loading, a worker holds its largest tensor twice. With the output of 60 MiB it would hold two
    thirds of its budget; with one of 100, single tensors have to fill what whole choices leave."""
    spec = make_layered_spec(8)
    large = make_tensor("output.weight", (1024, output * KIB), "Q8_0", output * MIB)
    tensors = tuple(large if one.name == large.name else one for one in spec.tensors)
    spec = replace(spec, tensors=tensors)
    limit = room * MIB + _BESIDE + _VECTORS
    offloader = _offloader(spec, _LARGE, limit, speeds=[_FAST, make_speed(1e9)], asked=True)
    plain = offloader.tiers

    def tiers(config: LlamaConfig) -> list[TierUse]:
        ram, worker = plain(config)
        sent = sent_bytes(spec, config).get(1, [0])
        return [ram, replace(worker, reserved_bytes=sum(sent) + sent[0])]

    offloader.tiers = tiers
    config = _config(spec)
    placed = offloader.place(config, DeviceOracle(spec).ask(config))
    assert placed is not None
    _, worker = tiers(placed)
    assert least * limit <= worker.total_bytes <= worker.needs_bytes <= limit
    if output == 60:
        assert "output" in _there(spec, placed, 0)


def _half_placed(offloader: Offloader, spec: ModelSpec) -> _Found:
    """The second of two layers on the device, with its output, gate and up, and the first one's gate:
    8 + 4 + 12 + 3 * 16 MiB; up and down of the first and down of the second lie in RAM."""
    config, oracle = _config(spec), DeviceOracle(spec)
    pieces = CostModel(spec, Workload(), [_FAST, _FAST]).pieces(config, oracle.ask(config))
    problem = _problem(pieces, [_LARGE, _LARGE], [0.0, 0.0])
    placement = Placement(
        layer_devices=(0, 1),
        ffn_devices=((1, 0, 0), (1, 1, 0)),
        output=1,
        seconds=0.0,
        used_bytes=(0, 0),
        exact=True,
    )
    return offloader._look(config, problem, placement)


@pytest.mark.parametrize(
    ("left", "ffn_devices", "then"),
    [
        (15, ((1, 0, 0), (1, 1, 0)), 15),
        (16, ((1, 1, 0), (1, 1, 0)), 0),
        (40, ((1, 1, 1), (1, 1, 0)), 8),
        (-1, ((0, 0, 0), (1, 1, 0)), 15),  # rather what is not on its layer's device
        (-20, ((0, 0, 0), (0, 1, 0)), 12),
        (-100, ((0, 0, 0), (0, 0, 0)), -52),
    ],
)
def test_single_tensors_are_moved_until_it_comes_out_even(
    left: int, ffn_devices: tuple[tuple[int, ...], ...], then: int
) -> None:
    spec = make_layered_spec(2)
    for asked in (True, False):
        offloader = _offloader(spec, _LARGE, _LARGE, asked=asked)
        found = _half_placed(offloader, spec)
        rooms = [_LARGE, left * MIB]
        moved = offloader._moved(found, rooms)
        if not asked and left > 0:  # nothing is pushed into what was only offered
            assert moved is found.placement
            continue
        assert (moved.ffn_devices, rooms[1]) == (ffn_devices, then * MIB)
        assert sum(rooms) == _LARGE + left * MIB
        if moved is not found.placement:
            assert moved.used_bytes[1] == (8 + 4 + 12 + 16 * sum(map(sum, ffn_devices))) * MIB + 2 * 256


def test_a_tensor_for_which_a_device_needs_more_than_its_bytes() -> None:
    """33 MiB are left, so two tensors of 16; but with any more of them the device takes 5 more itself."""
    spec = make_layered_spec(2)
    limit = (8 + 4 + 12 + 3 * 16 + 33) * MIB + 2 * 256 + _BESIDE
    offloader = _offloader(spec, _LARGE, limit, asked=True)
    found = _half_placed(offloader, spec)
    plain = offloader.tiers

    def tiers(config: LlamaConfig) -> list[TierUse]:
        ram, device = plain(config)
        more = 5 * MIB if device.weights_bytes > found.needs[1] else 0
        return [ram, replace(device, parts={**device.parts, "compute": device.compute_bytes + more})]

    assert limit - found.needs[1] == 33 * MIB
    offloader.tiers = tiers
    fuller = offloader._adjust(_config(spec), found)
    assert fuller is not None and fuller.fits
    assert sum(map(sum, fuller.placement.ffn_devices)) == 4
    assert offloader._adjust(_config(spec), fuller) is None


def test_a_placement_that_just_misses_is_mended() -> None:
    spec = make_layered_spec(2)
    limit = (8 + 4 + 12 + 2 * 16 + 1) * MIB + 2 * 256 + _BESIDE
    offloader = _offloader(spec, _LARGE, limit, asked=True)
    found = _half_placed(offloader, spec)
    assert not found.fits
    mended = offloader._adjust(_config(spec), found)
    assert mended is not None and mended.fits
    assert mended.placement.ffn_devices == ((0, 0, 0), (1, 1, 0))


def test_what_only_loading_needs_is_left_free() -> None:
    """Loading takes 37 MiB beside the weights, running 12 of KV cache and 5 of buffers: so 52 MiB are left
    for weights instead of 72, which are the cores' 24, a block of 16, and no second one."""
    spec = make_layered_spec()
    limit = (36 + 3 * 16) * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, _LARGE, limit, reserved=(12 + 5 + 20) * MIB)
    (device,) = DeviceOracle(spec).ask(placed).devices
    assert placed.layers == (3,)
    assert sum("ffn" in name for name in _there(spec, placed)) == 1
    assert device.weights_bytes + 37 * MIB <= limit


def test_a_slow_device_takes_what_ram_does_not_hold() -> None:
    """RAM lacks 16 MiB. A prompt needs the output once and an attention's 8 MiB as often as a block's 16,
    so the output and the last layer's attention with its KV cost less there than a block."""
    spec = make_layered_spec()
    limit = (10 + 12 + 3 * 60 + 20 - 16) * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, limit, _LARGE, speeds=[_FAST, make_speed(1e9)])
    assert _there(spec, placed) == {"output", "blk.2.attn_q"}
    assert _place(spec, limit, 10 * MIB, speeds=[_FAST, make_speed(1e9)]) is None


def test_two_devices_share_in_their_order() -> None:
    """Each has room for two layers, the second for the output too."""
    spec = make_layered_spec(4)
    room = 120 * MIB + _BESIDE + _VECTORS
    placed = _placed(spec, _LARGE, room, room + 12 * MIB)
    assert (placed.devices, placed.layers, placed.overrides) == (("CUDA0", "CUDA1"), (2, 2), ())
    assert {name.split(".")[1] for name in _there(spec, placed, 1)} == {"0", "1"}
    assert "output" in _there(spec, placed, 2)


def test_of_two_devices_the_faster_is_filled_first() -> None:
    spec = make_layered_spec(4)
    room = 4 * 60 * MIB + 12 * MIB + _BESIDE + _VECTORS
    faster = make_speed(1e12)
    for index, speeds in enumerate(([_SLOW_ATTENTION, faster, _FAST], [_SLOW_ATTENTION, _FAST, faster])):
        placed = _placed(spec, _LARGE, room, room, speeds=speeds)
        assert placed.layers == ((4, 0), (0, 4))[index]
        assert "output" in _there(spec, placed, index + 1)


@pytest.mark.parametrize("asked", [False, True])
def test_what_fits_ram_alone_is_placed_whatever_the_devices(asked: bool) -> None:
    """A second device of 4 MiB has no room for its 5 of buffers: opening any would open it."""
    spec = make_layered_spec()
    speeds = [make_speed(), make_speed(1e11), make_speed(1e11)]
    config = _config(spec)
    whole = DeviceOracle(spec).ask(config).total_bytes
    for ram, expected in ((whole, config), (whole - 1, None)):
        offloader = _offloader(spec, ram, 100 * MIB, 4 * MIB, speeds=speeds, asked=asked)
        assert offloader.place(config, DeviceOracle(spec).ask(config)) == expected


def test_dense_and_routed_blocks_of_one_layer_keep_their_order() -> None:
    """Six blocks, of which two each come at the same point of execution: a choice names one, always."""
    kinds = ("gate", "up", "down")
    routed = tuple(
        make_tensor(f"blk.0.ffn_{kind}_exps.weight", (1024, 64 * KIB), "Q8_0", 64 * MIB) for kind in kinds
    )
    spec = make_layered_spec(1, more=routed)
    config = _config(spec)
    prices = CostModel(spec, Workload(), [_SLOW_ATTENTION, _FAST])
    pieces = prices.pieces(config, DeviceOracle(spec).ask(config))
    names = [block.name for block in pieces.layers[0].ffn_tensors]
    assert names == [f"blk.0.ffn_{kind}{suffix}" for kind in kinds for suffix in ("", "_exps")]
    for chosen, name in enumerate(names):
        placement = Placement(
            layer_devices=(0,),
            ffn_devices=(tuple(int(index == chosen) for index in range(6)),),
            output=0,
            seconds=0.0,
            used_bytes=(),
            exact=False,
        )
        assert _there(spec, _engine_parameters(spec, 1, placement)) == {name}


@settings(max_examples=times(30, 300))
@given(
    ram=st.integers(30, 300),
    rooms=st.lists(st.integers(6, 200), min_size=1, max_size=2),
    tied=st.booleans(),
    fast=st.sampled_from([1e8, 1e9, 1e11]),
    experts=st.booleans(),
    asked=st.booleans(),
    reserved=st.sampled_from([0, 20 * MIB]),
)
def test_no_limit_is_ever_exceeded(
    ram: int, rooms: list[int], tied: bool, fast: float, experts: bool, asked: bool, reserved: int
) -> None:
    spec = make_layered_spec(3, tied=tied, experts={1: 8} if experts else None)
    limits = [ram * MIB, *(room * MIB for room in rooms)]
    speeds = [make_speed(), *(make_speed(fast) for _ in rooms)]
    placed = _place(spec, *limits, speeds=speeds, asked=asked, reserved=reserved)
    alone = DeviceOracle(spec).ask(_config(spec)).total_bytes
    if placed is None:
        assert alone > limits[0]
        return
    answer = DeviceOracle(spec).ask(placed)
    held = [answer.total_bytes, *(device.total_bytes for device in answer.devices)]
    assert all(size <= limit for size, limit in zip(held, limits, strict=False))
    for device, limit in zip(answer.devices, limits[1:], strict=False):
        assert device.weights_bytes + reserved <= limit


# --- into the engine's words ---


def _engine_parameters(spec: ModelSpec, devices: int, placement: Placement) -> LlamaConfig:
    opened = [make_device(f"gpu{index}") for index in range(devices)]
    return placed_config(spec, _config(spec), placement, opened, {})


@given(data=st.data(), tied=st.booleans(), devices=st.integers(1, 3))
def test_every_tensor_lies_where_the_placement_says(data: st.DataObject, tied: bool, devices: int) -> None:
    """Patterns and layer counts say exactly the placement; twelve layers, so that 1 is not 10 nor 11."""
    odd = [
        f"blk.{layer}.{name}"
        for layer in (0, 1, 10, 11)
        for name in ("ffn_up_shexp.weight", "ffn_gate_inp.weight", "ffn_norm.weight", "attn_output.weight")
    ]
    biases = [f"blk.{layer}.ffn_{kind}.bias" for layer in range(6) for kind in ("gate", "up", "down")]
    biases += [
        f"blk.{layer}.ffn_{kind}_exps.bias" for layer in range(6, 12) for kind in ("gate", "up", "down")
    ]
    more = tuple(make_tensor(name, (64,), "F32", 256) for name in (*odd, *biases))
    spec = make_layered_spec(12, tied=tied, experts=dict.fromkeys(range(6, 12), 8), more=more)
    device = st.integers(0, devices)
    layer_devices = tuple(sorted(data.draw(st.lists(device, min_size=12, max_size=12))))
    ffn_devices = tuple(data.draw(st.tuples(device, device, device)) for _ in range(12))
    output = data.draw(st.sampled_from(sorted({0, layer_devices[-1]})))
    placement = Placement(
        layer_devices=layer_devices,
        ffn_devices=ffn_devices,
        output=output,
        seconds=0.0,
        used_bytes=(),
        exact=False,
    )
    config = _engine_parameters(spec, devices, placement)
    if not any((*layer_devices, output, *(where for one in ffn_devices for where in one))):
        assert config == _config(spec)  # no device is opened
        return
    assert config.load_mode == "read"
    for tensor, where in engine_devices(spec, config):
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        block = re.match(r"blk\.\d+\.ffn_(gate|up|down)(_exps)?\.(weight|bias)", tensor.name)
        if block and layer:
            expected = {ffn_devices[int(layer[1])][("gate", "up", "down").index(block[1])]}
        elif layer:
            expected = {layer_devices[int(layer[1])]}
        elif tensor.name == "token_embd.weight":
            expected = {0, output} if tied else {0}
        else:
            expected = {output}
        assert where in expected, tensor.name
    if tied and output:
        names = [(one.name, where) for one, where in engine_devices(spec, config)]
        assert ("token_embd.weight", 0) in names and ("token_embd.weight", output) in names


def test_the_patterns_by_hand() -> None:
    spec = make_layered_spec(3)
    placement = Placement(
        layer_devices=(0, 1, 1),
        ffn_devices=((1, 0, 0), (1, 0, 0), (1, 0, 0)),
        output=0,
        seconds=0.0,
        used_bytes=(),
        exact=True,
    )
    config = _engine_parameters(spec, 1, placement)
    assert (config.devices, config.layers) == (("CUDA0",), (2,))
    assert sorted(config.overrides) == [
        (r"^(output|token_embd)", 0),
        (r"^blk\.(0)\.(ffn_gate)\.", 1),
        (r"^blk\.(1|2)\.(ffn_up|ffn_down)\.", 0),
    ]
    assert exceptions_of(spec, config) == {
        (1, "ffn_gate"): [0],
        (0, "ffn_up"): [1, 2],
        (0, "ffn_down"): [1, 2],
    }


# --- the least in RAM ---


@pytest.mark.parametrize("room", [0, 5, 20, 40, 75, 100, 125, 200])
def test_least_ram_is_the_least(room: int) -> None:
    """Every placement of two layers: their devices go up, the output in RAM or with the last layer."""
    spec = make_layered_spec(2)
    oracle, config = DeviceOracle(spec), _config(spec)
    limit = room * MIB + _BESIDE + _VECTORS
    found = oracle.ask(_offloader(spec, MIB, limit).least_ram(config, oracle.ask(config)))

    def in_ram(layer_devices: tuple[int, ...], ffn_devices: tuple[int, ...], output: int) -> int:
        there = 12 * output + sum(12 * layer_device for layer_device in layer_devices) + 16 * sum(ffn_devices)
        return 10 + 12 + 2 * 60 - there if there <= room else 1000

    least = min(
        in_ram(layer_devices, ffn_devices, output)
        for layer_devices in ((0, 0), (0, 1), (1, 1))
        for ffn_devices in product((0, 1), repeat=6)
        for output in {0, layer_devices[-1]}
    )
    held = found.weights_bytes + found.kv_cache_bytes
    assert held == pytest.approx(least * MIB, abs=_VECTORS)


# --- what loading takes ---


def _with(spec: ModelSpec, layers: tuple[int, ...], *overrides: tuple[str, int]) -> LlamaConfig:
    devices = tuple(f"CUDA{index}" for index in range(len(layers)))
    return replace(_config(spec), devices=devices, layers=layers, overrides=overrides)


def test_what_is_sent_by_hand() -> None:
    """The largest first, as the engine sends them: three blocks of 16, the output's 12, attention's 8."""
    spec = make_layered_spec(1)
    assert sent_bytes(spec, _config(spec)) == {}
    assert sent_bytes(spec, _with(spec, (1,), (r"ffn_|output", 0))) == {1: [8 * MIB, 256]}
    assert sent_bytes(spec, _with(spec, (1,))) == {
        1: [16 * MIB, 16 * MIB, 16 * MIB, 12 * MIB, 8 * MIB, 256, 256]
    }
    # only a block, of a layer that lies in RAM
    assert sent_bytes(spec, _with(spec, (0,), (r"ffn_up", 1), (r"output", 0))) == {1: [16 * MIB]}


def test_what_is_sent_to_each_of_two() -> None:
    """A layer each, and the output of 12 with its norm on the last."""
    spec = make_layered_spec(2)
    assert sent_bytes(spec, _with(spec, (1, 1), (r"blk\.1\.ffn", 0))) == {
        1: [16 * MIB, 16 * MIB, 16 * MIB, 8 * MIB, 256],
        2: [12 * MIB, 8 * MIB, 256, 256],
    }
    assert sent_bytes(spec, _with(spec, (1, 1), (r"^blk\.1|output", 0))).keys() == {1}


def test_what_is_sent_of_a_tied_output() -> None:
    spec = make_layered_spec(1, tied=True)
    assert sent_bytes(spec, _with(spec, (1,), (r"blk\.", 0))) == {1: [10 * MIB, 256]}  # and its norm
    assert sent_bytes(spec, _with(spec, (1,), (r"blk\.|output|token_embd", 0))) == {}


@given(
    data=st.data(),
    tied=st.booleans(),
    layers=st.lists(st.integers(0, 2), min_size=1, max_size=2),
)
def test_what_lies_where_is_what_the_engine_does(data: st.DataObject, tied: bool, layers: list[int]) -> None:
    """devices_of and sent_bytes against the engine's rules, whatever the patterns."""
    spec = make_layered_spec(4, tied=tied)
    pattern = st.sampled_from([r"ffn_up", r"^blk\.(0|3)\.", r"^(output|token_embd)", "attn", "norm", "^$"])
    devices = {pattern: 0 if "token_embd" in pattern else None for pattern in data.draw(st.lists(pattern))}
    overrides = tuple(
        (pattern, data.draw(st.integers(0, len(layers))) if device is None else device)
        for pattern, device in devices.items()
    )
    config = _with(spec, tuple(layers), *overrides)
    engine = list(engine_devices(spec, config))
    # A tied table that lies twice is listed where the output is, which comes second here.
    assert devices_of(spec, config) == {one.name: device for one, device in engine}
    sent = {
        device: sorted((one.size_bytes for one, where in engine if where == device), reverse=True)
        for device in range(1, 1 + len(layers))
    }
    assert sent_bytes(spec, config) == {device: sizes for device, sizes in sent.items() if sizes}


def test_without_devices_everything_lies_in_ram() -> None:
    spec = make_layered_spec(1)
    assert set(devices_of(spec, _config(spec)).values()) == {0}


# --- one idea of speed ---


@settings(max_examples=times(30, 300))
@given(
    data=st.data(),
    experts=st.booleans(),
    entering=st.sampled_from([0.0, 0.001]),
    lengths=st.sampled_from([(512, 128, None), (2000, 1, None), (40, 10, None), (512, 128, 3000)]),
)
def test_what_is_minimised_is_what_is_predicted(
    data: st.DataObject, experts: bool, entering: float, lengths: tuple[int, int, int | None]
) -> None:
    """Seconds of a request as the solver counts them, and by the graph that the engine then has."""
    prompt_tokens, generated_tokens, depth = lengths
    workload = Workload(prompt_tokens=prompt_tokens, generated_tokens=generated_tokens, depth=depth)
    spec = make_layered_spec(4, experts=dict.fromkeys(range(1, 4), 8) if experts else None)
    speeds = [make_speed(1e9), make_speed(2e10, split_seconds=entering)]
    config, oracle = _config(spec), DeviceOracle(spec)
    pieces = CostModel(spec, workload, speeds).pieces(config, oracle.ask(config))
    passes = generated_tokens + -(-prompt_tokens // config.ubatch)
    problem = Problem(
        devices=tuple(
            DeviceRoom(room_bytes=_LARGE, split_seconds=passes * speed.split_seconds) for speed in speeds
        ),
        layers=pieces.layers,
        output=pieces.output,
    )
    device = st.integers(0, 1)
    layer_devices = tuple(sorted(data.draw(st.lists(device, min_size=4, max_size=4))))
    ffn_devices = tuple(data.draw(st.tuples(device, device, device)) for _ in range(4))
    output = data.draw(st.sampled_from(sorted({0, layer_devices[-1]})))
    seconds, used = cost(problem, layer_devices, ffn_devices, output)
    placement = Placement(
        layer_devices=layer_devices,
        ffn_devices=ffn_devices,
        output=output,
        seconds=seconds,
        used_bytes=used,
        exact=False,
    )
    prediction = predict(
        oracle.ask(_engine_parameters(spec, 1, placement)),
        speeds,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        depth=depth,
    )
    # The solver counts what kernels reach by themselves; reality is known to be that much slower.
    whole = _EFFICIENCY * prompt_tokens / prediction.prompt.value
    whole += _EFFICIENCY * generated_tokens / prediction.generation.value
    assert seconds == pytest.approx(whole, rel=0.01)
