"""The part of `memfit quantize --target-size` before anything is written: measured, chosen, shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.cli.fetch import load_shown
from memfit.cli.options import take_budget
from memfit.cli.progress import progress_of_steps
from memfit.cli.texts import TextReader
from memfit.errors import WrongValueError
from memfit.units import format_bytes, parse_size

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.headers.model_spec import ModelSpec
    from memfit.planner.request import Budget
    from memfit.quantize.job import Quantizer
    from memfit.quantize.target import Chosen

__all__ = ["TargetSize", "chosen_types"]

_CHUNK = 512  # tokens
_CHUNKS = 40  # of the text at most


@dataclass(frozen=True, kw_only=True)
class TargetSize:
    """What a user asks for."""

    size: str | None  # None: what the budget leaves room for
    over: Path  # what is read to see what is lost
    imatrix: Path | None
    room: Path  # a folder for one, where none is given


def chosen_types(
    quantizer: Quantizer,
    spec: ModelSpec,
    target: TargetSize,
    *,
    limits: Mapping[str, Any],
    context: int | None,
    prefer: str,
    threads: int,
    out: Console,
) -> Chosen:
    """A type for each tensor, measured within `limits`, the command's --ram and --vram. `context` and
    `prefer` say how the file will be run, where the budget is its size. Errors as in quantize/target.py."""
    from memfit.cli.render import speaker
    from memfit.quantize.target import PLACES, fit, measure

    say = speaker(out)
    asked = {**limits, "rpc": (), "no_disk": False}
    if target.size is None:
        cap_bytes = _room(spec, take_budget(dict(asked)), context, prefer, say)
        say(f"the budget leaves room for a file of {format_bytes(cap_bytes)}")
    else:
        cap_bytes = _size(target.size)
    options: dict[str, Any] = {
        "ctx": _CHUNK,
        "chunks": _CHUNKS,
        "kv_type": "f16",
        "threads": threads,
        **asked,
        "engine": "auto",
        "load_in": None,
        "double_quant": False,
        "trust_remote_code": False,
    }
    reader = TextReader(target.over, options, say, verbose=False)
    plan, tokens = reader.plan(str(spec.paths[0]), importance=target.imatrix is None, probes=PLACES)
    with progress_of_steps(out, say) as on_step:
        measured = measure(
            quantizer,
            spec,
            lambda one: load_shown(one, out),
            plan,
            tokens,
            imatrix=target.imatrix or target.room / "imatrix.gguf",
            text=target.over.name if target.imatrix is None else None,
            threads=threads,
            cap_bytes=cap_bytes,
            on_step=on_step,
        )
    return fit(quantizer, spec, measured, cap_bytes, threads=threads)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise WrongValueError("target_size", f": {error}", got=text) from None


def _room(
    spec: ModelSpec, budget: Budget, context: int | None, prefer: str, say: Callable[[str], None]
) -> int:
    from memfit.api import plan
    from memfit.planner.request import Workload
    from memfit.quantize.room import room_for_file

    planned = plan(
        str(spec.paths[0]),
        budget=budget,
        workload=Workload(context=context),
        count_parent=True,
        say=say,
    )
    return room_for_file(planned, prefer=prefer)
