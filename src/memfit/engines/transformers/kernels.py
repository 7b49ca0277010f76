"""How fast torch and bitsandbytes multiply here, by precision: what predicted speeds start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import bitsandbytes
import torch

__all__ = ["measure_kernels"]

_INPUTS, _OUTPUTS = 2048, 5632  # a small model's feed-forward layer
_LAYERS = 8  # together beyond what caches hold
_MANY = 256  # tokens of a prompt
_REPETITIONS = 3
_PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure_kernels(precisions: Sequence[str], threads: int) -> dict[str, Any]:
    """By precision: weights' bytes per second past one token, operations per second of a prompt."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return {"speeds": {name: _measure(name) for name in precisions}}


def _measure(precision: str) -> dict[str, float]:
    dtype = _PLAIN.get(precision, torch.bfloat16)
    layers = [_layer(precision) for _ in range(_LAYERS)]
    one, many = (torch.randn(tokens, _INPUTS).to(dtype) for tokens in (1, _MANY))
    elements = _LAYERS * _INPUTS * _OUTPUTS
    seconds = _seconds(layers, one)
    return {
        "elements_per_second": elements / seconds,
        "operations_per_second": 2 * elements * _MANY / _seconds(layers, many),
    }


def _layer(precision: str) -> Any:
    weight = torch.randn(_OUTPUTS, _INPUTS) / _INPUTS**0.5
    if precision in _PLAIN:
        plain = torch.nn.Linear(_INPUTS, _OUTPUTS, bias=False)
        plain.weight = torch.nn.Parameter(weight.to(_PLAIN[precision]), requires_grad=False)
        return plain
    weight = weight.to(torch.bfloat16)
    if precision == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(
            _INPUTS, _OUTPUTS, bias=False, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer.to("cpu").eval()  # which quantizes
    layer = bitsandbytes.nn.Linear4bit(
        _INPUTS, _OUTPUTS, bias=False, compute_dtype=torch.bfloat16, quant_type=precision
    )
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type=precision)
    return layer.to("cpu").eval()


def _seconds(layers: Sequence[Callable[[torch.Tensor], Any]], states: torch.Tensor) -> float:
    """Of all layers once, after a first time that may pack weights anew."""
    times = []
    for _ in range(1 + _REPETITIONS):
        started = time.perf_counter()
        for layer in layers:
            layer(states)
        times.append(time.perf_counter() - started)
    return median(times[1:])
