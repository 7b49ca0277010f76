"""A pass of the scheduler, or a piece of a text alone, as llama.cpp's llama_batch. In the worker."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from memfit.engines.scheduler import Pass

if TYPE_CHECKING:
    from memfit.engines.llamacpp.model import LlamaModel

__all__ = ["DecodeBatch", "compute_text"]


class DecodeBatch:
    """llama.cpp's llama_batch over arrays that are made once."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens: Any = (ctypes.c_int32 * size)()
        self._positions: Any = (ctypes.c_int32 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._sequences: Any = (ctypes.c_int32 * size)()
        self._wanted = (ctypes.c_int8 * size)()
        start, width = ctypes.addressof(self._sequences), ctypes.sizeof(ctypes.c_int32)
        self._lists = (ctypes.c_void_p * size)(*range(start, start + width * size, width))
        self.pointer = api.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=ctypes.cast(self._lists, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._wanted,
        )

    def fill_text(self, tokens: Sequence[int], places: Sequence[int], start: int = 0) -> None:
        """Sequence 0 from a position on, with logits wanted at some of the tokens."""
        count = len(tokens)
        self.pointer.n_tokens = count
        self._tokens[:count] = tokens
        self._positions[:count] = range(start, start + count)
        ctypes.memset(self._sequences, 0, ctypes.sizeof(self._sequences))
        ctypes.memset(self._wanted, 0, len(self._wanted))
        for place in places:
            self._wanted[place] = 1

    def fill_sequences(self, texts: Sequence[Sequence[int]], start: int = 0) -> None:
        """Each text as a sequence of its own, from a position on; all tokens are outputs."""
        at = 0
        for sequence, tokens in enumerate(texts):
            end = at + len(tokens)
            self._tokens[at:end] = tokens
            self._positions[at:end] = range(start, start + len(tokens))
            self._sequences[at:end] = [sequence] * len(tokens)
            at = end
        self.pointer.n_tokens = at
        ctypes.memset(self._wanted, 1, len(self._wanted))

    def fill(self, work: Pass) -> None:
        count = len(work.tokens)
        self.pointer.n_tokens = count
        self._tokens[:count] = work.tokens
        self._positions[:count] = work.positions
        self._sequences[:count] = work.sequences
        ctypes.memset(self._wanted, 0, len(self._wanted))
        for entry, _ in work.outputs:
            self._wanted[entry] = 1


def compute_text(api: Any, model: LlamaModel, tokens: Sequence[int], places: Sequence[int]) -> Iterator[int]:
    """Compute a text in an empty cache, with logits at these places, ubatch by ubatch: yields how many rows
    of logits the last ubatch has. Errors as in LlamaModel.decode."""
    model.cache.clear()
    batch = DecodeBatch(api, model.ubatch)
    for start in range(0, len(tokens), model.ubatch):
        end = min(start + model.ubatch, len(tokens))
        wanted = [place - start for place in places if start <= place < end]
        batch.fill_text(tokens[start:end], wanted, start)
        model.decode_batch(batch.pointer)
        yield len(wanted)
