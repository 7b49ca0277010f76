"""What a model that embeds gives back: rows of numbers as they come out of it, not normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Embedding"]

_NUMBER_BYTES = 4  # float32


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Of one text, or of a query and a document."""

    values: memoryview[Any]  # float32 [rows, width]: one row, or without pooling one for each token
    prompt_tokens: int

    @property
    def width(self) -> int:
        """Numbers of a row."""
        assert self.values.shape, "it has rows"
        return self.values.shape[1]

    @property
    def vector(self) -> list[float]:
        """The row of a text, where the model pools its tokens'."""
        return list(self.values.cast("B").cast("f")[: self.width])

    @property
    def score(self) -> float:
        """How well the document answers the query, where the model is a reranker; unbounded with most."""
        return self.vector[0]

    @classmethod
    def of(cls, data: bytes, width: int, prompt_tokens: int) -> Embedding:
        """From rows of `width` float32 numbers."""
        rows = len(data) // (_NUMBER_BYTES * width)
        return cls(values=memoryview(data).cast("f", (rows, width)), prompt_tokens=prompt_tokens)
