"""One file made of another: looks first at what it becomes, then writes it, all or nothing.

The work is the engine's, in a process of its own (engines/llamacpp/quantizer.py); what is checked before and
what is promised of the output is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from memfit.closing import Closing
from memfit.errors import DoesNotFitError, EngineError, UsageError, WrongValueError
from memfit.headers.model_spec import ModelSpec
from memfit.headers.tensor_types import FILE_TYPES
from memfit.memory.process_memory import process_status
from memfit.processes.carried_errors import rebuild_error
from memfit.processes.helper import Helper
from memfit.quantize.whole_file import start_writing, whole_file
from memfit.units import MIB

__all__ = ["Quantized", "Quantizer", "Recipe", "Written", "file_type_named"]

# The names that llama-quantize takes beside those of the file types.
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_PLAIN = frozenset({"F32", "F16", "BF16"})
_MOST_BUFFER = 64 * MIB  # more is not faster
_LEAST_BUFFER = 1 * MIB
_ROOM = 10 * MIB  # what its threads, its tables and our messages take beside


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize."""

    file_type: str  # llama.cpp's name
    imatrix: Path | None = None
    types: Mapping[str, str] = field(default_factory=dict)  # tensors whose type is not the file type's choice


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What the file will be."""

    file_bytes: int
    tensors: Mapping[str, str]  # each tensor's type
    fallbacks: Mapping[str, str]  # tensors whose rows their type does not divide, with that type
    needs_imatrix: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Written:
    file_bytes: int
    peak_bytes: int  # of both processes


def file_type_named(name: str) -> str:
    """llama.cpp's name of a file type, from a user's in either case.

    Raises:
        UsageError: the engine writes no such type.
    """
    wanted = name.upper().replace("-", "_")
    wanted = _ALIASES.get(wanted, wanted)
    if wanted not in FILE_TYPES.values():
        raise WrongValueError("type", f": the types are {', '.join(FILE_TYPES.values())}", got=name)
    return wanted


class Quantizer(Closing):
    """A context manager around the quantizer's process, which begins to load the engine when this is made."""

    _spec: ModelSpec
    _recipe: Recipe

    def __init__(self) -> None:
        self._helper: Helper | None = _start()
        self._held_bytes = 0

    def look(self, spec: ModelSpec, recipe: Recipe, *, threads: int) -> Quantized:
        """What the file will be, to the byte; no weight is read.

        Raises:
            UsageError: a tensor cannot have its type, or the importance matrix is another model's.
            EngineError: the engine does not know the model.
        """
        self._spec, self._recipe, self._threads = spec, recipe, threads
        found = self._ask("look")
        for name, kind in recipe.types.items():
            if name not in found["fallbacks"] and (got := found["tensors"].get(name)) != kind:
                raise UsageError(f"{name} cannot be {kind}: the engine leaves it in {got}", field="--recipe")
        self._held_bytes = found["held_bytes"]
        return Quantized(
            file_bytes=found["file_bytes"],
            tensors=found["tensors"],
            fallbacks=found["fallbacks"],
            needs_imatrix=found["needs_imatrix"] and self._recipe.imatrix is None,
            warnings=tuple(self._warnings()),
        )

    def write(
        self,
        looked: Quantized,
        output: Path,
        *,
        ram_bytes: int,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Written:
        """Write what was looked at under `output`'s name, once it is whole; at most `ram_bytes` are held.

        `on_progress` hears bytes of the source: those that are done, and all.

        Raises:
            UsageError: it cannot be made so, or `output` is there.
            DoesNotFitError: it takes more RAM.
            OutputError: the disk is full, or cannot be written to.
        """
        if looked.needs_imatrix:
            raise UsageError(
                f"{self._recipe.file_type} needs an importance matrix: memfit imatrix makes one, and "
                "--imatrix FILE takes it"
            )
        buffer_bytes = self._buffer_bytes(ram_bytes)
        with whole_file(output, self._spec.paths, looked.file_bytes, overwrite=overwrite) as partial:
            found = self._ask("write", output=str(partial), buffer_bytes=buffer_bytes)
            sizes = {one.name: one.size_bytes for one in self._spec.tensors}
            done, whole = 0, sum(sizes.values())
            while found["event"] == "tensor":
                start_writing(partial)
                done += sizes.get(found["name"], 0)
                on_progress(done, whole)
                found = self._next()
            written = partial.stat().st_size
            if written != looked.file_bytes:
                raise EngineError(f"the engine wrote {written} bytes where it announced {looked.file_bytes}")
        ours = process_status().peak_resident_bytes
        return Written(file_bytes=written, peak_bytes=ours + found["peak_bytes"])

    def rest(self) -> None:
        """End its process until it is asked again: somebody else needs the memory."""
        if self._helper:
            self._helper.close()
            self._helper = None

    def close(self) -> None:
        self.rest()

    def _buffer_bytes(self, ram_bytes: int) -> int:
        """What is left of the budget for the rows that the engine works on at once.

        It maps its source, and lets go of a tensor once that is written.
        """
        held = process_status().resident_bytes + self._held_bytes + _ROOM
        mapped = max(one.size_bytes for one in self._spec.tensors)
        row = max(4 * one.shape[0] for one in self._spec.tensors)
        least = max(_LEAST_BUFFER, 3 * row)
        left = ram_bytes - held - mapped
        if left < least:
            needed = held + mapped + least
            raise DoesNotFitError(tier="RAM", needs_bytes=needed, budget_bytes=ram_bytes)
        return min(left, _MOST_BUFFER)

    def _warnings(self) -> Iterator[str]:
        if self._spec.quantization not in _PLAIN:
            yield (
                f"{self._spec.source} is in {self._spec.quantization}: what it lost stays lost, "
                "and more is lost now; a source in BF16 or F16 gives a better file of this size"
            )

    def _ask(self, op: str, **values: Any) -> dict[str, Any]:
        numbers = {name: number for number, name in FILE_TYPES.items()}
        request = {
            "paths": [str(path) for path in self._spec.paths],
            "file_type": numbers[self._recipe.file_type],
            "types": dict(self._recipe.types),
            "imatrix": self._recipe.imatrix and str(self._recipe.imatrix),
            "columns": {one.name: one.shape[0] * prod(one.shape[2:]) for one in self._spec.tensors},
            "threads": self._threads,
        }
        self._helper = self._helper or _start()
        self._helper.send({"op": op, "request": request, **values})
        return self._next()

    def _next(self) -> dict[str, Any]:
        assert self._helper
        found = self._helper.receive()
        if found is None:
            raise self._helper.obituary()
        if found["event"] == "error":
            raise rebuild_error(found)
        return found


def _start() -> Helper:
    return Helper(
        "memfit.engines.llamacpp.quantizer",
        name="the quantizer",
        environment={**os.environ, "GGML_NO_BACKTRACE": "1"},  # an abort would try to attach gdb
        own_session=True,
        log="kept",
    )
