"""What a model that embeds gives back: rows of numbers as they come out of it, not normalised."""

from __future__ import annotations

import base64
from collections.abc import Mapping
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

    def to_json(self) -> dict[str, Any]:
        """Numbers as base64: as decimals they would take five times as long."""
        data = base64.b64encode(self.values).decode()
        return {"data": data, "width": self.width, "prompt_tokens": self.prompt_tokens}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Embedding:
        """What `to_json` gave, after having been JSON."""
        return cls.of(base64.b64decode(values["data"]), values["width"], values["prompt_tokens"])

    @classmethod
    def of(cls, data: bytes, width: int, prompt_tokens: int) -> Embedding:
        """From rows of `width` float32 numbers."""
        rows = len(data) // (_NUMBER_BYTES * width)
        return cls(values=memoryview(data).cast("f", (rows, width)), prompt_tokens=prompt_tokens)
