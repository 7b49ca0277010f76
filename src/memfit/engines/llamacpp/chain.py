"""A request's sampling settings as llama.cpp's samplers, in llama.cpp's own order."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memfit.engines.requests import Sampling
from memfit.errors import UsageError

if TYPE_CHECKING:
    from memfit.engines.llamacpp.model import LlamaModel

__all__ = ["build_chain", "remembers"]

_MIROSTAT_TOKENS = 100  # llama.cpp's own
_Make = Callable[[Any, "LlamaModel", Sampling], Any]

# Whether a setting is on, and the sampler that keeps it. Those above choose among all tokens and look back,
# those below leave some over.
_FIRST: tuple[tuple[Callable[[Sampling], bool], _Make], ...] = (
    (lambda s: bool(s.logit_bias) or s.ignore_eos, lambda api, model, s: _bias(api, model, s)),
    (
        lambda s: _penalises(s),
        lambda api, model, s: api.llama_sampler_init_penalties(
            model.vocabulary_size,
            s.repeat_last_n if s.repeat_last_n >= 0 else model.sequence_tokens,
            s.repeat_penalty,
            s.frequency_penalty,
            s.presence_penalty,
        ),
    ),
    (lambda s: s.dry_multiplier > 0, lambda api, model, s: _dry(api, model, s)),
)
_FILTERS: tuple[tuple[Callable[[Sampling], bool], _Make], ...] = (
    (lambda s: s.top_n_sigma > 0, lambda api, _, s: api.llama_sampler_init_top_n_sigma(s.top_n_sigma)),
    (lambda _: True, lambda api, _, s: api.llama_sampler_init_top_k(s.top_k)),
    (lambda s: s.typical_p < 1, lambda api, _, s: api.llama_sampler_init_typical(s.typical_p, 1)),
    (lambda _: True, lambda api, _, s: api.llama_sampler_init_top_p(s.top_p, 1)),
    (lambda _: True, lambda api, _, s: api.llama_sampler_init_min_p(s.min_p, 1)),
    (
        lambda s: s.xtc_probability > 0,
        lambda api, _, s: api.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, 1, s.seed),
    ),
)


def remembers(sampling: Sampling) -> bool:
    """Whether the chosen tokens matter for the next ones, or the largest logit is not the likeliest."""
    return any(is_on(sampling) for is_on, _ in _FIRST)


def build_chain(api: Any, model: LlamaModel, sampling: Sampling) -> Any:
    """The chain; whoever asks frees it.

    Raises:
        UsageError: a token that the vocabulary has not.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        for is_on, make in (*_FIRST, *(_FILTERS if _filters(sampling) else ())):
            if is_on(sampling):
                api.llama_sampler_chain_add(chain, make(api, model, sampling))
    except BaseException:
        api.llama_sampler_free(chain)
        raise
    for last in _last(api, model, sampling):
        api.llama_sampler_chain_add(chain, last)
    return chain


def _penalises(sampling: Sampling) -> bool:
    neutral = (1.0, 0.0, 0.0)
    return (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != neutral


def _filters(sampling: Sampling) -> bool:
    return sampling.temperature > 0 and not sampling.mirostat


def _last(api: Any, model: LlamaModel, sampling: Sampling) -> Sequence[Any]:
    if sampling.temperature <= 0:
        return (api.llama_sampler_init_greedy(),)
    spread, exponent = sampling.dynatemp_range, sampling.dynatemp_exponent
    warmth = api.llama_sampler_init_temp_ext(sampling.temperature, spread, exponent)
    tau, eta, seed = sampling.mirostat_tau, sampling.mirostat_eta, sampling.seed
    if sampling.mirostat == 1:
        tokens = model.vocabulary_size
        return warmth, api.llama_sampler_init_mirostat(tokens, seed, tau, eta, _MIROSTAT_TOKENS)
    if sampling.mirostat == 2:
        return warmth, api.llama_sampler_init_mirostat_v2(seed, tau, eta)
    return warmth, api.llama_sampler_init_dist(seed)


def _dry(api: Any, model: LlamaModel, sampling: Sampling) -> Any:
    breakers = [one.encode() for one in sampling.dry_sequence_breakers]
    last = sampling.dry_penalty_last_n
    return api.llama_sampler_init_dry(
        model.vocabulary,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        last if last >= 0 else model.sequence_tokens,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )


def _bias(api: Any, model: LlamaModel, sampling: Sampling) -> Any:
    biases: dict[int, float] = {}
    for which, bias in sampling.logit_bias:
        tokens = model.tokenize(which, add_special=False) if isinstance(which, str) else [which]
        for token in tokens:
            if not 0 <= token < model.vocabulary_size:
                most = model.vocabulary_size - 1
                raise UsageError(
                    f"logit_bias: there is no token {token}; the vocabulary has 0 to {most}",
                    field="logit_bias",
                    got=token,
                    needed=f"0 to {most}",
                )
            biases[token] = bias
    if sampling.ignore_eos:
        biases |= dict.fromkeys(model.end_tokens, -math.inf)
    values = (api.llama_logit_bias * len(biases))(*biases.items())
    return api.llama_sampler_init_logit_bias(model.vocabulary_size, len(biases), values)
