"""What a Hugging Face checkpoint takes in each precision, as a table or as JSON."""

from __future__ import annotations

from memfit.cli.json_output import write_json
from memfit.cli.render import console, plain, table
from memfit.headers.hf_shapes import HfModel
from memfit.memory.precision_table import PrecisionRow, precision_table
from memfit.planner.request import Workload, context_of
from memfit.units import format_bytes

__all__ = ["show_precisions"]


def show_precisions(model: str, checkpoint: HfModel, workload: Workload, *, as_json: bool) -> None:
    context = context_of(workload, checkpoint.hf_config.max_position_embeddings)
    rows = precision_table(checkpoint, context)
    parameters = sum(one.elements for one in checkpoint.parameters)
    if as_json:
        facts = {
            "model": {
                "source": model,
                "architecture": checkpoint.hf_config.model_type,
                "parameters": parameters,
                "file_bytes": checkpoint.checkpoint_bytes,
            },
            "engine": "transformers",
            "context": context,
            "precisions": [row.to_json() for row in rows],
            "notes": list(checkpoint.notes),
        }
        write_json(facts)
        return
    out = console()
    out.print(plain(f"{model}  {checkpoint.hf_config.model_type} · {parameters / 1e6:,.0f} M parameters"))
    sizes = table("", ">resident", ">quantized", ">kept", ">state", ">KV cache", ">loading", no_wrap=True)
    for row in rows:
        sizes.add_row(row.precision, *_cells(row))
    out.print(sizes)
    out.print(f"KV cache: one sequence of {context} tokens; loading: the peak on a CPU, at most", style="dim")
    for row in rows:
        said = " · ".join(f"{size:,} bytes ({release})" for release, size in row.reported_bytes.items())
        out.print(f"transformers reports for {row.precision:7}{said or 'unknown'}")
    for kept in rows[-1].unquantized:
        out.print(plain(f"  not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"))
    for note in checkpoint.notes:
        out.print(plain(f"  {note}"))


def _cells(row: PrecisionRow) -> list[str]:
    weights = (row.resident_bytes, row.quantized_bytes, row.unquantized_bytes, row.state_bytes)
    return [format_bytes(size) for size in (*weights, row.kv_cache_bytes, row.loading_peak_bytes["cpu"])]
