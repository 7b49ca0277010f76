"""How fast a configuration will run, from what was measured of this CPU's kernels.

    seconds per token  = (sum over types (weight bytes / bytes per second)
                          + KV bytes / bytes per second + nodes * seconds per node) / efficiency
    seconds per prompt = sum over types (2 * weights * tokens / operations per second) / efficiency

Counted: the weights a token passes through (a mixture of experts counts the experts it uses), the KV
cache at the workload's mean depth, one barrier per node. Not counted but in the efficiency: attention's
arithmetic, norms and activations. Ignored: sampling, caches larger than the weights.
The efficiency is the mean over both packaged models, measured by benchmarks/speed.py: 0.63 to 0.83.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memfit.headers.model_spec import ModelSpec, TensorSpec

__all__ = ["ASSUMED", "KernelSpeed", "Prediction", "Rate", "measured_types", "predict"]

_SPREADS = {  # of the rates either side; benchmarks/speed.py records how often reality lies within
    "calibrated": 0.35,
    "assumed": 0.75,
}
_EFFICIENCY = 0.75  # of the matrix kernels' own speed
_MINOR = 0.01  # a type with a smaller share of the bytes runs at the main type's speed
_ATTENTION_TYPE = "F16"  # KV cache bytes stream at about this type's speed


@dataclass(frozen=True, kw_only=True)
class KernelSpeed:
    """One quantization type on this machine, repacked or not, with a number of threads."""

    bytes_per_second: float  # weights streamed while generating
    operations_per_second: float  # multiplications and additions while processing a prompt
    node_seconds: float  # a graph node that does next to nothing


# A desktop CPU of about 2020 with two memory channels, whatever the type: better than no figure at all.
ASSUMED = KernelSpeed(bytes_per_second=20e9, operations_per_second=150e9, node_seconds=2e-6)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens per second, with the range that reality should lie in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    prompt: Rate
    generation: Rate
    basis: str  # "calibrated": from kernels measured on this machine; "assumed": from ASSUMED


def measured_types(spec: ModelSpec) -> list[str]:
    """The types whose kernels decide this model's speed, the one of most bytes first."""
    sizes: dict[str, float] = {}
    for tensor, share in _active_tensors(spec):
        sizes[tensor.type] = sizes.get(tensor.type, 0.0) + tensor.size_bytes * share
    whole = sum(sizes.values())
    major = sorted((name for name in sizes if sizes[name] >= _MINOR * whole), key=lambda name: -sizes[name])
    return [*major, *({_ATTENTION_TYPE} - set(major))]


def predict(
    spec: ModelSpec,
    speeds: Mapping[str, KernelSpeed] | None,
    *,
    nodes: int,
    kv_bytes_per_token: float,
    prompt_tokens: int,
    generated_tokens: int,
) -> Prediction:
    """Rates for a request of these lengths; `nodes` are the operations of one token's graph.

    `speeds` are those of `measured_types`; None where they could not be measured.
    """
    basis = "assumed" if speeds is None else "calibrated"
    types = measured_types(spec)
    speeds = dict.fromkeys(types, ASSUMED) if speeds is None else speeds
    main = speeds[types[0]]
    token_seconds = nodes * main.node_seconds
    operation_seconds = 0.0
    for tensor, share in _active_tensors(spec):
        speed = speeds.get(tensor.type, main)
        token_seconds += tensor.size_bytes * share / speed.bytes_per_second
        if not _is_output(tensor):  # a prompt needs the logits of its last token only
            operation_seconds += 2 * tensor.elements * share / speed.operations_per_second
    depth = prompt_tokens + generated_tokens / 2
    token_seconds += depth * kv_bytes_per_token / speeds[_ATTENTION_TYPE].bytes_per_second
    return Prediction(
        prompt=_rate(_EFFICIENCY / operation_seconds, _SPREADS[basis]),
        generation=_rate(_EFFICIENCY / token_seconds, _SPREADS[basis]),
        basis=basis,
    )


def _rate(value: float, spread: float) -> Rate:
    return Rate(value=value, low=value * (1 - spread), high=value * (1 + spread))


def _active_tensors(spec: ModelSpec) -> Iterator[tuple[TensorSpec, float]]:
    """Matrices that a token is multiplied with, and the share of each that it uses."""
    tied = all(tensor.name != "output.weight" for tensor in spec.tensors)
    experts, used = (spec.architecture_value(key) for key in ("expert_count", "expert_used_count"))
    routed = used / experts if isinstance(experts, int) and isinstance(used, int) and experts else 1.0
    for tensor in spec.tensors:
        if len(tensor.shape) < 2 or (tensor.name == "token_embd.weight" and not tied):
            continue  # vectors are small; an embedding table is read by the row
        yield tensor, routed if "_exps." in tensor.name else 1.0


def _is_output(tensor: TensorSpec) -> bool:
    return tensor.name in ("output.weight", "token_embd.weight")
