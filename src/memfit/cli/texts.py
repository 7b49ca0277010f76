"""What commands over a text share: the file, the plan of a model that reads it in chunks, and progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.options import asks_for_transformers, take_budget, take_engine, take_scoring
from memfit.errors import UsageError, WrongValueError
from memfit.units import MIB, format_bytes

if TYPE_CHECKING:
    from memfit.evaluate.perplexity import Tokens
    from memfit.planner.plan import Plan

__all__ = ["TextReader", "chunk_teller", "require_same_tokens", "text_option"]

_MOST_TEXT = 64 * MIB
_TOKEN_BYTES = 16  # of text at most, where only some chunks are wanted
_LINES = 10  # of progress

text_option = click.option(
    "--text", required=True, type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text."
)


class TextReader:
    """A text file, and the options of a command over it: scoring, budget and engine."""

    def __init__(
        self, path: Path, options: dict[str, Any], say: Callable[[str], None], *, verbose: bool
    ) -> None:
        """Reads the text. Raises UsageError where it cannot be, or `options` have no size of a chunk."""
        self.path, self._say, self._verbose = path, say, verbose
        self._options = dict(options)
        self._chunks = self._options.pop("chunks")
        context = self._options["ctx"]
        if context < 4:
            raise WrongValueError("context", ": a chunk has at least 4 tokens", got=context)
        self._text = _read(path, self._chunks and self._chunks * context * _TOKEN_BYTES)

    def plan(
        self, model: str, *, importance: bool = False, probes: int = 0, load_in: str | None = None
    ) -> tuple[Plan, Tokens]:
        """A model's plan, and the text's tokens: to score them; or to collect an importance matrix, or to
        change weights and look at so many places of a text, or both. `load_in` is a checkpoint's precision,
        where it is not the options'.

        Raises:
            DoesNotFitError: the model does not fit.
            UsageError: the text is too short.
        """
        from memfit.api import open_planner
        from memfit.engines.protocol import PlanOptions
        from memfit.evaluate.perplexity import read_tokens, scoring_plan
        from memfit.hub.resolve import resolve

        options = dict(self._options)
        workload, engine = take_scoring(options), take_engine(options)
        engine["load_in"] = load_in or engine["load_in"]
        found = resolve(model, self._say)
        by_transformers = found.is_checkpoint or asks_for_transformers(engine)
        if (importance or probes) and by_transformers:
            raise UsageError(f"{model} is a checkpoint, and this is for llama.cpp's models; take a GGUF file")
        if not by_transformers:
            workload = replace(
                workload, repack="off"
            )  # by the kernels that others use: figures can be compared
        name = engine.pop("engine")
        asked = PlanOptions(
            budget=take_budget(options),
            count_parent=True,
            writes=True,
            say=self._say,
            verbose=self._verbose,
            **engine,
        )
        workload = replace(workload, importance=importance, probes=bool(probes))
        with open_planner(found, name, asked, workload) as planner:
            assert workload.context
            tokens = read_tokens(planner, self._text, context=workload.context, most=self._chunks)
            if importance or probes:
                plan = planner.plan(replace(workload, outputs=probes))
            else:
                plan = scoring_plan(planner, workload)
        plan.require_fit()
        return plan, tokens


def require_same_tokens(one: tuple[str, Plan, Tokens], other: tuple[str, Plan, Tokens]) -> None:
    """Of two models' names, plans and tokens of a text. Raises UsageError where they read it otherwise."""
    (name, plan, tokens), (second, reference, theirs) = one, other
    if theirs.chunks != tokens.chunks or reference.spec.vocabulary != plan.spec.vocabulary:
        raise UsageError(
            f"{name} and {second} read the text as different tokens, so their predictions cannot be compared"
        )


def chunk_teller(say: Callable[[str], None], chunks: int, what: str) -> Callable[[int, float], None]:
    """Says how far it is, in some lines; `what` is the name of the value so far."""

    def tell(done: int, value: float) -> None:
        if done < chunks and done * _LINES // chunks > (done - 1) * _LINES // chunks:
            say(f"{done} of {chunks} chunks, {what} {value:.4g} so far")

    return tell


def _read(path: Path, most: int | None) -> str:
    """The text, or its first `most` bytes."""
    try:
        size = path.stat().st_size
        if most is None and size > _MOST_TEXT:
            raise UsageError(
                f"--text {path}: {format_bytes(size)} of text, and {format_bytes(_MOST_TEXT)} are read at "
                "most; --chunks N takes a part",
                field="--text",
            )
        with path.open("rb") as file:
            data = file.read() if most is None else file.read(most)
    except OSError as error:
        raise UsageError(f"--text {path}: {error.strerror}", field="--text") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if most is not None and error.start > len(data) - 4:  # a letter was cut
            return data[: error.start].decode()
        problem = f"--text {path}: no UTF-8 text: byte {error.start} begins no letter"
        raise UsageError(problem, field="--text") from None
