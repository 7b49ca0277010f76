"""`memfit inspect MODEL`: the facts in a model's header, for people or as JSON.

Only shows what the header room read; judges nothing and loads nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.headers.model_spec import MetadataValue, ModelSpec, SkippedArray, TensorSpec
from memfit.headers.safetensors import SafetensorsTensor
from memfit.hub.resolve import resolve
from memfit.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["command", "printable", "table_of", "tensor_types", "types_table", "wide_console"]

_LONGEST_SHOWN = 72  # characters of a metadata value; a chat template has thousands


@click.command("inspect")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(model: str, tensors: bool, as_json: bool) -> None:
    """Show the facts in MODEL's header: of a GGUF file, of demo, or of a checkpoint with config.json and
    safetensors. Of what is not here only the header is read.
    """
    found = resolve(model)
    if found.is_checkpoint:
        from memfit.cli.checkpoint import show_checkpoint

        show_checkpoint(model, found.path, tensors=tensors, as_json=as_json)
        return
    spec = found.read_spec()
    if as_json:
        write_json(_facts(spec, tensors=tensors))
    else:
        _print_tables(spec, tensors=tensors)


def _facts(spec: ModelSpec, *, tensors: bool) -> dict[str, Any]:
    facts = {
        "source": spec.source,
        "paths": [str(path) for path in spec.paths],
        "architecture": spec.architecture,
        "name": spec.name,
        "quantization": spec.quantization,
        "file_bytes": spec.file_bytes,
        "weights_bytes": spec.weights_bytes,
        "parameters": spec.n_params,
        "context_length": spec.context_length,
        "vocabulary": spec.vocabulary,
        "layers": _json_value(spec.architecture_value("block_count")),
        "tensor_types": tensor_types(spec.tensors),
        "metadata": {key: _json_value(value) for key, value in spec.metadata.items()},
    }
    if tensors:
        facts["tensors"] = [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": tensor.type,
                "size_bytes": tensor.size_bytes,
                "offset_bytes": tensor.offset_bytes,
                "file_index": tensor.file_index,
            }
            for tensor in spec.tensors
        ]
    return facts


def tensor_types(tensors: Iterable[TensorSpec | SafetensorsTensor]) -> list[dict[str, Any]]:
    """Each tensor type's count and bytes, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        name = tensor.type if isinstance(tensor, TensorSpec) else tensor.dtype
        counts[name] += 1
        sizes[name] += tensor.size_bytes
    return [{"type": name, "count": counts[name], "size_bytes": size} for name, size in sizes.most_common()]


def _json_value(value: MetadataValue | None) -> Any:
    if isinstance(value, SkippedArray):
        return {"array": value.element_type, "length": value.length}
    if isinstance(value, tuple):
        return [_json_value(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value


def wide_console() -> Console:
    """One whose tables no pipe folds."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        from memfit.cli.render import PIPE_WIDTH

        console.width = PIPE_WIDTH
    return console


def _print_tables(spec: ModelSpec, *, tensors: bool) -> None:
    console = wide_console()
    console.print(_summary(spec))
    console.print()
    console.print(types_table(tensor_types(spec.tensors)))
    console.print()
    console.print(_metadata_table(spec))
    if tensors:
        console.print()
        console.print(_tensors_table(spec))


def _summary(spec: ModelSpec) -> Table:
    files = f" in {len(spec.paths)} files" if len(spec.paths) > 1 else ""
    layers = spec.architecture_value("block_count")
    bits = spec.weights_bytes * 8 / spec.n_params
    rows = {
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
    table = table_of()
    for label, text in rows.items():
        table.add_row(label, printable(text))
    return table


def types_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Of what `tensor_types` says."""
    table = table_of("tensor type", ">tensors", ">size")
    for row in rows:
        table.add_row(row["type"], str(row["count"]), format_bytes(row["size_bytes"]))
    return table


def _metadata_table(spec: ModelSpec) -> Table:
    table = table_of("metadata", "value")
    for key, value in spec.metadata.items():
        table.add_row(printable(key), _one_line(value))
    return table


def _tensors_table(spec: ModelSpec) -> Table:
    table = table_of("tensor", "shape", "type", ">size", ">offset")
    for tensor in spec.tensors:
        table.add_row(
            printable(tensor.name),
            " x ".join(map(str, tensor.shape)),
            tensor.type,
            format_bytes(tensor.size_bytes),
            str(tensor.offset_bytes),
        )
    return table


def table_of(*headings: str) -> Table:
    """A table without lines; `>` before a heading sets its column to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=bool(headings))
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left")
    return table


def _one_line(value: MetadataValue) -> str:
    if isinstance(value, SkippedArray):
        return f"{value.length:,} of {value.element_type}, not read"
    text = value if isinstance(value, str) else str(value)
    if len(text) > _LONGEST_SHOWN:
        return f"{printable(text[:_LONGEST_SHOWN])}… ({len(text):,} characters)"
    return printable(text)


def printable(text: str) -> str:
    """Text from a file made safe for a terminal: control characters and the like as `\\x1b`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
