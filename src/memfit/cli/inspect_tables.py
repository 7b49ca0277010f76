"""The tables that `memfit inspect` prints for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from memfit.cli.render import PIPE_WIDTH, table
from memfit.headers.model_spec import MetadataValue, ModelSpec, SkippedArray
from memfit.headers.safetensors import Checkpoint
from memfit.units import format_bytes

__all__ = ["print_checkpoint", "print_gguf"]

_LONGEST_SHOWN = 72  # characters of a metadata value; a chat template has thousands
_COUNTS = ("parameters", "context_length", "vocabulary")
_Row = Mapping[str, Any]


def print_gguf(spec: ModelSpec, types: Sequence[_Row], tensors: Sequence[_Row]) -> None:
    """`types` and `tensors` as the JSON has them; no table of tensors where there are none."""
    tables = [_summary_of_gguf(spec), _types_table(types), _metadata_table(spec)]
    if tensors:
        tables.append(_tensors_table(tensors, ">offset", lambda row: str(row["offset_bytes"])))
    _print(tables)


def print_checkpoint(facts: _Row, weights: Checkpoint | None, tensors: Sequence[_Row]) -> None:
    """`facts` and `tensors` as the JSON has them; no table of tensors where there are none."""
    summary = _summary_of_checkpoint(facts)
    if not weights:
        _print([summary, "no safetensors here"])
        return
    tables = [summary, _types_table(facts["tensor_types"])]
    if tensors:
        names = [_printable(path.name) for path in weights.paths]
        tables.append(_tensors_table(tensors, "file", lambda row: names[row["file_index"]]))
    _print(tables)


def _print(tables: Sequence[Table | str]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for number, shown in enumerate(tables):
        if number:
            console.print()
        console.print(shown)


def _summary_of_gguf(spec: ModelSpec) -> Table:
    files = f" in {len(spec.paths)} files" if len(spec.paths) > 1 else ""
    layers = spec.architecture_value("block_count")
    bits = spec.weights_bytes * 8 / spec.n_params
    return _summary(
        {
            "model": spec.source,
            "name": spec.name,
            "architecture": spec.architecture,
            "quantization": f"{spec.quantization} ({bits:.2f} bits per weight)",
            "parameters": f"{spec.n_params:,}",
            "file": format_bytes(spec.file_bytes) + files,
            "weights": format_bytes(spec.weights_bytes),
            "context length": f"{spec.context_length:,} tokens",
            "vocabulary": f"{spec.vocabulary:,} tokens",
            "layers": "not said" if layers is None else _one_line(layers),
        }
    )


def _summary_of_checkpoint(facts: _Row) -> Table:
    shown = {key: value for key, value in facts.items() if key not in ("paths", "tensor_types")}
    return _summary(
        {
            key.removesuffix("_bytes").replace("_", " "): (
                format_bytes(value)
                if key.endswith("_bytes")
                else f"{value:,}"
                if key in _COUNTS
                else str(value)
            )
            for key, value in shown.items()
            if value is not None
        }
    )


def _summary(rows: Mapping[str, str]) -> Table:
    shown = table()
    for label, text in rows.items():
        shown.add_row(label, _printable(text))
    return shown


def _types_table(types: Iterable[_Row]) -> Table:
    shown = table("tensor type", ">tensors", ">size")
    for row in types:
        shown.add_row(row["type"], str(row["count"]), format_bytes(row["size_bytes"]))
    return shown


def _metadata_table(spec: ModelSpec) -> Table:
    shown = table("metadata", "value")
    for key, value in spec.metadata.items():
        shown.add_row(_printable(key), _one_line(value))
    return shown


def _tensors_table(tensors: Iterable[_Row], last: str, last_cell: Callable[[_Row], str]) -> Table:
    shown = table("tensor", "shape", "type", ">size", last)
    for row in tensors:
        shape = " x ".join(map(str, row["shape"]))
        size = format_bytes(row["size_bytes"])
        shown.add_row(_printable(row["name"]), shape, row["type"], size, last_cell(row))
    return shown


def _one_line(value: MetadataValue) -> str:
    if isinstance(value, SkippedArray):
        return f"{value.length:,} of {value.element_type}, not read"
    text = str(value)
    if len(text) > _LONGEST_SHOWN:
        return f"{_printable(text[:_LONGEST_SHOWN])}… ({len(text):,} characters)"
    return _printable(text)


def _printable(text: str) -> str:
    """Text from a file made safe for a terminal: control characters and the like as `\\x1b`."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
