"""The KV cache, all of it taken while loading: what a plan counts is there from the first token on.

transformers' own DynamicCache grows by copying a layer's whole cache for each token. Here the same layers
write into memory that is large enough from the start; keys and values, masks and results are the same.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["planned_cache", "with_cache"]


def with_cache(model: Any, cache: Cache) -> dict[str, Cache]:
    """`cache` as an argument of a model's pass or generation: it has another name since transformers 5.24."""
    renamed = "cache" in inspect.signature(model.forward).parameters
    return {"cache" if renamed else "past_key_values": cache}


def planned_cache(config: Any, *, context: int, ubatch: int) -> Cache:
    """A cache for one sequence of `context` tokens, prompts coming `ubatch` tokens at a time.

    Layers of another kind than full and sliding attention stay as transformers has them.
    """
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            room = min(context, layer.sliding_window - 1 + ubatch)
            cache.layers[index] = _SlidingLayer(layer.sliding_window, room)
        elif type(layer) is DynamicLayer:
            cache.layers[index] = _FullLayer(context)
    return cache


class _Room:
    """Keys or values of one layer, [1, heads, tokens, head size], of which some are in use."""

    def __init__(self, states: torch.Tensor, tokens: int) -> None:
        sizes = (*states.shape[:2], tokens, states.shape[3])
        self.memory = torch.zeros(sizes, dtype=states.dtype, device=states.device)  # zeros are resident
        self.start = 0

    def add(self, held: int, new: torch.Tensor) -> torch.Tensor:
        """All states in use, of which `held` were there before."""
        end = self.start + held
        if end + new.shape[2] > self.memory.shape[2]:  # what is still in use goes to the front
            self.memory[:, :, :held] = self.memory[:, :, self.start : end].clone()
            self.start, end = 0, held
        self.memory[:, :, end : end + new.shape[2]] = new
        return self.memory[:, :, self.start : end + new.shape[2]]


class _Planned:
    """What both kinds of layer have: room for their tokens from the first one on."""

    keys: torch.Tensor
    is_initialized: bool
    _tokens: int
    _rooms: tuple[_Room, _Room] | None = None

    def _rooms_for(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[_Room, _Room]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)  # type: ignore[attr-defined]
        if self._rooms is None:
            self._rooms = _Room(keys, self._tokens), _Room(values, self._tokens)
        return self._rooms

    def reset(self) -> None:
        """The memory stays."""
        super().reset()  # type: ignore[misc]
        for room in self._rooms or ():
            room.start = 0


class _FullLayer(_Planned, DynamicLayer):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._rooms_for(key_states, value_states)
        held = self.get_seq_length()
        self.keys, self.values = keys.add(held, key_states), values.add(held, value_states)
        return self.keys, self.values


class _SlidingLayer(_Planned, DynamicSlidingWindowLayer):
    def __init__(self, sliding_window: int, tokens: int) -> None:
        super().__init__(sliding_window)
        self._tokens = tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._rooms_for(key_states, value_states)
        held = self.keys.shape[2] if self.keys.dim() == 4 else 0
        whole = keys.add(held, key_states), values.add(held, value_states)
        self.cumulative_length += key_states.shape[2]
        dropped = max(0, whole[0].shape[2] - (self.sliding_window - 1))
        for room in (keys, values):
            room.start += dropped
        self.keys, self.values = (each[:, :, dropped:] for each in whole)
        return whole
