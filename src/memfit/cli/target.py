"""What `memfit quantize --target-size` does beside writing: choosing types, and measuring the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.cli.fetch import load_shown
from memfit.cli.options import take_budget
from memfit.cli.progress import progress_of_steps
from memfit.cli.texts import TextReader, chunk_teller
from memfit.errors import WrongValueError
from memfit.units import format_bytes, parse_size

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.engines.worker_session import WorkerSession
    from memfit.evaluate.perplexity import Divergence, Tokens
    from memfit.headers.model_spec import ModelSpec
    from memfit.planner.plan import Plan
    from memfit.planner.request import Budget
    from memfit.quantize.job import Quantizer
    from memfit.quantize.target import Chosen

__all__ = ["TargetJob", "TargetSize"]

_CHUNK = 512  # tokens
_READ_CHUNKS = 40  # of the text at most
_HELD_OUT_CHUNKS = 8  # at most, over which the written file's loss is measured


@dataclass(frozen=True, kw_only=True)
class TargetSize:
    """What a user asks for."""

    size: str | None  # None: what the budget leaves room for
    over: Path  # what is read to see what is lost
    imatrix: Path | None
    collected: Path  # for one that is collected, where none is given


class TargetJob:
    """Chooses the types of one file, and measures what it loses once it is written."""

    def __init__(
        self,
        quantizer: Quantizer,
        spec: ModelSpec,
        target: TargetSize,
        limits: Mapping[str, Any],
        *,
        threads: int,
        out: Console,
    ) -> None:
        """Measures within `limits`, the command's --ram and --vram."""
        from memfit.cli.render import speaker

        self._quantizer, self._spec, self._target = quantizer, spec, target
        self._threads, self._out = threads, out
        self._say = speaker(out)
        self._limits = {**limits, "rpc": (), "no_disk": False}
        options: dict[str, Any] = {
            "ctx": _CHUNK,
            "chunks": _READ_CHUNKS + _HELD_OUT_CHUNKS,
            "kv_type": "f16",
            "threads": threads,
            **self._limits,
            "engine": "auto",
            "load_in": None,
            "double_quant": False,
            "trust_remote_code": False,
        }
        self._reader = TextReader(target.over, options, self._say, verbose=False)

    def choose(self, context: int | None, prefer: str) -> Chosen:
        """A type for each tensor. `context` and `prefer` say how the file will be run, where the budget is
        its size. Errors as in quantize/target.py."""
        from memfit.quantize.target import PLACES, fit, measure

        target, spec = self._target, self._spec
        if target.size is None:
            cap_bytes = _room(spec, take_budget(dict(self._limits)), context, prefer, self._say)
            self._say(f"the budget leaves room for a file of {format_bytes(cap_bytes)}")
        else:
            cap_bytes = _size(target.size)
        plan, tokens = self._reader.plan(str(spec.paths[0]), importance=target.imatrix is None, probes=PLACES)
        with progress_of_steps(self._out, self._say) as on_step:
            measured = measure(
                self._quantizer,
                spec,
                self._load,
                plan,
                _split(tokens)[0],
                imatrix=target.imatrix or target.collected,
                text=target.over.name if target.imatrix is None else None,
                threads=self._threads,
                cap_bytes=cap_bytes,
                on_step=on_step,
            )
        return fit(self._quantizer, spec, measured, cap_bytes, threads=self._threads)

    def measure_loss(self, output: Path) -> Divergence | None:
        """Of the file that was written, from its source, over the end of the text, which nothing was chosen
        by. None where the text is too short for that."""
        from memfit.evaluate.perplexity import divergences

        reference, tokens = self._reader.plan(str(self._spec.paths[0]))
        held_out = _split(tokens)[1]
        if not held_out.chunks:
            return None
        planned, _ = self._reader.plan(str(output))
        self._quantizer.rest()
        teller = chunk_teller(self._say, len(held_out.chunks), "mean KL")
        ((_, lost),) = divergences(self._load, reference, [planned], held_out, teller)[1]
        return lost

    def _load(self, plan: Plan) -> WorkerSession:
        return load_shown(plan, self._out)


def _split(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """What is read to choose by, and what is held out: a fifth at most."""
    held_out = min(_HELD_OUT_CHUNKS, len(tokens.chunks) // 5)
    at = len(tokens.chunks) - held_out
    return replace(tokens, chunks=tokens.chunks[:at]), replace(tokens, chunks=tokens.chunks[at:])


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
