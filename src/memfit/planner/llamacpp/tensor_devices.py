"""Where each tensor lies, in the engine's words: layer counts and name patterns, written and read.

A layer's device follows from the counts: the last layers lie on the devices, in their order, the others in
RAM. Its large feed-forward or expert tensors may lie elsewhere by patterns; all else of it, the KV cache too,
stays on the layer's device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memfit.hardware.machine import Device
from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.planner.llamacpp.placement import Placement

__all__ = [
    "LayerTensors",
    "devices_of",
    "exceptions_of",
    "layer_tensors",
    "output_tensors",
    "placed_config",
    "sent_bytes",
]

_LAYER = re.compile(r"blk\.(\d+)\.")
_FFN = re.compile(r"blk\.(\d+)\.(ffn_(?:gate|up|gate_up|down)(?:_exps|_chexps)?)\.")
_OUTPUT = re.compile(r"output|token_embd\.")
_OUTPUT_PATTERN = r"^(output|token_embd)"
_ORDER = ("gate", "up", "gate_up", "down")  # of execution


# -- the parts of a model ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    core: list[TensorSpec] = field(default_factory=list)  # what stays on their layer's device
    ffn_tensors: dict[str, list[TensorSpec]] = field(default_factory=dict)  # by kind, in order of execution


def layer_tensors(spec: ModelSpec) -> list[LayerTensors]:
    """Each layer's tensors, in order of execution."""
    layers = [LayerTensors() for _ in range(_layer_count(spec))]
    for tensor in spec.tensors:
        if match := _FFN.match(tensor.name):
            layers[int(match[1])].ffn_tensors.setdefault(match[2], []).append(tensor)
        elif match := _LAYER.match(tensor.name):
            layers[int(match[1])].core.append(tensor)
    return [replace(one, ffn_tensors=dict(sorted(one.ffn_tensors.items(), key=_execution))) for one in layers]


def _execution(block: tuple[str, object]) -> tuple[int, str]:
    """Where in a layer's execution a block comes."""
    kind = block[0]
    return _ORDER.index(kind.removeprefix("ffn_").removesuffix("_exps").removesuffix("_chexps")), kind


def _layer_count(spec: ModelSpec) -> int:
    matches = (_LAYER.match(tensor.name) for tensor in spec.tensors)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def output_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """The output matrix and what lies with it; the token table, where that is the output too (tied)."""
    tied = all(tensor.name != "output.weight" for tensor in spec.tensors)
    return [
        tensor
        for tensor in spec.tensors
        if _OUTPUT.match(tensor.name) and (tied or tensor.name != "token_embd.weight")
    ]


# -- written -------------------------------------------------------------------------------------


def placed_config(
    spec: ModelSpec, config: LlamaConfig, placement: Placement, devices: Sequence[Device]
) -> LlamaConfig:
    """`config` with a placement filled in; unchanged where that opens no device."""
    if not any(placement.layer_devices) and not placement.output and not any(map(any, placement.ffn_devices)):
        return config
    # Mapping would keep what lies on devices in RAM too. RPC servers hold what is on its way to them: little
    # where we send it, in pieces; weights that are rewritten only the engine can load.
    in_pieces = not config.repack and all(device.is_remote for device in devices)
    overrides = _ffn_patterns(spec, placement)
    last = max(placement.layer_devices, default=RAM)
    if placement.output != (last or len(devices)):  # the engine puts it on the last device in use
        overrides.append((_OUTPUT_PATTERN, placement.output))
    return replace(
        config,
        load_mode="own" if in_pieces else "read",
        layers=tuple(placement.layer_devices.count(device) for device in range(1, len(devices) + 1)),
        overrides=tuple(overrides),
        devices=tuple(device.engine_name for device in devices),
    )


def _ffn_patterns(spec: ModelSpec, placement: Placement) -> list[tuple[str, int]]:
    """For FFN tensors away from their layer's device: few, as the engine compiles each for every tensor."""
    layers_of: dict[tuple[int, str], list[int]] = {}
    rows = zip(placement.layer_devices, layer_tensors(spec), placement.ffn_devices, strict=True)
    for layer, (layer_device, tensors, devices) in enumerate(rows):
        for kind, device in zip(tensors.ffn_tensors, devices, strict=True):
            if device != layer_device:
                layers_of.setdefault((device, kind), []).append(layer)
    kinds_of: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for (device, kind), layers in layers_of.items():
        kinds_of.setdefault((device, tuple(layers)), []).append(kind)
    return [
        (rf"^blk\.({'|'.join(map(str, layers))})\.({'|'.join(kinds)})\.", device)
        for (device, layers), kinds in kinds_of.items()
    ]


# -- read ----------------------------------------------------------------------------------------


def devices_of(spec: ModelSpec, config: LlamaConfig) -> dict[str, int]:
    """Where each tensor lies, by its name: the engine's own rules applied to `config`.

    A tied token table lies in RAM and, being the output matrix too, where the output is: it is listed
    there.
    """
    if not config.devices:
        return {tensor.name: RAM for tensor in spec.tensors}
    layer_devices = _layer_devices(spec, config)
    outputs = {tensor.name for tensor in output_tensors(spec)}
    last = max(layer_devices, default=RAM) or len(config.devices)
    patterns = [(re.compile(pattern), device) for pattern, device in config.overrides]
    found = {}
    for tensor in spec.tensors:
        device = next((device for pattern, device in patterns if pattern.search(tensor.name)), None)
        if device is None:
            layer = _LAYER.match(tensor.name)
            device = layer_devices[int(layer[1])] if layer else last if tensor.name in outputs else RAM
        found[tensor.name] = device
    return found


def _layer_devices(spec: ModelSpec, config: LlamaConfig) -> list[int]:
    in_ram = _layer_count(spec) - sum(config.layers)
    return [device for device, layers in enumerate((in_ram, *config.layers)) for _ in range(layers)]


def exceptions_of(spec: ModelSpec, config: LlamaConfig) -> dict[tuple[int, str], list[int]]:
    """(device, kind of FFN tensor) → layers with such tensors there, away from the layer's device."""
    layer_devices = _layer_devices(spec, config)
    found: dict[tuple[int, str], list[int]] = {}
    for name, device in devices_of(spec, config).items():
        match = _FFN.match(name)
        if match and device != layer_devices[int(match[1])]:
            layers = found.setdefault((device, match[2]), [])
            if int(match[1]) not in layers:
                layers.append(int(match[1]))
    return found


def sent_bytes(spec: ModelSpec, config: LlamaConfig) -> dict[int, list[int]]:
    """Per device but RAM, the sizes of the tensors that are sent there, largest first, as they are sent."""
    devices = devices_of(spec, config)
    found: dict[int, list[int]] = {}
    for tensor in sorted(spec.tensors, key=lambda one: -one.size_bytes):
        if devices[tensor.name] != RAM:
            found.setdefault(devices[tensor.name], []).append(tensor.size_bytes)
    return found
