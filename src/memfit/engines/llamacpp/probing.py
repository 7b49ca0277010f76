"""What a loaded model loses where one of its matrices is quantized: the matrix in the engine's memory is
overwritten by what a type makes of it, a text is computed, and the file's own numbers come back.

    loss = mean over places of a text of KL(p, q)

p is the model's prediction, q that with the changed matrix. Of p the likeliest tokens are kept, and the rest
as one: that KL is a lower bound, and near the whole one. Nothing is computed backward, and only a piece of a
matrix is held beside the model. In the worker.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from memfit.engines.llamacpp.c_functions import TypeTraits
from memfit.engines.llamacpp.decode_batch import compute_text
from memfit.engines.llamacpp.graph import Node
from memfit.engines.llamacpp.library import Library
from memfit.engines.llamacpp.model import LlamaModel
from memfit.errors import EngineError
from memfit.headers.model_spec import TensorSpec
from memfit.memory.streaming import is_read_by_row

__all__ = ["Probe"]

_KEPT = 1024  # tokens of a prediction
_PIECE = 1 << 16  # numbers that a thread works on at once


class Probe:
    """Of one loaded model, whose weights lie in memory as the file has them."""

    def __init__(
        self,
        library: Library,
        model: LlamaModel,
        tensors: Sequence[TensorSpec],
        importance: Mapping[str, Any],
    ) -> None:
        """`importance` is an importance matrix, by tensor: float32 [experts * columns]."""
        self._api, self._ggml = library.api, library.ggml_base
        self._model, self._importance = model, importance
        self._numbers = library.type_numbers
        self._tensors = {one.name: one for one in tensors}
        self._addresses = model.tensor_addresses()
        self._streamed = frozenset(model.config.streamed)
        self._changed: dict[int, tuple[TensorSpec, str]] = {}  # streamed ones, by the engine's tensor
        model.watch_streamed(self._given)
        self._paths = model.config.paths
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._paths]
        for file in self._files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        self._pool = ThreadPoolExecutor(model.config.threads)
        self._tokens: Sequence[int] = ()
        self._places: list[int] = []
        self._likeliest: list[tuple[Any, Any]] = []  # for each place: tokens, and their log probabilities

    def close(self) -> None:
        self._pool.shutdown()
        for file in self._files:
            os.close(file)

    # -- what is lost ----------------------------------------------------------------------------

    def begin(self, tokens: Sequence[int], places: Sequence[int]) -> None:
        """Remember what the model predicts at these places of a text."""
        self._tokens, self._places = tokens, list(places)
        self._likeliest = []
        for logits in self._logits():
            kept = np.argpartition(logits, -_KEPT)[-_KEPT:] if len(logits) > _KEPT else np.arange(len(logits))
            kept = kept.copy()  # a part would keep the whole alive
            self._likeliest.append((kept, logits[kept] - _log_sum(logits)))

    def loss(self) -> float:
        """From what was remembered, in nats a token."""
        found = []
        for logits, (kept, before) in zip(self._logits(), self._likeliest, strict=True):
            after = logits[kept] - _log_sum(logits)
            p = np.exp(before)
            lost = float(p @ (before - after))
            rest, changed = 1 - float(p.sum()), 1 - float(np.exp(after).sum())
            if rest > 1e-6 and changed > 1e-6:
                lost += rest * float(np.log(rest / changed))
            found.append(lost)
        return float(np.mean(found))

    def _logits(self) -> Iterator[Any]:
        """At each place, float64 [vocabulary]."""
        for rows in compute_text(self._api, self._model, self._tokens, self._places):
            for row in range(rows):
                yield self._model.logits(row, 1)[0].astype(np.float64)

    # -- matrices --------------------------------------------------------------------------------

    def quantize(self, name: str, kind: str) -> None:
        """Overwrite a matrix by what `kind` makes of it; a streamed one each time that it has been read."""
        if name in self._streamed:
            self._changed[self._addresses[name]] = (self._tensors[name], kind)
        else:
            self._overwrite(self._tensors[name], kind, None)

    def restore(self, name: str) -> None:
        """Overwrite a matrix by what the file has."""
        if name in self._streamed:
            self._changed.pop(self._addresses[name], None)
        else:
            self._overwrite(self._tensors[name], None, None)

    def _overwrite(self, tensor: TensorSpec, kind: str | None, data: int | None) -> None:
        list(self._pool.map(lambda piece: self._put(tensor, piece, kind, data), self._pieces(tensor)))

    def _given(self, address: int, data: int) -> None:
        """A streamed tensor's data was read."""
        if found := self._changed.get(address):
            self._overwrite(*found, data)

    def errors(self, name: str, kinds: Sequence[str], rows: int) -> list[float]:
        """For each type its squared error over some rows of a matrix, each column as it counts."""
        tensor = self._tensors[name]
        count = tensor.elements // tensor.shape[0]
        chosen = np.unique(np.linspace(0, count - 1, min(rows, count)).astype(int))
        found: list[float] = list(
            self._pool.map(lambda kind: sum(self._error(tensor, int(row), kind) for row in chosen), kinds)
        )
        return found

    def _error(self, tensor: TensorSpec, row: int, kind: str) -> float:
        values, columns = self._read(tensor, row, 1), tensor.shape[0]
        found = self._round_trip(tensor, values, row, kind)
        weights = self._weights(tensor, row)
        squares = np.square(found - values)
        return float(squares.sum() if weights is None else squares @ weights[:columns])

    def _pieces(self, tensor: TensorSpec) -> Iterator[tuple[int, int]]:
        """First row and number of rows; none has rows of two experts. Of a table that is read by row, only
        rows that the text reads."""
        if is_read_by_row(tensor, self._tensors.values()):
            yield from ((row, 1) for row in sorted(set(self._tokens)))
            return
        columns, of_expert = tensor.shape[0], tensor.shape[1]
        size = max(1, _PIECE // columns)
        for expert in range(0, tensor.elements // columns, of_expert):
            for start in range(expert, expert + of_expert, size):
                yield start, min(size, expert + of_expert - start)

    def _put(self, tensor: TensorSpec, piece: tuple[int, int], kind: str | None, place: int | None) -> None:
        """Rows of the file, or what a type makes of them, into the engine's tensor; `place` is its data."""
        row, rows = piece
        row_bytes = self._ggml.ggml_row_size(self._numbers[tensor.type], tensor.shape[0])
        if kind is None:
            data = self._stored(tensor, row, rows)
        else:
            values = self._round_trip(tensor, self._read(tensor, row, rows), row, kind)
            data = self._quantized(values, tensor.shape[0], tensor.type, None).tobytes()
        address = self._addresses[tensor.name]
        node = Node.from_address(address)
        place = place or (node.data if self._ggml.ggml_backend_buffer_is_host(node.buffer) else None)
        if place:
            ctypes.memmove(place + row * row_bytes, data, len(data))
        else:
            self._ggml.ggml_backend_tensor_set(address, data, row * row_bytes, len(data))

    def _stored(self, tensor: TensorSpec, row: int, rows: int) -> bytes:
        row_bytes = self._ggml.ggml_row_size(self._numbers[tensor.type], tensor.shape[0])
        file, offset = self._files[tensor.file_index], tensor.offset_bytes + row * row_bytes
        data = os.pread(file, rows * row_bytes, offset)
        os.posix_fadvise(file, offset, len(data), os.POSIX_FADV_DONTNEED)  # or the page cache keeps it
        if len(data) < rows * row_bytes:
            raise EngineError(f"{self._paths[tensor.file_index]} became shorter while the model ran")
        return data

    def _read(self, tensor: TensorSpec, row: int, rows: int) -> Any:
        """float32 [rows * columns]"""
        stored = np.frombuffer(self._stored(tensor, row, rows), np.uint8)
        if tensor.type == "F32":
            return stored.view(np.float32)
        return self._dequantized(stored, rows * tensor.shape[0], tensor.type)

    def _weights(self, tensor: TensorSpec, row: int) -> Any | None:
        """What each column counts in a row, float32 [columns]; None: all alike."""
        importance = self._importance.get(tensor.name)
        if importance is None:
            return None
        expert = row // tensor.shape[1] * tensor.shape[0] % importance.size
        return np.ascontiguousarray(importance[expert : expert + tensor.shape[0]])

    def _round_trip(self, tensor: TensorSpec, values: Any, row: int, kind: str) -> Any:
        data = self._quantized(values, tensor.shape[0], kind, self._weights(tensor, row))
        return self._dequantized(data, values.size, kind)

    def _quantized(self, values: Any, columns: int, kind: str, weights: Any | None) -> Any:
        number = self._numbers[kind]
        rows = values.size // columns
        data = np.empty(rows * self._ggml.ggml_row_size(number, columns), np.uint8)
        counts = weights.ctypes.data if weights is not None else None
        self._ggml.ggml_quantize_chunk(number, values.ctypes.data, data.ctypes.data, 0, rows, columns, counts)
        return data

    def _dequantized(self, data: Any, elements: int, kind: str) -> Any:
        values = np.empty(elements, np.float32)
        traits = TypeTraits.from_address(self._ggml.ggml_get_type_traits(self._numbers[kind]))
        traits.to_float(data.ctypes.data, values.ctypes.data, elements)
        return values


def _log_sum(logits: Any) -> float:
    most = logits.max()
    return float(most + np.log(np.exp(logits - most).sum()))
