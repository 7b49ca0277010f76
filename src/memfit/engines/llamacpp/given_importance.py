"""An importance matrix as the engine takes it: checked against the model, and noted in the file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfit.engines.llamacpp.c_functions import GgufParameters
from memfit.engines.llamacpp.imatrix_file import read_imatrix
from memfit.engines.llamacpp.library import Library
from memfit.errors import UsageError
from memfit.headers.tensor_types import NEED_IMPORTANCE

__all__ = ["GivenImportance"]

_LONGEST_FACT = 127  # bytes of a text in llama_model_kv_override
_UNIMPORTANT = ("token_embd.weight", "output.weight")  # which the engine quantizes without


class _Entry(ctypes.Structure):
    """`llama_model_imatrix_data` (llama.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


class GivenImportance:
    def __init__(self, library: Library, path: Path, columns: Mapping[str, int]) -> None:
        """`columns`: of the model's tensors, those of all experts together.

        Raises:
            UsageError: it is no importance matrix, or another model's.
        """
        self._library, self._path = library, path
        self._values = values = read_imatrix(path)
        for name, one in values.items():
            if one.size != columns.get(name, one.size):
                raise self._refusal(
                    f"is another model's: it has {one.size} columns of {name}, not {columns[name]}"
                )
        rows = [_Entry(name.encode(), one.ctypes.data, one.size) for name, one in values.items()]
        self.entries = (_Entry * (len(rows) + 1))(*rows)  # a row of zeros ends it
        self.facts = self._facts()
        self.overrides = self._overrides()

    def require(self, tensors: Mapping[str, str], file_type: str) -> None:
        """Raises UsageError where it lacks a tensor whose type needs it."""
        needing = {*NEED_IMPORTANCE, *(("Q2_K",) if file_type == "Q2_K_S" else ())}
        for name, kind in tensors.items():
            if kind in needing and name not in self._values and name not in _UNIMPORTANT:
                raise self._refusal(f"says nothing of {name}, which would be {kind} and needs it")

    def _refusal(self, problem: str) -> UsageError:
        return UsageError(f"--imatrix {self._path} {problem}", field="--imatrix")

    def _facts(self) -> dict[bytes, bytes | int]:
        """What llama-quantize notes in the file's header; of the path its last part."""
        base = self._library.ggml_base
        file = base.gguf_init_from_file(os.fsencode(self._path), GgufParameters(True, None))
        datasets = base.gguf_find_key(file, b"imatrix.datasets")
        chunks = base.gguf_find_key(file, b"imatrix.chunk_count")
        is_named = datasets >= 0 and base.gguf_get_arr_n(file, datasets) > 0
        found: dict[bytes, bytes | int] = {
            b"quantize.imatrix.file": os.fsencode(self._path.name)[:_LONGEST_FACT],
            b"quantize.imatrix.dataset": base.gguf_get_arr_str(file, datasets, 0)[:_LONGEST_FACT]
            if is_named
            else b"",
            b"quantize.imatrix.entries_count": len(self._values),
            b"quantize.imatrix.chunks_count": base.gguf_get_val_u32(file, chunks) if chunks >= 0 else 0,
        }
        base.gguf_free(file)
        return {key: value for key, value in found.items() if value}

    def _overrides(self) -> Any:
        """The same as the engine's quantizer is told it."""
        api = self._library.api
        table = (api.llama_model_kv_override * (len(self.facts) + 1))()  # a row without a key ends it
        for row, (key, value) in zip(table, self.facts.items(), strict=False):
            row.key = key
            if isinstance(value, bytes):
                row.tag, row.value.val_str = api.LLAMA_KV_OVERRIDE_TYPE_STR, value
            else:
                row.tag, row.value.val_i64 = api.LLAMA_KV_OVERRIDE_TYPE_INT, value
        return table
