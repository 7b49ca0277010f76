"""What llama.cpp's placement options mean for one model: devices of single tensors, and layers per device.

As llama.cpp reads them: a pattern is searched for in names, and the first that is found decides; of N layers
on devices the output is the last. Which of our devices a name means is said here, too.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from memfit.errors import WrongValueError, readable
from memfit.hardware.machine import DUMMY, Device
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import RAM
from memfit.planner.request import ALL_LAYERS, Conditions

__all__ = ["fixed_tensors", "layers_per_device"]

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
_RAM_NAMES = ("cpu", "ram")
_RPC_NAME = re.compile(r"RPC\d*\[(.+)\]")  # as llama.cpp calls a remote device


def fixed_tensors(spec: ModelSpec, conditions: Conditions, devices: Sequence[Device]) -> Mapping[str, int]:
    """Name → device, RAM being 0, of every tensor that conditions speak of.

    Raises:
        UsageError: no such device, no regular expression, or one that is found in no name.
    """
    found: dict[str, int] = {}
    for pattern, device in conditions.overrides:
        number, matches = _number(device, devices), _regex(pattern)
        names = [tensor.name for tensor in spec.tensors if matches.search(tensor.name)]
        if not names:
            raise WrongValueError(
                "override_tensor",
                f" {readable(pattern)}: no tensor of this model has such a name; "
                "memfit inspect MODEL --tensors lists them",
            )
        found |= {name: number for name in names if name not in found}
    if (most := conditions.cpu_moe_layers) is not None:
        experts = {one.name: match for one in spec.tensors if (match := _EXPERTS.match(one.name))}
        if not experts:
            name = "cpu_moe" if most == ALL_LAYERS else "n_cpu_moe"
            raise WrongValueError(name, ": this model has no experts, so there is nothing to keep in RAM")
        names = [name for name, match in experts.items() if int(match[1]) < most]
        found |= {name: RAM for name in names if name not in found}
    return found


def layers_per_device(layers: int, gpu_layers: int, room_bytes: Sequence[int]) -> tuple[int, ...]:
    """Of a model's `layers`, without the output, those on each device: in shares of the devices' room."""
    on_devices = min(gpu_layers, layers + 1)
    edges = list(accumulate(room_bytes))
    counts = [0] * len(room_bytes)
    for index in range(on_devices - 1):  # the last one, the output, lies on the last device in use
        share = index / on_devices * edges[-1]
        counts[min(bisect_right(edges, share), len(counts) - 1)] += 1
    return tuple(counts)


def _number(name: str, devices: Sequence[Device]) -> int:
    if match := _RPC_NAME.fullmatch(name):
        name = match[1]
    if name.lower() in _RAM_NAMES:
        return RAM
    names = [{one.name.lower(), one.engine_name.removeprefix(DUMMY).lower()} for one in devices]
    for number, known in enumerate(names, start=1):
        if name.lower() in known:
            return number
    there = ", ".join(["CPU", *(one.engine_name.removeprefix(DUMMY) for one in devices)])
    raise WrongValueError(
        "override_tensor", f": there is no device {readable(name)} to use; known here: {there}"
    )


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of [[:digit:]], which Python does not know
            return re.compile(pattern)
    except (re.error, FutureWarning) as error:
        raise WrongValueError(
            "override_tensor", f" {readable(pattern)} is no regular expression: {error}"
        ) from None
