"""A request's sampling settings as llama.cpp's sampler chain, in llama.cpp's own order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memfit.engines.protocol import Sampling

__all__ = ["sampler_chain"]

_PENALTY_TOKENS = 64  # how far back a repeated token is penalised; llama.cpp's default


@contextmanager
def sampler_chain(api: Any, sampling: Sampling, vocabulary_size: int) -> Iterator[int]:
    """A chain for one request, freed at the end."""
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        if sampling.repeat_penalty != 1.0:
            add = api.llama_sampler_init_penalties(
                vocabulary_size, _PENALTY_TOKENS, sampling.repeat_penalty, 0.0, 0.0
            )
            api.llama_sampler_chain_add(chain, add)
        if sampling.temperature <= 0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
        else:
            for sampler in (
                api.llama_sampler_init_top_k(sampling.top_k),
                api.llama_sampler_init_top_p(sampling.top_p, 1),
                api.llama_sampler_init_min_p(sampling.min_p, 1),
                api.llama_sampler_init_temp(sampling.temperature),
                api.llama_sampler_init_dist(sampling.seed),
            ):
                api.llama_sampler_chain_add(chain, sampler)
        yield chain
    finally:
        api.llama_sampler_free(chain)
