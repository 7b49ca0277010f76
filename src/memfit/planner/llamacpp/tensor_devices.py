"""Where each tensor lies, in the engine's words: layer counts and name patterns, written and read.

A layer's device follows from the counts: the last layers lie on the devices, in their order, the others in
RAM. Its large feed-forward or expert tensors may lie elsewhere by patterns; all else of it, the KV cache too,
stays on the layer's device.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from memfit.hardware.machine import Device
from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.headers.purpose import is_tied
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.planner.llamacpp.placement import Placement

__all__ = [
    "LayerTensors",
    "config_with",
    "devices_of",
    "exceptions_of",
    "last_device",
    "layer_count",
    "layer_tensors",
    "output_tensors",
    "placed_config",
    "sent_bytes",
]

_LAYER = re.compile(r"blk\.(\d+)\.")
_FFN = re.compile(r"blk\.(\d+)\.(ffn_(?:gate|up|gate_up|down)(?:_exps|_chexps)?)\.")
_KIND = re.compile(r"blk\.(\d+)\.([^.]+)")
_OUTPUT = re.compile(r"output|cls\.|dense_\d|token_embd\.")
_OUTPUT_PATTERN = r"^(output|token_embd)"
_ORDER = ("gate", "up", "gate_up", "down")  # of execution


# -- the parts of a model ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    core: list[TensorSpec] = field(default_factory=list)  # what stays on their layer's device
    ffn_tensors: dict[str, list[TensorSpec]] = field(default_factory=dict)  # by kind, in order of execution


def layer_tensors(spec: ModelSpec, without: Container[str] = ()) -> list[LayerTensors]:
    """Each layer's tensors, in order of execution, `without` those of such names."""
    layers = [LayerTensors() for _ in range(layer_count(spec))]
    for tensor in spec.tensors:
        if tensor.name in without:
            continue
        if match := _FFN.match(tensor.name):
            layers[int(match[1])].ffn_tensors.setdefault(match[2], []).append(tensor)
        elif match := _LAYER.match(tensor.name):
            layers[int(match[1])].core.append(tensor)
    return [replace(one, ffn_tensors=dict(sorted(one.ffn_tensors.items(), key=_execution))) for one in layers]


def _execution(block: tuple[str, object]) -> tuple[int, str]:
    """Where in a layer's execution a block comes."""
    kind = block[0]
    return _ORDER.index(kind.removeprefix("ffn_").removesuffix("_exps").removesuffix("_chexps")), kind


def layer_count(spec: ModelSpec) -> int:
    matches = (_LAYER.match(tensor.name) for tensor in spec.tensors)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def output_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """The output matrix and what lies with it, a reranker's head for example; the token table, where that is
    the output too (tied)."""
    tied = is_tied(spec)
    return [
        tensor
        for tensor in spec.tensors
        if _OUTPUT.match(tensor.name) and (tied or tensor.name != "token_embd.weight")
    ]


# -- written -------------------------------------------------------------------------------------


def placed_config(
    spec: ModelSpec,
    config: LlamaConfig,
    placement: Placement,
    devices: Sequence[Device],
    fixed: Mapping[str, int],
) -> LlamaConfig:
    """`config` with a placement filled in, which leaves out the tensors whose devices are `fixed`; unchanged
    where that opens no device."""
    layers = tuple(placement.layer_devices.count(device) for device in range(1, len(devices) + 1))
    away = dict(fixed)
    parts = zip(layer_tensors(spec, fixed), placement.ffn_devices, strict=True)
    for tensors, ffn_devices in parts:
        for block, device in zip(tensors.ffn_tensors.values(), ffn_devices, strict=True):
            away |= {tensor.name: device for tensor in block}
    return config_with(spec, config, layers, devices, away, output=placement.output)


def config_with(
    spec: ModelSpec,
    config: LlamaConfig,
    layers: tuple[int, ...],
    devices: Sequence[Device],
    lying: Mapping[str, int],
    *,
    output: int,
) -> LlamaConfig:
    """`config` with so many `layers` on each device, the output on one, and single tensors `lying` elsewhere,
    or where they would anyway; unchanged where that opens no device."""
    if not any(layers) and not output and not any(lying.values()):
        return config
    # Mapping would keep what lies on devices in RAM too. RPC servers hold what is on its way to them: little
    # where we send it, in pieces; weights that are rewritten only the engine can load.
    in_pieces = not config.repack and all(device.is_remote for device in devices)
    placed = replace(
        config,
        load_mode="own" if in_pieces else "read",
        layers=layers,
        devices=tuple(device.engine_name for device in devices),
    )
    overrides = _patterns(spec, _layer_devices(spec, placed), lying)
    if output != last_device(layers):  # where the engine puts it
        overrides.append((_OUTPUT_PATTERN, output))
    return replace(placed, overrides=tuple(overrides))


def last_device(layers: Sequence[int]) -> int:
    """Which holds the output unless a pattern says otherwise: the last with `layers`, or the last of all."""
    return max((number for number, count in enumerate(layers, start=1) if count), default=len(layers))


def _patterns(
    spec: ModelSpec, layer_devices: Sequence[int], lying: Mapping[str, int]
) -> list[tuple[str, int]]:
    """For tensors away from their layer's device: few, as the engine compiles each for every tensor."""
    found = [(f"^{re.escape(name)}$", device) for name, device in lying.items() if not _LAYER.match(name)]
    layers_of: dict[tuple[int, str, str], list[int]] = {}
    for (layer, kind), names in _kinds(spec).items():
        home = layer_devices[layer]
        devices = [lying.get(name, home) for name in names]
        for name, device in zip(names, devices, strict=True):
            _, _, _, *last = name.split(".", 3)  # "weight", mostly
            end = rf"\.{last[0]}$" if last else "$"
            if last and len(set(devices)) == 1:  # a weight goes without its bias only where the user says so
                end = r"\."
            layers = layers_of.setdefault((device, kind, end), [])
            if device != home and layer not in layers:
                layers.append(layer)
    kinds_of: dict[tuple[int, tuple[int, ...], str], list[str]] = {}
    for (device, kind, end), layers in layers_of.items():
        if layers:
            kinds_of.setdefault((device, tuple(layers), end), []).append(kind)
    for (device, where, end), kinds in kinds_of.items():
        found.append((rf"^blk\.({'|'.join(map(str, where))})\.({'|'.join(kinds)}){end}", device))
    return found


def _kinds(spec: ModelSpec) -> dict[tuple[int, str], list[str]]:
    """(layer, kind) → names: a weight, its bias and its scale. FFN tensors come first, as executed."""
    found: dict[tuple[int, str], list[str]] = {}
    for layer, tensors in enumerate(layer_tensors(spec)):
        for tensor in chain(*tensors.ffn_tensors.values(), tensors.core):
            kind = tensor.name.split(".")[2]
            found.setdefault((layer, kind), []).append(tensor.name)
    return found


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
    last = last_device(config.layers)
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
    in_ram = layer_count(spec) - sum(config.layers)
    return [device for device, layers in enumerate((in_ram, *config.layers)) for _ in range(layers)]


def exceptions_of(spec: ModelSpec, config: LlamaConfig) -> dict[tuple[int, str], list[int]]:
    """(device, kind of tensor) → layers with such tensors there, away from the layer's device."""
    layer_devices = _layer_devices(spec, config)
    found: dict[tuple[int, str], list[int]] = {}
    for name, device in devices_of(spec, config).items():
        match = _KIND.match(name)
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
