"""In which form each kind of matrix is held where weights are rewritten: so, so but as Q8_0, or plain.

What is faster differs by type and CPU. With AMX Q6_K generates 1.6 times as fast plain, Q8_0 computes prompts
4 times as fast rewritten. Models whose rows are no whole K-quant blocks (a width of 896 or 640) fall back on
Q5_0, for which most CPUs have only plain kernels; Q8_0 holds every value of it, in 1.5 times the bytes.

Routed experts have kernels of their own: rewritten ones take a prompt's tokens one by one.

All matrices of a type and length of rows get one form, experts theirs: then a prediction is that of the
measured speeds.
"""

from __future__ import annotations

from dataclasses import replace

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.streaming import WIDENED, WIDENS, widened_bytes
from memfit.planner.llamacpp.streaming import is_dense_matrix, is_matrix
from memfit.planner.llamacpp.twofold import kernel_seconds
from memfit.planner.request import Workload
from memfit.planner.speed import DeviceSpeed, WeightSpeed, weight_key

__all__ = ["choose_forms", "forms_speed", "may_widen"]


def choose_forms(
    spec: ModelSpec, config: LlamaConfig, plain: DeviceSpeed, rewritten: DeviceSpeed, workload: Workload
) -> LlamaConfig | None:
    """`config`, all in RAM and rewritten, with each kind of matrix in the form that is fastest for the
    workload; None where that is the engine's for all of them."""

    def is_rewritten(key: str) -> bool:
        return key in rewritten.weights and rewritten.weights[key] != plain.weights.get(key)

    def best(tensor: TensorSpec) -> str:
        columns, kind = tensor.shape[0], _kind(tensor)
        itself = rewritten if is_rewritten(kind) else plain
        seconds = {
            form: kernel_seconds(_speed(speed, tensor), tensor.elements, tensor.size_bytes, workload)
            for form, speed in (("", itself), ("plain", plain))
        }
        if may_widen(tensor) and is_rewritten(weight_key(WIDENED, columns)):
            speed = rewritten.weight(WIDENED, columns)
            seconds["widened"] = kernel_seconds(speed, tensor.elements, widened_bytes(tensor), workload)
        return min(seconds, key=lambda form: (seconds[form], form))

    chosen = [one for one in spec.tensors if is_matrix(one)]
    kinds = {_kind(one): one for one in chosen}
    forms = {kind: best(one) for kind, one in kinds.items()}
    names = {
        form: tuple(one.name for one in chosen if forms[_kind(one)] == form) for form in ("plain", "widened")
    }
    if not any(names.values()):
        return None
    return replace(config, plain=names["plain"], widened=names["widened"])


def forms_speed(
    spec: ModelSpec, config: LlamaConfig, plain: DeviceSpeed, rewritten: DeviceSpeed
) -> DeviceSpeed:
    """The CPU's with matrices in these forms: `rewritten` but for those that stay plain."""
    names, weights = set(config.plain), dict(rewritten.weights)
    for one in spec.tensors:
        if one.name in names:
            weights[_kind(one)] = _speed(plain, one)
    return replace(rewritten, weights=weights)


def _kind(tensor: TensorSpec) -> str:
    return weight_key(tensor.type, tensor.shape[0], experts=len(tensor.shape) > 2)


def _speed(speed: DeviceSpeed, tensor: TensorSpec) -> WeightSpeed:
    return speed.weight(tensor.type, tensor.shape[0], experts=len(tensor.shape) > 2)


def may_widen(tensor: TensorSpec) -> bool:
    return tensor.type in WIDENS and is_dense_matrix(tensor)
