"""`memfit perplexity`: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.fetch import load_shown
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import budget_options, engine_options, scoring_options, verbose_option
from memfit.cli.texts import TextReader, chunk_teller, require_same_tokens, text_option

if TYPE_CHECKING:
    from memfit.engines.worker_session import WorkerSession
    from memfit.evaluate.perplexity import Divergence, Perplexity, Tokens
    from memfit.planner.plan import Plan

__all__ = ["command"]


@click.command("perplexity")
@click.argument("model")
@text_option
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
    from memfit.evaluate.perplexity import divergences, perplexity

    err = console(stderr=True)
    say = speaker(err)
    reader = TextReader(text, options, say, verbose=verbose)

    def load(one: Plan) -> WorkerSession:
        return load_shown(one, err, verbose=verbose)

    plan, tokens = reader.plan(model)
    if reference is None:
        with load(plan) as session:
            found = perplexity(session, tokens, chunk_teller(say, len(tokens.chunks), "perplexity"))
            report = session.report()
        facts = {"model": model, **_facts(found, tokens), "within_budget": report.within_budget}
        lines = [_line(model, found)]
    else:
        other, theirs = reader.plan(reference)
        require_same_tokens((model, plan, tokens), (reference, other, theirs))
        teller = chunk_teller(say, len(tokens.chunks), "mean KL")
        base, ((found, distance),) = divergences(load, other, [plan], tokens, teller)
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
