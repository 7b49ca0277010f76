"""The part of `memfit quantize --target-size` before anything is written: measured, chosen, shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.cli.fetch import load_shown
from memfit.cli.progress import progress_of_steps
from memfit.cli.texts import TextReader
from memfit.errors import WrongValueError
from memfit.units import parse_size

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.headers.model_spec import ModelSpec
    from memfit.quantize.job import Quantizer
    from memfit.quantize.target import Chosen

__all__ = ["TargetSize", "chosen_types"]

_CHUNK = 512  # tokens
_CHUNKS = 40  # of the text at most


@dataclass(frozen=True, kw_only=True)
class TargetSize:
    """What a user asks for."""

    text: str  # the size
    over: Path  # what is read to see what is lost
    imatrix: Path | None
    room: Path  # a folder for one, where none is given


def chosen_types(
    quantizer: Quantizer, spec: ModelSpec, target: TargetSize, *, ram: str | None, threads: int, out: Console
) -> Chosen:
    """A type for each tensor. Errors as in quantize/target.py."""
    from memfit.cli.render import speaker
    from memfit.quantize.target import PLACES, fit, measure

    say = speaker(out)
    try:
        cap_bytes = parse_size(target.text)
    except ValueError as error:
        raise WrongValueError("target_size", f": {error}", got=target.text) from None
    options: dict[str, Any] = {
        "ctx": _CHUNK,
        "chunks": _CHUNKS,
        "kv_type": "f16",
        "threads": threads,
        "ram": ram,
        "vram": (),
        "rpc": (),
        "no_disk": True,
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
            collect=target.imatrix is None,
            threads=threads,
            cap_bytes=cap_bytes,
            on_step=on_step,
        )
    return fit(quantizer, spec, measured, cap_bytes, threads=threads)
