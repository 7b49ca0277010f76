"""`memfit perplexity`: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.fetch import load_shown
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import (
    asks_for_transformers,
    budget_options,
    engine_options,
    scoring_options,
    take_budget,
    take_engine,
    take_scoring,
    verbose_option,
)
from memfit.errors import UsageError, WrongValueError
from memfit.units import MIB, format_bytes

if TYPE_CHECKING:
    from memfit.engines.worker_session import WorkerSession
    from memfit.evaluate.perplexity import Divergence, Perplexity, Tokens
    from memfit.planner.plan import Plan

__all__ = ["command"]

_MOST_TEXT = 64 * MIB
_TOKEN_BYTES = 16  # of text at most, where only some chunks are wanted
_LINES = 10  # of progress


@click.command("perplexity")
@click.argument("model")
@click.option("--text", required=True, type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text.")
@click.option("--reference", metavar="MODEL", help="Also how far the predictions are from this model's.")
@scoring_options
@budget_options
@engine_options
@json_option
@verbose_option
def command(
    model: str, text: Path, reference: str | None, as_json: bool, verbose: bool, **options: Any
) -> None:
    """How well MODEL predicts a text: its perplexity, inside a memory budget.

    As llama-perplexity counts it: in chunks of --ctx tokens, each scored from its middle on. With --reference
    also the KL divergence from that model, in nats a token.
    """
    from memfit.cli.render import console, speaker
    from memfit.evaluate.perplexity import divergence, perplexity

    err = console(stderr=True)
    say = speaker(err)
    context, chunks = options["ctx"], options.pop("chunks")
    if context < 4:
        raise WrongValueError("context", ": a chunk has at least 4 tokens", got=context)
    read = _read(text, chunks and chunks * context * _TOKEN_BYTES)

    def plan_for(name: str) -> tuple[Plan, Tokens]:
        return _plan(name, read, chunks, dict(options), say, verbose)

    def load(one: Plan) -> WorkerSession:
        return load_shown(one, err, verbose=verbose)

    plan, tokens = plan_for(model)
    if reference is None:
        with load(plan) as session:
            found = perplexity(session, tokens, _teller(say, len(tokens.chunks), "perplexity"))
            report = session.report()
        facts = {"model": model, **_facts(found, tokens), "within_budget": report.within_budget}
        lines = [_line(model, found)]
    else:
        other, theirs = plan_for(reference)
        if theirs.chunks != tokens.chunks or other.spec.vocabulary != plan.spec.vocabulary:
            raise UsageError(
                f"{model} and {reference} read the text as different tokens, so their predictions cannot be "
                "compared"
            )
        teller = _teller(say, len(tokens.chunks), "mean KL")
        found, base, distance = divergence(load, plan, other, tokens, teller)
        facts = {
            "model": model,
            **_facts(found, tokens),
            "reference": {"model": reference, **asdict(base)},
            "kl_divergence": asdict(distance),
        }
        lines = [_line(model, found), _line(reference, base), *_distance_lines(distance)]
    if as_json:
        write_json(facts)
    else:
        click.echo("\n".join(lines))


def _read(path: Path, most: int | None) -> str:
    """The text, or its first `most` bytes."""
    try:
        size = path.stat().st_size
        if most is None and size > _MOST_TEXT:
            raise UsageError(
                f"--text {path}: {format_bytes(size)} of text, and {format_bytes(_MOST_TEXT)} are read at "
                "most; --chunks N takes a part"
            )
        with path.open("rb") as file:
            data = file.read() if most is None else file.read(most)
    except OSError as error:
        raise UsageError(f"--text {path}: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if most is not None and error.start > len(data) - 4:  # a letter was cut
            return data[: error.start].decode()
        raise UsageError(f"--text {path}: no UTF-8 text: byte {error.start} begins no letter") from None


def _plan(
    model: str,
    text: str,
    chunks: int | None,
    options: dict[str, Any],
    say: Callable[[str], None],
    verbose: bool,
) -> tuple[Plan, Tokens]:
    """The plan for a text, and its tokens."""
    from memfit.api import open_planner
    from memfit.engines.protocol import PlanOptions
    from memfit.evaluate.perplexity import read_tokens, scored_outputs
    from memfit.hub.resolve import resolve

    workload, engine = take_scoring(options), take_engine(options)
    found = resolve(model, say)
    if not (found.is_checkpoint or asks_for_transformers(engine)):
        workload = replace(workload, repack="off")  # by the kernels that others use: figures can be compared
    name = engine.pop("engine")
    asked = PlanOptions(budget=take_budget(options), count_parent=True, say=say, verbose=verbose, **engine)
    with open_planner(found, name, asked, workload) as planner:
        assert workload.context
        tokens = read_tokens(planner, text, context=workload.context, most=chunks)
        plan = planner.plan(replace(workload, outputs=scored_outputs(planner.spec.vocabulary)))
    plan.require_fit()
    return plan, tokens


def _teller(say: Callable[[str], None], chunks: int, what: str) -> Callable[[int, float], None]:
    """Says how far it is, in some lines."""

    def tell(done: int, value: float) -> None:
        if done < chunks and done * _LINES // chunks > (done - 1) * _LINES // chunks:
            say(f"{done} of {chunks} chunks, {what} {value:.4g} so far")

    return tell


def _facts(found: Perplexity, tokens: Tokens) -> Mapping[str, Any]:
    return {
        "perplexity": found.value,
        "error": found.error,
        "tokens": found.tokens,
        "chunks": len(tokens.chunks),
        "context": tokens.context,
    }


def _line(model: str, found: Perplexity) -> str:
    return f"{model}: perplexity {found.value:.4f} ± {found.error:.4f} over {found.tokens} tokens"


def _distance_lines(distance: Divergence) -> list[str]:
    return [
        f"KL divergence: mean {distance.mean:.6f} ± {distance.error:.6f}, median {distance.median:.6f}, "
        f"99th percentile {distance.percentile_99:.6f}, maximum {distance.maximum:.6f} nats a token",
        f"same likeliest token: {100 * distance.same_top:.2f} %",
    ]
