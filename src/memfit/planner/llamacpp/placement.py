"""A placement as a value: the device of every piece of a model, its cost, and the engine's own way to
place. Pure.

    seconds of a request = sum over pieces (seconds on its device)
                         + sum over graph splits (split_seconds of the device that computes on)

A pass starts in RAM, goes through each layer's core and FFN tensors and then the output, and its result
returns to RAM. There is a graph split wherever a piece lies on another device than the one before it. Counted
in a device's room: pieces and KV cache. Ignored, so to be taken off the room beforehand: compute buffers and
overhead. Ignored altogether: devices that work at the same time.

It knows two rules of the engine: devices of layers go up in order, and the output lies in RAM or on the last
layer's device. solver.py finds the best placement; here is what one costs, and the engine's own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DeviceRoom", "Layer", "Piece", "Placement", "Problem", "checked_placement", "cost", "layer_split"]


@dataclass(frozen=True, kw_only=True)
class DeviceRoom:
    """RAM, which comes first, or a device, in the engine's order."""

    room_bytes: int  # what weights and KV cache may take there
    split_seconds: float  # per request: handing control and activations INTO this device once per pass
    least_bytes: int = 0  # what must lie there at least, whether that is fast or not


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tensors that always lie together."""

    name: str  # "blk.3.ffn_up", "blk.3.core", "output"
    size_bytes: int
    seconds: tuple[float, ...]  # per device: what this piece adds to a request if it lies there


@dataclass(frozen=True, kw_only=True)
class Layer:
    core: Piece  # attention, norms, router, shared and small tensors; its device is the layer's
    kv_bytes: int  # KV cache; lies on the layer's device
    ffn_tensors: tuple[Piece, ...]  # FFN or expert tensors in order of execution; any device each


@dataclass(frozen=True, kw_only=True)
class Problem:
    devices: tuple[DeviceRoom, ...]
    layers: tuple[Layer, ...]  # in order of execution
    output: Piece | None  # the output matrix; runs last

    def __post_init__(self) -> None:
        if not self.devices or not self.layers:
            raise ValueError("a problem needs at least one device and one layer")
        pieces = [piece for layer in self.layers for piece in (layer.core, *layer.ffn_tensors)]
        for piece in [*pieces, self.output] if self.output else pieces:
            if len(piece.seconds) != len(self.devices) or piece.size_bytes < 0:
                raise ValueError(
                    f"{piece.name}: {piece.size_bytes} bytes, seconds for {len(piece.seconds)} devices"
                )


@dataclass(frozen=True, kw_only=True)
class Placement:
    layer_devices: tuple[int, ...]  # of each layer
    ffn_devices: tuple[tuple[int, ...], ...]  # of each layer's FFN tensors
    output: int  # its device; 0 if there is none
    seconds: float  # of a request, as `cost` counts them
    used_bytes: tuple[int, ...]  # per device
    exact: bool = False  # proven best but for GAP, not merely good


def cost(
    problem: Problem, layer_devices: Sequence[int], ffn_devices: Sequence[Sequence[int]], output: int
) -> tuple[float, tuple[int, ...]]:
    """Seconds of a request and bytes used per device. Checks neither rooms nor rules."""
    devices = problem.devices
    seconds, used, here = 0.0, [0] * len(devices), 0
    steps: list[tuple[Piece, int]] = []
    for layer, layer_device, choice in zip(problem.layers, layer_devices, ffn_devices, strict=True):
        used[layer_device] += layer.kv_bytes
        steps += [(layer.core, layer_device), *zip(layer.ffn_tensors, choice, strict=True)]
    if problem.output:
        steps.append((problem.output, output))
    for piece, device in steps:
        used[device] += piece.size_bytes
        seconds += piece.seconds[device] + (device != here) * devices[device].split_seconds
        here = device
    return seconds + (here != 0) * devices[0].split_seconds, tuple(used)


def checked_placement(
    problem: Problem, layer_devices: Sequence[int], ffn_devices: Sequence[Sequence[int]], output: int
) -> Placement | None:
    """None where a device overflows, or holds less than it must."""
    seconds, used = cost(problem, layer_devices, ffn_devices, output)
    rooms = ((device.least_bytes, device.room_bytes) for device in problem.devices)
    if any(not least <= size <= most for size, (least, most) in zip(used, rooms, strict=True)):
        return None
    return Placement(
        layer_devices=tuple(layer_devices),
        ffn_devices=tuple(map(tuple, ffn_devices)),
        output=output,
        seconds=seconds,
        used_bytes=used,
    )


def layer_split(problem: Problem, *, partial: bool = False) -> Placement | None:
    """What llama.cpp does: devices take whole layers with their KV cache, the last layers first.

    `partial`: and as many FFN tensors from the end of the layer before them as they have room for, which
    adds no graph split. The output lies on the last device that holds a layer, whose room it counts in. None
    where RAM overflows, or a device holds less than it must.
    """
    layer_devices = [0] * len(problem.layers)
    ffn_devices: list[list[int]] = [[] for _ in layer_devices]  # as far as known: of the last FFN tensors
    left, output = len(layer_devices) - 1, 0
    for device in range(len(problem.devices) - 1, 0, -1):
        room = problem.devices[device].room_bytes
        if not output and problem.output:
            room -= problem.output.size_bytes
        while left >= 0 and (need := _rest_bytes(problem, left, len(ffn_devices[left]))) <= room:
            missing = len(problem.layers[left].ffn_tensors) - len(ffn_devices[left])
            ffn_devices[left][:0] = [device] * missing
            layer_devices[left] = device
            room -= need
            left -= 1
            output = max(output, device)
        if partial and left >= 0 and device in layer_devices:
            for block in problem.layers[left].ffn_tensors[::-1]:  # none of them is placed yet
                room -= block.size_bytes
                if room < 0:
                    break
                ffn_devices[left].insert(0, device)
    for layer, known in zip(problem.layers, ffn_devices, strict=True):
        known[:0] = [0] * (len(layer.ffn_tensors) - len(known))
    return checked_placement(problem, layer_devices, ffn_devices, output if problem.output else 0)


def _rest_bytes(problem: Problem, index: int, placed: int) -> int:
    """Of a layer whose last FFN tensors, so many, are placed already."""
    layer = problem.layers[index]
    rest = layer.ffn_tensors[: len(layer.ffn_tensors) - placed]
    return layer.kv_bytes + sum(piece.size_bytes for piece in (layer.core, *rest))
