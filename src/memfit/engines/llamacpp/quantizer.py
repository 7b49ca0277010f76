"""The engine's own quantizer, in a process of its own: its one call cannot be interrupted, and ends the
process on some inputs.

Asked twice by quantize/job.py: which type each tensor gets and how large the file becomes ("look"), and to
write it ("write"). The engine says what it does only in its log, a line for each tensor, which is read here.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.engines.llamacpp.c_functions import GgufParameters
from memfit.engines.llamacpp.library import Library, load_library
from memfit.errors import EngineError, MemfitError, OutputError
from memfit.headers.tensor_types import FILE_TYPES
from memfit.memory.process_memory import process_status
from memfit.processes.child import Parent

if TYPE_CHECKING:
    from memfit.engines.llamacpp.given_importance import GivenImportance

__all__: list[str] = []

# "[   1/ 272] output.weight  - [ 576, 49152, 1, 1], type =    f16, converting to q6_K .. size = …"
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (.+?) +- \[[^\]]*\], type = *(\w+), ")
_DRY_RESULT = re.compile(r" MiB -> .* MiB \((\w+)\)$")
_FALLBACK = re.compile(r"warning: (.+?) +- ncols .* for type +(\w+)\) .*-> falling back")
_FAILED = re.compile(r"failed to quantize: (.*)")
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT


class _TensorType(ctypes.Structure):
    """`llama_model_tensor_override` (llama.h)."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _Log:
    """The engine's lines, whole ones: it writes them piece by piece."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._line = on_line, ""
        self.errors: list[str] = []

    def write(self, level: int, text: bytes, _: object) -> None:
        piece = text.decode(errors="replace")
        if level == _LOG_ERROR:
            self.errors += [one.strip() for one in piece.splitlines() if one.strip(" =")]
            return
        *lines, self._line = (self._line + piece).split("\n")
        for line in lines:
            self._on_line(line)


class _Quantizer:
    def __init__(self, library: Library, request: Mapping[str, Any]) -> None:
        """`request`: "paths", "file_type" (a number), "types" (by tensor), "imatrix" (a path, or None),
        "columns" (by tensor, of all experts), "threads".

        Raises:
            UsageError: it is no importance matrix of this model.
        """
        self._library, self._api, self._request = library, library.api, request
        self._parameters = parameters = self._api.llama_model_quantize_default_params()
        parameters.ftype = request["file_type"]
        parameters.nthread = request["threads"]
        parameters.allow_requantize = True  # the parent warns
        self._kept: list[Any] = []  # C holds no references
        self._importance: GivenImportance | None = None
        if request["types"]:
            # Regular expressions, of which the first that is found in a name decides.
            types = [
                _TensorType(f"^{re.escape(name)}$".encode(), library.type_numbers[kind])
                for name, kind in request["types"].items()
            ]
            overrides = (_TensorType * (len(types) + 1))(*types)  # a row of zeros ends it
            self._kept.append(overrides)
            kind = dict(type(parameters)._fields_)["tt_overrides"]
            parameters.tt_overrides = ctypes.cast(overrides, kind)
        if request["imatrix"]:
            from memfit.engines.llamacpp.given_importance import GivenImportance  # and numpy with it

            given = GivenImportance(library, Path(request["imatrix"]), request["columns"])
            self._importance = given
            kind = dict(type(parameters)._fields_)["imatrix"]
            parameters.imatrix = ctypes.cast(given.entries, kind)
            parameters.kv_overrides = given.overrides

    def look(self) -> dict[str, Any]:
        """Each tensor's type, and the size of the file."""
        tensors: dict[str, str] = {}
        fallbacks: dict[str, str] = {}
        told: list[str] = []

        def on_line(line: str) -> None:
            found = _TENSOR.match(line)
            if found:
                after = _DRY_RESULT.search(line)
                tensors[found[1]] = (after[1] if after else found[2]).upper()
            elif fallback := _FALLBACK.match(line):
                fallbacks[fallback[1]] = fallback[2].upper()
            else:
                told.append(line)

        self._parameters.dry_run = True
        self._run("", on_line)
        if self._importance:
            self._importance.require(tensors, FILE_TYPES[self._request["file_type"]])
        return {
            "tensors": tensors,
            "fallbacks": fallbacks,
            "file_bytes": self._file_bytes(tensors),
            "needs_imatrix": any("will require an imatrix" in line for line in told),
            "held_bytes": process_status().resident_bytes,
        }

    def write(self, output: str, buffer_bytes: int, on_tensor: Callable[[str], None]) -> None:
        """To `output`, with at most `buffer_bytes` of rows at once."""

        def on_line(line: str) -> None:
            if found := _TENSOR.match(line):
                on_tensor(found[1])

        self._parameters.dry_run = False
        self._parameters.max_buf_size = buffer_bytes
        self._run(output, on_line)

    def _run(self, output: str, on_line: Callable[[str], None]) -> None:
        log = _Log(on_line)
        callback = self._api.llama_log_callback(log.write)
        self._api.llama_log_set(callback, None)
        try:
            source = os.fsencode(self._request["paths"][0])
            code = self._api.llama_model_quantize(source, os.fsencode(output), ctypes.byref(self._parameters))
        finally:
            self._library.log(verbose=False)
        if code:
            told = " / ".join(log.errors)
            cause = _FAILED.search(told)
            if "iostream error" in told:  # of its output alone: its source is mapped
                raise OutputError(f"{output}: the disk is full, or takes no file of this size")
            raise EngineError(f"the engine could not quantize: {cause[1] if cause else told}")

    def _file_bytes(self, tensors: Mapping[str, str]) -> int:
        """What the engine will write: the header as it puts it together, and each tensor's data, padded."""
        base = self._library.ggml_base
        out = base.gguf_init_empty()
        for index, path in enumerate(self._request["paths"]):
            described = ctypes.c_void_p()
            parameters = GgufParameters(True, ctypes.pointer(described))
            read = base.gguf_init_from_file(os.fsencode(path), parameters)
            if index == 0:
                base.gguf_set_kv(out, read)
            tensor = base.ggml_get_first_tensor(described)
            while tensor:
                name = base.ggml_get_name(tensor)
                if (kind := tensors.get(name.decode(errors="replace"))) is not None:
                    base.gguf_add_tensor(out, tensor)
                    base.gguf_set_tensor_type(out, name, self._library.type_numbers[kind])
                tensor = base.ggml_get_next_tensor(described, tensor)
        base.gguf_set_val_u32(out, b"general.quantization_version", 2)
        base.gguf_set_val_u32(out, b"general.file_type", self._request["file_type"])
        for key in (b"split.no", b"split.count", b"split.tensors.count"):
            base.gguf_remove_key(out, key)
        for key, value in self._importance.facts.items() if self._importance else ():
            (base.gguf_set_val_str if isinstance(value, bytes) else base.gguf_set_val_u32)(out, key, value)
        sizes = [base.gguf_get_tensor_size(out, index) for index in range(base.gguf_get_n_tensors(out))]
        header: int = base.gguf_get_meta_size(out)
        data: int = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        return header + data


def main() -> None:
    parent = Parent()
    try:
        library = load_library()
        for message in parent.messages():
            quantizer = _Quantizer(library, message["request"])
            if message["op"] == "look":
                parent.send("looked", **quantizer.look())
            else:
                quantizer.write(
                    message["output"],
                    message["buffer_bytes"],
                    lambda name: parent.send("tensor", name=name),
                )
                parent.send("written", peak_bytes=process_status().peak_resident_bytes)
    except MemfitError as error:
        parent.send_error(error)


if __name__ == "__main__":
    main()
