"""Several sequences in one pass: their tokens lie one behind the other, as if they were one text.

Matrices are multiplied with all of them at once. Only attention tells them apart: each sequence's tokens
attend to its own keys and values, so none is padded, and lengths differ as they like. All of the cache is
taken at the first pass, a part of the same size for each sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import AttentionInterface

__all__ = ["Sequences"]

_ATTENTION = "memfit_sequences"  # transformers' name for what is registered here


class Sequences:
    """The KV cache of some sequences, and attention over it. Satisfies scheduler.Cache."""

    def __init__(self, model: Any, hf_config: Any, *, sequences: int, tokens: int, ubatch: int) -> None:
        """Each sequence may have so many `tokens`, of which a pass computes a `ubatch` at most."""
        self.cache = DynamicCache(config=hf_config)
        # The running pass's sequences, each with how many of its tokens are computed.
        self.parts: Sequence[tuple[int, int]] = ()
        for index, layer in enumerate(self.cache.layers):
            is_sliding = type(layer) is DynamicSlidingWindowLayer
            assert is_sliding or type(layer) is DynamicLayer, "the planner allows no other kind"
            window = layer.sliding_window if is_sliding else None
            room = tokens if window is None else min(tokens, window - 1 + ubatch)
            self.cache.layers[index] = _Layer(self, sequences, room, window)
        AttentionInterface.register(_ATTENTION, self._attend)
        model.set_attn_implementation(_ATTENTION)

    @property
    def layers(self) -> list[_Layer]:
        layers: list[_Layer] = self.cache.layers
        return layers

    def share(self, source: int, target: int, tokens: int) -> None:
        for layer in self.layers:
            layer.share(source, target, tokens)

    def cut(self, sequence: int, tokens: int) -> bool:
        kept = tokens if self.reaches(sequence, tokens) else 0
        for layer in self.layers:
            layer.cut(sequence, kept)
        return kept == tokens

    def reaches(self, sequence: int, tokens: int) -> bool:
        return all(layer.reaches(sequence, tokens) for layer in self.layers)

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """`query` is [1, heads, tokens, head size]; keys and values are in the cache already."""
        layer, found, start = self.layers[module.layer_idx], [], 0
        for sequence, count in self.parts:
            part = query[:, :, start : start + count]
            found.append(layer.attend(part, sequence, scaling))
            start += count
        return torch.cat(found, dim=1), None


class _Layer(DynamicLayer):
    """One layer's keys and values: [sequences, heads, room, head size]."""

    def __init__(self, owner: Sequences, sequences: int, room: int, window: int | None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self._owner, self._room, self._window = owner, room, window
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None
        self._starts = [0] * sequences  # where in its room each begins
        self._held = [0] * sequences  # tokens there
        self._ends = [0] * sequences  # tokens that it had in all

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._memory is None:
            sizes = (len(self._held), key_states.shape[1], self._room, key_states.shape[3])
            keys = torch.zeros(sizes, dtype=key_states.dtype, device=key_states.device)  # zeros are resident
            self._memory = keys, torch.zeros_like(keys)
        start = 0
        for sequence, count in self._owner.parts:
            place = self._place(sequence, count)
            for memory, new in zip(self._memory, (key_states, value_states), strict=True):
                memory[sequence, :, place : place + count] = new[0, :, start : start + count]
            start += count
        return key_states, value_states

    def _place(self, sequence: int, count: int) -> int:
        """Where `count` more tokens go. What a window has left goes now: until here a pass can be undone."""
        assert self._memory is not None
        if self._window is not None:
            left = max(0, self._held[sequence] - (self._window - 1))
            self._starts[sequence] += left
            self._held[sequence] -= left
        start, held = self._starts[sequence], self._held[sequence]
        if start + held + count > self._room:  # what is still in use goes to the front
            for memory in self._memory:
                memory[sequence, :, :held] = memory[sequence, :, start : start + held].clone()
            self._starts[sequence] = start = 0
        self._held[sequence] += count
        self._ends[sequence] += count
        return start + held

    def attend(self, query: torch.Tensor, sequence: int, scaling: float | None) -> torch.Tensor:
        """[1, tokens, heads, head size], of the sequence's newest tokens."""
        assert self._memory is not None
        start, held, count = self._starts[sequence], self._held[sequence], query.shape[2]
        keys, values = (one[sequence : sequence + 1, :, start : start + held] for one in self._memory)
        groups, size = query.shape[1] // keys.shape[1], query.shape[3]
        if count == 1:  # it attends to all of them: heads that share keys are computed as tokens
            if self._window is not None:
                keys, values = keys[:, :, -self._window :], values[:, :, -self._window :]
            query = query.view(1, keys.shape[1], groups, size)
            found = _attention(query, keys, values, scale=scaling)
            return found.reshape(1, 1, -1, size)
        keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
        if held == count and (self._window is None or held <= self._window):
            found = _attention(query, keys, values, is_causal=True, scale=scaling)
        else:
            mask = torch.ones(count, held, dtype=torch.bool, device=query.device).tril(held - count)
            if self._window is not None:
                mask = mask.triu(held - count - self._window + 1)
            found = _attention(query, keys, values, attn_mask=mask, scale=scaling)
        return found.transpose(1, 2)

    def share(self, source: int, target: int, tokens: int) -> None:
        """`target` is empty."""
        assert self._memory is not None
        first = self._ends[source] - self._held[source]  # that is still there
        begin = first if self._window is None else max(first, tokens - (self._window - 1))
        place = self._starts[source] + begin - first
        for memory in self._memory:
            memory[target, :, : tokens - begin] = memory[source, :, place : place + tokens - begin]
        self._starts[target], self._held[target], self._ends[target] = 0, tokens - begin, tokens

    def cut(self, sequence: int, tokens: int) -> None:
        more = self._ends[sequence] - tokens
        self._held[sequence] -= more
        self._ends[sequence] = tokens
        if not tokens:
            self._starts[sequence] = self._held[sequence] = 0

    def reaches(self, sequence: int, tokens: int) -> bool:
        if self._window is None:
            return True
        first = self._ends[sequence] - self._held[sequence]
        return first <= max(0, tokens - (self._window - 1))

    def get_seq_length(self) -> int:
        return max(self._ends)

    def reset(self) -> None:
        """The memory stays."""
        for sequence in range(len(self._held)):
            self.cut(sequence, 0)


_attention = torch.nn.functional.scaled_dot_product_attention
