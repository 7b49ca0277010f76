"""What each matrix is multiplied with, column by column: sums of squares, taken while the engine computes.

As llama-imatrix takes them: of every matrix in a layer, each expert of its own, in passes of 16 tokens and
more. Matrices that are multiplied with the same are looked at once. In the worker.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from memfit.engines.llamacpp.c_functions import InitParameters
from memfit.engines.llamacpp.graph import Node
from memfit.engines.llamacpp.imatrix_file import COUNTS, SUMS
from memfit.engines.llamacpp.library import Library
from memfit.errors import EngineError, OutputError

__all__ = ["Importance"]

_LEAST_TOKENS = 16  # of fewer the engine multiplies otherwise


class Importance:
    def __init__(self, library: Library) -> None:
        self._library, self._ggml = library, library.ggml_base
        self._operation = functools.cache(lambda number: str(self._ggml.ggml_op_name(number).decode()))
        self.is_collecting = False
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._sums: dict[str, Any] = {}  # by tensor, float32 [experts, columns]
        self._counts: dict[str, Any] = {}  # by tensor, int64 [experts]: tokens
        self._like: dict[str, str] = {}  # tensor → the one that is looked at in its place
        self.begin_pass()

    def begin_pass(self) -> None:
        self._inputs: dict[
            int, str
        ] = {}  # what is multiplied with in this pass → the tensor that is looked at

    def evaluate(self, address: int, ask: bool) -> bool:
        """Asked before a node is computed whether it is of interest; called again after it, where it is."""
        node = Node.from_address(address)
        if ask:
            return self.is_collecting and self._wants(node)
        self._take(node)
        return True

    def _wants(self, node: Node) -> bool:
        operation = self._operation(node.op)
        if operation not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        inputs, name = Node.from_address(node.src[1]), _weight_name(node)
        few = operation == "MUL_MAT" and inputs.ne[1] < _LEAST_TOKENS
        if few or not name.startswith("blk.") or inputs.type != self._library.type_numbers["F32"]:
            return False
        looked_at = self._inputs.setdefault(node.src[1], name)
        if looked_at != name:
            self._like[name] = looked_at
        return looked_at == name

    def _take(self, node: Node) -> None:
        weights, inputs, name = (
            Node.from_address(node.src[0]),
            self._values(node.src[1], np.float32),
            _weight_name(node),
        )
        if self._operation(node.op) == "MUL_MAT_ID":
            experts = self._values(node.src[2], np.int32)[0, 0]  # [tokens, experts of each]
            sums, counts = self._held(name, weights.ne[2], weights.ne[0])
            for place in range(experts.shape[1]):
                rows = inputs[0, :, place % inputs.shape[2]]  # [tokens, columns]
                for expert in np.unique(experts[:, place]):
                    routed = rows[experts[:, place] == expert]
                    sums[expert] += _squares(routed)
                    counts[expert] += len(routed)
            return
        matrices = weights.ne[2] * weights.ne[3]
        sums, counts = self._held(name, 1, matrices * weights.ne[0])
        parts = sums.reshape(matrices, weights.ne[0])
        for index in np.ndindex(inputs.shape[:2]):
            matrix = index[0] % weights.ne[3] * weights.ne[2] + index[1] % weights.ne[2]
            parts[matrix] += _squares(inputs[index])
        counts[0] += math.prod(inputs.shape[:3]) // matrices

    def _held(self, name: str, experts: int, columns: int) -> tuple[Any, Any]:
        if name not in self._sums:
            self._sums[name] = np.zeros((experts, columns), np.float32)
            self._counts[name] = np.zeros(experts, np.int64)
        return self._sums[name], self._counts[name]

    def _values(self, address: int, kind: Any) -> Any:
        """A tensor's numbers, [ne3, ne2, ne1, ne0]; a copy where a device has them."""
        node, ggml = Node.from_address(address), self._ggml
        size = ggml.ggml_nbytes(address)
        if ggml.ggml_backend_buffer_is_host(node.buffer):
            buffer: Any = (ctypes.c_char * size).from_address(node.data)
        else:
            buffer = ctypes.create_string_buffer(size)
            ggml.ggml_backend_tensor_get(address, buffer, 0, size)
        return np.ndarray(tuple(node.ne)[::-1], kind, buffer, strides=tuple(node.nb)[::-1])

    def require_numbers(self) -> None:
        """Raises EngineError where one that is no number, or infinite, was seen."""
        for name, sums in self._sums.items():
            if not np.isfinite(sums).all():
                raise EngineError(f"{name} is multiplied with NaN, which is no number, or with infinity")

    def write(self, path: Path, text: str, chunks: int, chunk_tokens: int) -> None:
        """As llama.cpp's GGUF file; `text` is the name of what was read, so many chunks of it.

        Raises:
            OutputError: it cannot be written.
        """
        base = self._ggml
        file = base.gguf_init_empty()
        base.gguf_set_val_str(file, b"general.type", b"imatrix")
        base.gguf_set_arr_str(file, b"imatrix.datasets", (ctypes.c_char_p * 1)(os.fsencode(text)), 1)
        base.gguf_set_val_u32(file, b"imatrix.chunk_count", chunks)
        base.gguf_set_val_u32(file, b"imatrix.chunk_size", chunk_tokens)
        kept = []
        names = sorted({*self._sums, *self._like})
        room = base.ggml_init(InitParameters(2 * (len(names) + 1) * base.ggml_tensor_overhead(), None, True))
        for name in names:
            sums, counts = (by[self._like.get(name, name)] for by in (self._sums, self._counts))
            counts = counts.astype(np.float32)
            for suffix, values in ((SUMS, sums), (COUNTS, counts[:, None])):
                tensor = base.ggml_new_tensor_2d(room, self._library.type_numbers["F32"], *values.shape[::-1])
                base.ggml_set_name(tensor, f"{name}{suffix}".encode())
                Node.from_address(tensor).data = values.ctypes.data
                base.gguf_add_tensor(file, tensor)
                kept.append(values)
        written = base.gguf_write_to_file(file, os.fsencode(path), False)
        base.gguf_free(file)
        base.ggml_free(room)
        if not written:
            raise OutputError(f"{path}: the importance matrix cannot be written; is the disk full?")


def _squares(rows: Any) -> Any:
    """[tokens, columns] → [columns]"""
    return np.einsum("ij,ij->j", rows, rows)


def _weight_name(node: Node) -> str:
    """As the model's file has it: a device's copy is "CUDA0#NAME#0"."""
    name: str = Node.from_address(node.src[0]).name.decode(errors="replace")
    return name.split("#")[1] if "#" in name else name
