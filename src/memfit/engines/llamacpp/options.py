"""What models and contexts are made with: the engine's own options for the config of a plan.

Simulated ones, which the oracle asks, and real ones take the same, so that their bytes agree. In the worker.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from memfit.engines.llamacpp.devices import Devices
from memfit.memory.estimate import LlamaConfig
from memfit.planner.request import POOLINGS

__all__ = ["Evaluate", "context_options", "evaluation_callback", "place_tensors"]

_MOST_DEVICES = 16  # llama_max_devices
_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml_type
_OWN_POOLING = -1  # of llama_pooling_type, which has POOLINGS from 0 on


def context_options(api: Any, config: LlamaConfig) -> Any:
    """llama_context_params; callbacks are for the caller to add."""
    options = api.llama_context_default_params()
    options.n_ctx = config.context
    options.n_batch = options.n_ubatch = min(config.ubatch, config.context)
    options.n_seq_max = config.parallel
    # Unset it would be n_batch: logits for every token of a ubatch, 300 MiB on a 152k vocabulary.
    options.n_outputs_max = max(config.parallel, config.outputs)
    if config.embeds:
        options.embeddings = True
        options.pooling_type = POOLINGS.index(config.pooling) if config.pooling else _OWN_POOLING
        options.n_outputs_max = options.n_ubatch
    options.kv_unified = config.kv_unified
    options.swa_full = False
    options.type_k = options.type_v = _KV_TYPES[config.kv_type]
    options.n_threads = options.n_threads_batch = config.threads
    # Never where we hold the weights: a device would copy a matrix out of RAM before our callback has given
    # it an address (weights.py). The planner knows; a saved plan may not.
    options.op_offload = config.op_offload and config.load_mode == "read"
    return options


# Called with a node's address, before it is computed (True) and, where it then returned True, after that.
Evaluate = Callable[[int, bool], bool]


def evaluation_callback(watchers: Sequence[Evaluate], failures: list[Exception]) -> Any:
    """One `cb_eval` for all of them. What they raise is added to `failures`: C would go on without a word."""
    wanting: list[Evaluate] = []

    def evaluate(node: int, ask: bool, _: object) -> bool:
        try:
            if ask:
                wanting[:] = [one for one in watchers if one(node, True)]
                return bool(wanting)
            return all(one(node, False) for one in wanting)
        except Exception as error:
            failures.append(error)
            return False

    kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    return kind(evaluate)


def place_tensors(
    options: Any, config: LlamaConfig, devices: Devices, addresses: Sequence[int]
) -> tuple[object, ...]:
    """Say in llama_model_params where every tensor lies; returns what must stay alive while loading.

    What lies in RAM is pinned only where a device copies from it: pinned weights are not rewritten.

    The engine gives the last `n_gpu_layers` of its layers, the output counting as one, to the devices in
    shares of `tensor_split`; in whole layers as here, the shares come out exactly.
    """
    layers = config.layers
    listed = (ctypes.c_void_p * (len(addresses) + 1))(*addresses, None)  # empty: none, whatever is there
    options.devices = ctypes.addressof(listed)
    options.no_host = not config.op_offload
    used = [index for index, count in enumerate(layers) if count]
    last = used[-1] if used else len(addresses) - 1
    options.n_gpu_layers = sum(layers) + 1 if addresses else 0
    shares = (ctypes.c_float * _MOST_DEVICES)(*layers)
    shares[max(last, 0)] += 1  # the output
    options.tensor_split = ctypes.cast(shares, type(options.tensor_split))
    # One that matches nothing keeps several devices from holding every compute buffer four times.
    overrides = (*config.overrides, ("^$", 0)) if addresses else ()
    table = (_Override * (len(overrides) + 1))()
    for row, (pattern, device) in zip(table, overrides, strict=False):
        row.pattern = pattern.encode()
        row.buffer_type = devices.default_buffer_type(addresses[device - 1] if device else devices.cpu)
    options.tensor_buft_overrides = ctypes.addressof(table)
    return listed, shares, table


class _Override(ctypes.Structure):
    """llama.cpp's `llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))
