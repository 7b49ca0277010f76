"""Where each tensor lies, in the engine's words: layer counts and name patterns, written and read.

A layer's home follows from the counts: the last layers lie on the devices, in their order, the others in
RAM. Its large feed-forward or expert tensors, its blocks, may lie elsewhere by patterns; all else of it,
the KV cache too, stays at home.
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
    "exceptions_of",
    "layer_tensors",
    "op_offload_bytes",
    "output_tensors",
    "placed_config",
    "places_of",
    "sent_bytes",
]

_LAYER = re.compile(r"blk\.(\d+)\.")
_BLOCK = re.compile(r"blk\.(\d+)\.(ffn_(?:gate|up|gate_up|down)(?:_exps|_chexps)?)\.")
_OUTPUT = re.compile(r"output|token_embd\.")
_OUTPUT_PATTERN = r"^(output|token_embd)"
_ORDER = ("gate", "up", "gate_up", "down")  # of execution


# -- the parts of a model ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    core: list[TensorSpec] = field(default_factory=list)  # what stays at home
    blocks: dict[str, list[TensorSpec]] = field(default_factory=dict)  # by kind, in order of execution


def layer_tensors(spec: ModelSpec) -> list[LayerTensors]:
    """Each layer's tensors, in order of execution."""
    layers = [LayerTensors() for _ in range(_layer_count(spec))]
    for tensor in spec.tensors:
        if match := _BLOCK.match(tensor.name):
            layers[int(match[1])].blocks.setdefault(match[2], []).append(tensor)
        elif match := _LAYER.match(tensor.name):
            layers[int(match[1])].core.append(tensor)
    return [replace(one, blocks=dict(sorted(one.blocks.items(), key=_execution))) for one in layers]


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
    if not any(placement.homes) and not placement.output and not any(map(any, placement.blocks)):
        return config
    # Mapping would keep what lies on devices in RAM too. memfit's workers count what is on its way to them,
    # which is little where we send it, in pieces; weights that are rewritten only the engine can load.
    in_pieces = not config.repack and all(device.is_memfit_server for device in devices)
    overrides = _block_patterns(spec, placement)
    last = max(placement.homes, default=RAM)
    if placement.output != (last or len(devices)):  # the engine puts it on the last device in use
        overrides.append((_OUTPUT_PATTERN, placement.output))
    return replace(
        config,
        load_mode="own" if in_pieces else "read",
        layers=tuple(placement.homes.count(place) for place in range(1, len(devices) + 1)),
        overrides=tuple(overrides),
        devices=tuple(device.engine_name for device in devices),
    )


def _block_patterns(spec: ModelSpec, placement: Placement) -> list[tuple[str, int]]:
    """Patterns for blocks that do not lie at home: few, as the engine compiles each for every tensor."""
    layers_of: dict[tuple[int, str], list[int]] = {}
    rows = zip(placement.homes, layer_tensors(spec), placement.blocks, strict=True)
    for layer, (home, tensors, places) in enumerate(rows):
        for kind, place in zip(tensors.blocks, places, strict=True):
            if place != home:
                layers_of.setdefault((place, kind), []).append(layer)
    kinds_of: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for (place, kind), layers in layers_of.items():
        kinds_of.setdefault((place, tuple(layers)), []).append(kind)
    return [
        (rf"^blk\.({'|'.join(map(str, layers))})\.({'|'.join(kinds)})\.", place)
        for (place, layers), kinds in kinds_of.items()
    ]


# -- read ----------------------------------------------------------------------------------------


def places_of(spec: ModelSpec, config: LlamaConfig) -> dict[str, int]:
    """Where each tensor lies, by its name: the engine's own rules applied to `config`.

    A tied token table lies in RAM and, being the output matrix too, where the output is: it is listed
    there.
    """
    if not config.devices:
        return {tensor.name: RAM for tensor in spec.tensors}
    homes = _homes(spec, config)
    outputs = {tensor.name for tensor in output_tensors(spec)}
    last = max(homes, default=RAM) or len(config.devices)
    patterns = [(re.compile(pattern), place) for pattern, place in config.overrides]
    found = {}
    for tensor in spec.tensors:
        place = next((place for pattern, place in patterns if pattern.search(tensor.name)), None)
        if place is None:
            layer = _LAYER.match(tensor.name)
            place = homes[int(layer[1])] if layer else last if tensor.name in outputs else RAM
        found[tensor.name] = place
    return found


def _homes(spec: ModelSpec, config: LlamaConfig) -> list[int]:
    """The place of each layer."""
    homes = [RAM] * (_layer_count(spec) - sum(config.layers))
    for place, layers in enumerate(config.layers, start=1):
        homes += [place] * layers
    return homes


def exceptions_of(spec: ModelSpec, config: LlamaConfig) -> dict[tuple[int, str], list[int]]:
    """(place, kind of tensor) → the layers whose tensors of that kind lie there and not at home."""
    homes = _homes(spec, config)
    found: dict[tuple[int, str], list[int]] = {}
    for name, place in places_of(spec, config).items():
        match = _BLOCK.match(name)
        if match and place != homes[int(match[1])]:
            layers = found.setdefault((place, match[2]), [])
            if int(match[1]) not in layers:
                layers.append(int(match[1]))
    return found


def sent_bytes(spec: ModelSpec, config: LlamaConfig) -> dict[int, list[int]]:
    """Per place beyond RAM, the sizes of the tensors that are sent there, largest first, as they are sent."""
    places = places_of(spec, config)
    found: dict[int, list[int]] = {}
    for tensor in sorted(spec.tensors, key=lambda one: -one.size_bytes):
        if places[tensor.name] != RAM:
            found.setdefault(places[tensor.name], []).append(tensor.size_bytes)
    return found


def op_offload_bytes(spec: ModelSpec, config: LlamaConfig) -> int:
    """What a GPU needs to multiply a prompt with matrices that lie in RAM: a copy of the largest."""
    places = places_of(spec, config)
    kept = [one for one in spec.tensors if _LAYER.match(one.name) and places[one.name] == RAM]
    return max((tensor.size_bytes for tensor in kept), default=0)
