"""How long the placement of large models takes, and how much faster than whole layers it makes them.

    .venv/bin/python benchmarks/placement.py

Counted: building the program, HiGHS, reading its answer; not its import. Machines and models are made up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from memfit.planner.llamacpp.placement import DeviceRoom, Layer, Piece, Problem, layer_split
from memfit.planner.llamacpp.solver import solve

_MB, _GIB = 1_000_000, 2**30
_PASSES = 129  # 128 generated tokens and a prompt of 512
_RAM = (60 * _GIB, 40e9)  # room, bytes per second
_DEVICES = ((11 * _GIB, 300e9), (7 * _GIB, 250e9), (15 * _GIB, 450e9))


def _piece(
    name: str, size_bytes: int, speeds: list[float], *, active: float = 1.0, kv_bytes: int = 0
) -> Piece:
    seconds = tuple((size_bytes * active + kv_bytes) * _PASSES / speed for speed in speeds)
    return Piece(name=name, size_bytes=size_bytes, seconds=seconds)


def _problem(
    *,
    layers: int,
    devices: tuple[tuple[int, float], ...],
    core_mb: float = 90,
    blocks_mb: tuple[float, ...] = (130, 130, 160),
    richer_mb: float = 0,  # what every other layer's last block has more: a mixed quantization
    active: float = 1.0,  # share of the blocks that a token reads
    kv_mb: float = 5,
    split_seconds: float = 40e-6,
    spread: float = 0.0,  # of sizes, so that no two layers are equal
) -> Problem:
    devices = (_RAM, *devices)
    speeds = [speed for _, speed in devices]
    chance = random.Random(1)

    def size(mb: float) -> int:
        return int(mb * (1 + chance.uniform(-spread, spread)) * _MB) // 4096 * 4096

    kv_bytes = int(kv_mb * _MB)
    made = []
    for index in range(layers):
        sizes = [*blocks_mb[:-1], blocks_mb[-1] + richer_mb * (index % 2)]
        ffn_tensors = (_piece(f"{index}.{mb}", size(mb), speeds, active=active) for mb in sizes)
        core = _piece(f"{index}.core", size(core_mb), speeds, kv_bytes=kv_bytes)
        made.append(Layer(core=core, kv_bytes=kv_bytes, ffn_tensors=tuple(ffn_tensors)))
    return Problem(
        devices=tuple(
            DeviceRoom(room_bytes=room, split_seconds=split_seconds * _PASSES) for room, _ in devices
        ),
        layers=tuple(made),
        output=_piece("output", size(800), speeds),
    )


def _cases() -> Iterator[tuple[str, Problem]]:
    seven = (20.0, 20, 45, 45, 130, 130, 160)
    moe = {"layers": 48, "core_mb": 30, "blocks_mb": (250.0, 250, 300), "active": 1 / 16, "kv_mb": 8}
    for count in (1, 2, 3):
        devices = _DEVICES[:count]
        on = f"{count} device{'s' * (count > 1)}"
        yield f"dense 80x(1+3), {on}", _problem(layers=80, devices=devices)
        yield f"  80 MB KV a layer, {on}", _problem(layers=80, devices=devices, kv_mb=80)
        yield f"  two kinds of layers, {on}", _problem(layers=80, devices=devices, richer_mb=45)
        yield f"dense 80x(1+7), {on}", _problem(layers=80, devices=devices, blocks_mb=seven)
        yield (
            f"  two kinds, 80 MB KV, {on}",
            _problem(layers=80, devices=devices, blocks_mb=seven, richer_mb=45, kv_mb=80),
        )
        yield f"MoE 48x(1+3), {on}", _problem(devices=devices, **moe)
    alike = (_DEVICES[0],) * 3
    yield "dense 80x(1+3), 3 equal devices", _problem(layers=80, devices=alike)
    yield "  splits 20 times as dear", _problem(layers=80, devices=alike, split_seconds=800e-6)
    for count in (1, 2, 3):
        yield (
            f"80x(1+3), all layers differ, {count} devices",
            _problem(layers=80, devices=_DEVICES[:count], spread=0.1),
        )
    yield (
        "80x(1+7), all layers differ, 3 devices",
        _problem(layers=80, devices=_DEVICES, blocks_mb=seven, spread=0.1),
    )


def main() -> None:
    import highspy  # noqa: F401  not to be counted

    # request: predicted with this placement; layers: with whole layers, as llama.cpp places them
    print(f"{'problem':44} {'seconds':>8} {'exact':>6} {'request':>9} {'layers':>9} {'faster':>7}")
    for name, problem in _cases():
        begin = time.perf_counter()
        found = solve(problem)
        seconds = time.perf_counter() - begin
        split = layer_split(problem)
        if found is None or split is None:
            print(f"{name:44} {seconds:8.2f} nothing fits")
            continue
        print(
            f"{name:44} {seconds:8.2f} {found.exact!s:>6} {found.seconds:7.1f} s {split.seconds:7.1f} s "
            f"{split.seconds / found.seconds - 1:7.1%}"
        )


if __name__ == "__main__":
    main()
