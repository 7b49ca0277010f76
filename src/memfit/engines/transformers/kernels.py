"""How fast torch and bitsandbytes multiply here, by precision: what predicted speeds start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import bitsandbytes
import torch

from memfit.engines.transformers.packed_layers import PackedLinear
from memfit.errors import EngineError
from memfit.hardware.cpu_use import CpuMeter
from memfit.headers.stored_weights import StoredWeight
from memfit.memory.packed_weights import FORMS
from memfit.memory.precision import Precision
from memfit.memory.precision import precision as named
from memfit.units import MIB

__all__ = ["measure_kernels"]

_ELEMENTS = 92_000_000  # of all matrices together: beyond what caches hold
_MANY = 256  # tokens of a prompt
_REPETITIONS = 3
_LINK_BYTES = 256 * MIB


def measure_kernels(precision: str, shape: tuple[int, int], threads: int, gpu: bool) -> dict[str, Any]:
    """Matrices of `shape` (outputs, inputs): weights past one token per second, operations per second of a
    prompt; on the first GPU that torch sees or on the CPU. And bytes per second from RAM to that GPU, and
    whether other programs computed meanwhile."""
    cpus = CpuMeter()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if gpu and not torch.cuda.is_available():
        raise EngineError(f"torch {torch.__version__} cannot use a GPU here; install its build for CUDA")
    device = torch.device("cuda" if gpu else "cpu")
    outputs, inputs = shape
    count = max(1, _ELEMENTS * (4 if gpu else 1) // (outputs * inputs))  # a GPU's caches are larger
    held = named("bf16" if precision in FORMS else precision)
    if precision in FORMS:
        layers = [_packed_layer(precision, outputs, inputs) for _ in range(count)]
    else:
        layers = [_layer(held, outputs, inputs, device) for _ in range(count)]
    dtype = getattr(torch, held.dtype)
    one, many = (torch.randn(tokens, inputs).to(device, dtype) for tokens in (1, _MANY))
    elements = count * outputs * inputs
    found = {
        "elements_per_second": elements / _seconds(layers, one),
        "operations_per_second": 2 * elements * _MANY / _seconds(layers, many),
        "link_bytes_per_second": _link_speed(device) if gpu else 0.0,
    }
    use = cpus.use(0.0)
    return {**found, "is_provisional": use is not None and not use.is_quiet, "measured_at": time.time()}


def _layer(held: Precision, outputs: int, inputs: int, device: torch.device) -> Any:
    weight = torch.randn(outputs, inputs) / inputs**0.5
    weight = weight.to(getattr(torch, held.dtype))
    if not held.is_quantized:
        plain = torch.nn.Linear(inputs, outputs, bias=False)
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        return plain.to(device)
    if held.bits == 8:
        layer = bitsandbytes.nn.Linear8bitLt(
            inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer.to(device).eval()  # which quantizes
    layer = bitsandbytes.nn.Linear4bit(
        inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type=held.load_in
    )
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type=held.load_in)
    return layer.to(device).eval()


def _packed_layer(form: str, outputs: int, inputs: int) -> Any:
    """Of zeros, which takes as long."""
    layout = {"int4": "awq", "int8": "int8", "float8": "float8", "nf4": "bnb-4bit"}[form]
    bits = 4 if form in ("int4", "nf4") else 8
    group = 64 if form == "nf4" else next(size for size in (128, 64) if inputs % size == 0)
    stored = StoredWeight(layout=layout, shape=(outputs, inputs), bits=bits, group=group, parts={})
    layer = PackedLinear(stored, None)
    block = torch.zeros(layer.weight.shape, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(block, requires_grad=False)
    return layer


def _link_speed(device: torch.device) -> float:
    block = torch.ones(_LINK_BYTES, dtype=torch.uint8)

    def send(one: torch.Tensor) -> None:
        torch.cuda.empty_cache()  # as accelerate does behind each tensor that it sends
        one.to(device)

    return _LINK_BYTES / _seconds([send], block)


def _seconds(layers: Sequence[Callable[[torch.Tensor], Any]], states: torch.Tensor) -> float:
    """Of all layers once, after a first time that may pack weights anew."""
    times = []
    for _ in range(1 + _REPETITIONS):
        started = time.perf_counter()
        for layer in layers:
            layer(states)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])
