"""What a Hugging Face checkpoint takes in each precision, as a table or as JSON; of a described machine also
where each lies there, and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from memfit.cli.json_output import write_json
from memfit.cli.render import console, plain, table
from memfit.headers.hf_shapes import HfModel
from memfit.memory.precision import PRECISIONS, precision
from memfit.memory.precision_table import PrecisionRow, precision_table
from memfit.planner.request import Workload, context_of
from memfit.units import format_bytes, format_rate

if TYPE_CHECKING:
    from memfit.hub.resolve import ResolvedModel
    from memfit.planner.plan import Plan

__all__ = ["plans_on_machine", "show_precisions"]


def plans_on_machine(
    model: ResolvedModel, request: Mapping[str, Any], engine: Mapping[str, Any]
) -> list[Plan]:
    """One for each of PRECISIONS; what is to be said of several is said once."""
    from memfit.api import plan

    heard: set[str] = set()

    def say(text: str) -> None:
        if text not in heard:
            heard.add(text)
            request["say"](text)

    plans = []
    for one in map(precision, PRECISIONS):
        wish = {"load_in": one.load_in, "double_quant": one.nested_block > 0, "say": say}
        plans.append(plan(model, **{**request, **engine, **wish}))
    return plans


def show_precisions(
    model: str, checkpoint: HfModel, workload: Workload, plans: Sequence[Plan], *, as_json: bool
) -> None:
    """`plans` are those of a described machine, if one is asked about."""
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
        if plans:
            facts["plans"] = {row.precision: one.to_json() for row, one in zip(rows, plans, strict=True)}
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
    if plans:
        _print_plans(rows, plans, out)
    for kept in rows[-1].unquantized:
        out.print(plain(f"  not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"))
    for note in checkpoint.notes:
        out.print(plain(f"  {note}"))


def _print_plans(rows: Sequence[PrecisionRow], plans: Sequence[Plan], out: Console) -> None:
    """Where each precision lies, and its speeds; what does not fit, and by how much."""
    profile = plans[0].fingerprint and plans[0].fingerprint.profile
    out.print()
    out.print(plain(f"on {profile}, within what is free there; {plans[0].why[0]}"))
    names = list(dict.fromkeys(tier.name for one in plans for tier in reversed(one.tiers)))[::-1]
    places = table("", *(f">{name}" for name in names), ">disk", ">prompt", ">generation", no_wrap=True)
    for row, one in zip(rows, plans, strict=True):
        held = {tier.name: format_bytes(tier.total_bytes) for tier in one.tiers}
        speeds = [f"{format_rate(rate.value)}" for rate in one.prediction.rates.values()]
        if not one.fits:
            tier = one.overfull
            short = tier.needs_bytes - tier.limit_bytes if tier else 0
            speeds = [f"does not fit: {format_bytes(short)} short", ""]
        disk = format_bytes(one.streamed_bytes) if one.streamed_bytes else ""
        places.add_row(row.precision, *(held.get(name, "") for name in names), disk, *speeds)
    out.print(places)
    bases = ", ".join(sorted({one.prediction.basis for one in plans}))
    out.print(f"tokens per second ({bases}); --load-in PRECISION plans one with its ranges", style="dim")


def _cells(row: PrecisionRow) -> list[str]:
    weights = (row.resident_bytes, row.quantized_bytes, row.unquantized_bytes, row.state_bytes)
    return [format_bytes(size) for size in (*weights, row.kv_cache_bytes, row.loading_peak_bytes["cpu"])]
