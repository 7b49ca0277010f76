"""`memfit compare`: models side by side: size, what each loses against the first, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.fetch import load_shown
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import budget_options, engine_options, scoring_options, verbose_option
from memfit.cli.texts import TextReader, chunk_teller, require_same_tokens, text_option
from memfit.errors import UsageError
from memfit.memory.precision import LOAD_IN
from memfit.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.engines.worker_session import WorkerSession
    from memfit.evaluate.perplexity import Divergence, Perplexity
    from memfit.planner.plan import Plan

__all__ = ["command"]

_ANSWER_TOKENS = 64
_BAR_CELLS = 16


@dataclass(frozen=True, kw_only=True)
class _Row:
    name: str
    plan: Plan
    perplexity: Perplexity
    distance: Divergence | None  # None: the first model, which the others are compared with

    @property
    def weights_bytes(self) -> int:
        """Of the model as it is held, or on the disk."""
        return sum(tier.parts["weights"] for tier in self.plan.tiers) + self.plan.streamed_bytes

    @property
    def loss(self) -> float:
        return self.distance.mean if self.distance else 0.0

    def to_json(self) -> dict[str, Any]:
        prediction = self.plan.prediction
        return {
            "model": self.name,
            "weights_bytes": self.weights_bytes,
            "perplexity": self.perplexity.value,
            "error": self.perplexity.error,
            "kl_divergence": self.distance and asdict(self.distance),
            "prompt_tokens_per_second": prediction.prompt.value,
            "generation_tokens_per_second": prediction.main.value,
        }


@click.command("compare")
@click.argument("models", nargs=-1, required=True, metavar="MODEL[@PRECISION]…")
@text_option
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Loss over size: PNG or SVG.")
@click.option(
    "-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="Also what each answers; repeatable."
)
@scoring_options
@budget_options
@engine_options
@json_option
@verbose_option
def command(
    models: tuple[str, ...],
    text: Path,
    plot: Path | None,
    prompts: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Compare models over a text: size, perplexity, KL divergence from the first, and predicted speed.

    A checkpoint may be there in several precisions: DIR@bf16 DIR@int8 DIR@nf4. The least lossy model of each
    size, and all smaller ones, is marked with a star. One model is loaded at a time, inside the budget.
    """
    from memfit.cli.render import console, speaker

    if len(models) < 2:
        raise UsageError("compare takes two models or more; memfit perplexity scores one alone")
    if plot:
        from memfit.cli.comparison_plot import require_plotting

        require_plotting(plot, [text, *(Path(_named(one)[0]) for one in models)])
    err = console(stderr=True)
    say = speaker(err)
    reader = TextReader(text, options, say, verbose=verbose)

    def load(one: Plan) -> WorkerSession:
        return load_shown(one, err, verbose=verbose)

    rows = _rows(reader, models, load, say)
    answers = [_answers(row, load, prompts) for row in rows] if prompts else []
    if plot:
        from memfit.cli.comparison_plot import draw

        draw(plot, [(row.name, row.weights_bytes, row.loss) for row in rows])
    if as_json:
        shown = [row.to_json() for row in rows]
        for document, given in zip(shown, answers, strict=False):
            document["answers"] = given
        write_json({"text": str(text), "models": shown})
        return
    _print(rows, prompts, answers, console())


def _rows(reader: TextReader, models: Sequence[str], load: Any, say: Any) -> list[_Row]:
    from memfit.evaluate.perplexity import divergences

    planned = []
    for name in models:
        model, precision = _named(name)
        planned.append((name, *reader.plan(model, load_in=precision)))
    first, *others = planned
    for other in others:
        require_same_tokens(other, first)
    tokens = first[2]
    teller = chunk_teller(say, len(tokens.chunks) * len(others), "mean KL")
    base, found = divergences(load, first[1], [plan for _, plan, _ in others], tokens, teller)
    scored = [(base, None), *found]
    return [
        _Row(name=name, plan=plan, perplexity=perplexity, distance=distance)
        for (name, plan, _), (perplexity, distance) in zip(planned, scored, strict=True)
    ]


def _answers(row: _Row, load: Any, prompts: Sequence[str]) -> list[str]:
    from memfit.engines.requests import Sampling

    sampling = Sampling(temperature=0, max_tokens=_ANSWER_TOKENS)
    with load(row.plan) as session:
        if session.has_chat_template:
            return [session.chat([{"role": "user", "content": one}], sampling).text for one in prompts]
        return [session.generate(one, sampling).text for one in prompts]


def _named(name: str) -> tuple[str, str | None]:
    """A model, and its precision where one is named."""
    model, at, precision = name.rpartition("@")
    return (model, precision) if at and precision in LOAD_IN else (name, None)


def best_of(rows: Sequence[tuple[int, float]]) -> list[bool]:
    """Which of these sizes and losses no other beats in both."""
    return [
        not any((other[0] <= size and other[1] <= loss) and other != (size, loss) for other in rows)
        for size, loss in rows
    ]


def _print(rows: Sequence[_Row], prompts: Sequence[str], answers: Sequence[list[str]], out: Console) -> None:
    from memfit.cli.render import plain, table

    headings = (
        ">weights",
        ">perplexity",
        ">mean KL",
        "",
        ">99 %",
        ">same token",
        ">prompt",
        ">generation",
        "",
    )
    shown = table("model", *headings)
    most = max(row.loss for row in rows) or 1.0
    best = best_of([(row.weights_bytes, row.loss) for row in rows])
    for row, is_best in zip(rows, best, strict=True):
        distance, prediction = row.distance, row.plan.prediction
        shown.add_row(
            plain(row.name),
            format_bytes(row.weights_bytes),
            f"{row.perplexity.value:.3f} ± {row.perplexity.error:.3f}",
            f"{distance.mean:.5f}" if distance else "",
            "█" * round(_BAR_CELLS * row.loss / most),
            f"{distance.percentile_99:.4f}" if distance else "",
            f"{100 * distance.same_top:.1f} %" if distance else "",
            f"{prediction.prompt.value:.0f} tok/s",
            f"{prediction.main.value:.1f} tok/s",
            "*" if is_best else "",
        )
    out.print(shown)
    for place, prompt in enumerate(prompts):
        out.print()
        out.print(plain(prompt))
        side = table()
        for row, given in zip(rows, answers, strict=True):
            side.add_row(plain(row.name), plain(given[place]))
        out.print(side)
