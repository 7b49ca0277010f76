"""The KV cache of one context: which sequences hold which tokens. Runs in the worker."""

from __future__ import annotations

from typing import Any

from memfit.errors import ModelError

__all__ = ["KvCache"]


class KvCache:
    """Satisfies scheduler.Cache."""

    def __init__(self, api: Any, model: int, context: int, *, unified: bool, embeds: bool = False) -> None:
        """`model` and `context` are llama.cpp's pointers; `unified`: all sequences share all cells. A model
        that `embeds` may have no cache: then there is nothing to clear.

        Raises:
            ModelError: there is none, or an encoder before it: the engine would abort the process.
        """
        self._api = api
        self._model = model
        self._memory: int | None = api.llama_get_memory(context)
        if not (self._memory or embeds) or api.llama_model_has_encoder(model):
            raise ModelError("the engine does not write text with this model: it is an encoder, or has one")
        self._unified = unified
        self.may_hold_nan = False

    @property
    def is_there(self) -> bool:
        """An encoder has none."""
        return bool(self._memory)

    def clear(self) -> None:
        """Forget all sequences. Cells are as they were: what is written next is read, what is not is masked.
        But a kernel masks by multiplying with 0, and 0 times NaN is NaN, so that one is wiped out."""
        if self._memory:
            self._api.llama_memory_clear(self._memory, self.may_hold_nan)
        self.may_hold_nan = False

    def keep(self, tokens: int) -> bool:
        """Keep only the first `tokens` tokens of sequence 0; False where the cache cannot go back.

        A sliding window has dropped what lies before it, so going back past it needs a fresh start.
        """
        return tokens > 0 and not self.may_hold_nan and self.reaches(0, tokens) and self.cut(0, tokens)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let an empty sequence begin with the first `tokens` of another: in the same cells where all share
        them, else in a copy, which the engine makes of whole sequences only."""
        if self._unified:
            self._api.llama_memory_seq_cp(self._memory, source, target, 0, tokens)
        else:
            self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._api.llama_memory_seq_rm(self._memory, target, tokens, -1)

    def cut(self, sequence: int, tokens: int) -> bool:
        """Keep only the first `tokens` of a sequence; False, and nothing is kept, where it cannot be cut."""
        if self._api.llama_memory_seq_rm(self._memory, sequence, tokens, -1):
            return True
        self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def reaches(self, sequence: int, tokens: int) -> bool:
        """Whether a sequence can go on after its first `tokens`: not where a sliding window has left them,
        nor where a recurrent layer has gone past."""
        api, memory = self._api, self._memory
        if api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model):
            return bool(api.llama_memory_seq_pos_max(memory, sequence) == tokens - 1)
        window = api.llama_model_n_swa(self._model)
        return bool(0 <= api.llama_memory_seq_pos_min(memory, sequence) <= max(0, tokens - window))
