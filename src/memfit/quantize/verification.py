"""Whether a converted model is the checkpoint that it was: the same tokens of a text, the same predictions.

The checkpoint computes in float32, so that what differs is the converted file's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from memfit.api import open_planner
from memfit.engines.protocol import PlanOptions
from memfit.errors import EngineError
from memfit.evaluate.perplexity import Divergence, Load, Tokens, divergences, read_tokens, scoring_plan
from memfit.hub.resolve import resolve
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Size, Workload

__all__ = ["compare"]

_MOST = 1e-3  # nats a token: rounding is below, a field that is passed over is above
_CONTEXT = 64  # tokens
# Words, numbers, a program, and letters of other scripts: what tokenizers treat differently.
_TEXT = """The lighthouse keeper wrote down the weather every morning: wind from the north-west, 12 knots,
rain before noon. "Nobody reads it," she said, "but somebody might."

In 1987 the harbour was closed; 3,405 people left within a year, and the school became a museum.

    def mean(values):
        total = 0.0
        for one in values:
            total += one
        return total / len(values)

Der Bär läuft über die Brücke. Où est la gare? 東京は日本の首都です。 Привет, мир!
A list: one, two, three; then 10 % of 250 is 25.
"""


def compare(
    converted: Path,
    folder: Path,
    *,
    ram: Size | None,
    trust_remote_code: bool,
    load: Load,
    say: Callable[[str], None],
) -> Divergence:
    """How far the predictions of the `converted` file are from those of the checkpoint in `folder`.

    Raises:
        EngineError: they differ by more than rounding does, or read a text as other tokens.
        DoesNotFitError: one of the two does not fit.
    """
    plan, tokens = _plan(str(converted), ram, say, "off")
    more = {"load_in": "fp32", "trust_remote_code": trust_remote_code}
    reference, theirs = _plan(str(folder), ram, say, "auto", **more)
    if tokens.chunks != theirs.chunks:
        raise EngineError("the converted model reads a text as other tokens than the checkpoint does")
    _, ((_, found),) = divergences(load, reference, [plan], tokens)
    if not found.mean <= _MOST:
        raise EngineError(
            "the converted model does not predict what the checkpoint does: mean KL divergence "
            f"{found.mean:.2g}, and rounding gives less than {_MOST:g}; llama.cpp computes it otherwise"
        )
    return found


def _plan(
    model: str, ram: Size | None, say: Callable[[str], None], repack: str, **engine: object
) -> tuple[Plan, Tokens]:
    workload = Workload(context=_CONTEXT, prompt_tokens=_CONTEXT, generated_tokens=1, repack=repack)
    options = PlanOptions(budget=Budget(ram=ram), count_parent=True, say=say, **engine)  # type: ignore[arg-type]
    with open_planner(resolve(model, say), "auto", options, workload) as planner:
        tokens = read_tokens(planner, _TEXT, context=_CONTEXT, most=None)
        plan = scoring_plan(planner, workload)
    plan.require_fit()
    return plan, tokens
