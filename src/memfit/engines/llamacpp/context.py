"""What a context is made with: the engine's `llama_context_params` for the parameters of a plan.

The oracle's simulated contexts and real ones take the same, so that their bytes agree. Runs in the worker.
"""

from __future__ import annotations

from typing import Any

from memfit.memory.oracle import EngineParameters

__all__ = ["context_options"]

_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml_type


def context_options(api: Any, parameters: EngineParameters) -> Any:
    """llama_context_params; callbacks are for the caller to add."""
    options = api.llama_context_default_params()
    options.n_ctx = parameters.context
    options.n_batch = options.n_ubatch = min(parameters.micro_batch, parameters.context)
    options.n_seq_max = parameters.parallel
    # Unset it would be n_batch: logits for every token of a micro-batch, 300 MiB on a 152k vocabulary.
    options.n_outputs_max = parameters.parallel
    options.kv_unified = parameters.kv_unified
    options.swa_full = False
    options.type_k = options.type_v = _KV_TYPES[parameters.kv_type]
    options.n_threads = options.n_threads_batch = parameters.threads
    # A device would copy a matrix out of RAM before our callback has given it an address (weights.py). Not by
    # `streamed` alone, since the oracle is asked about the same model with nothing streamed.
    options.op_offload = parameters.load_mode != "own"
    return options
