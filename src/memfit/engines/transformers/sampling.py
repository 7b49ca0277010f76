"""How one of several sequences chooses its next token: by transformers' own processors, in the order in which
its `generate` applies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from memfit.engines.requests import Sampling

__all__ = ["Sampler"]


class Sampler:
    """Of one request."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._draws = sampling.temperature > 0
        self._processors = LogitsProcessorList()
        if sampling.repeat_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repeat_penalty))
        if self._draws:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                self._processors.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.is_random_seed:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is the choice."""
        return not self._processors

    def choose(self, logits: torch.Tensor, tokens: Sequence[int]) -> int:
        """From float32 [vocabulary], after `tokens`."""
        before = torch.tensor([tokens], device=logits.device)
        scores = self._processors(before, logits[None])
        if not self._draws:
            return int(scores.argmax())
        chances = scores.softmax(dim=-1)
        return int(torch.multinomial(chances, num_samples=1, generator=self._generator))
