"""`advise`: plans every quantization of a repository on the hub by its header, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from memfit.api import plan
from memfit.errors import MemfitError, ModelError
from memfit.hub.repository import repository_of
from memfit.hub.subprocess import ask
from memfit.planner.advice import Advice, Option, WhatIf, recommend
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.request import Budget, Conditions, Workload
from memfit.units import MIB

__all__ = ["advise", "choices_of"]

_MOST_SMALLER = 3  # models that are planned instead of one that loses too much
_LARGER_CARDS = ("rtx4080-16gb", "rtx4090-24gb")


def choices_of(model: str) -> dict[str, Any] | None:
    """What a repository on the hub holds, where `model` names one as a whole (hub/remote_model.py).

    None also where the hub cannot be asked: `plan` may know the model from this disk, or says what is wrong.
    """
    name = repository_of(model)
    try:
        return None if name is None else dict(ask("choices", name))
    except ModelError:
        return None


def advise(
    choices: Mapping[str, Any],
    *,
    budget: Budget | None = None,
    workload: Workload | None = None,
    conditions: Conditions | None = None,
    machine: str | None = None,
    count_parent: bool = False,
    writes: bool = False,
    say: Callable[[str], None] | None = None,
) -> Advice | None:
    """Compare all quantizations of a repository, by its `choices_of`; None where there are fewer than two.

    Nothing is downloaded but headers. Where nothing fits but what loses too much, a smaller model of the same
    owner is looked for, too.

    Raises:
        MemfitError: as `plan` does, where not one of them can be planned.
    """
    if len(choices["variants"]) < 2:
        return None
    budget, workload = budget or Budget(), workload or Workload()

    def attempt(source: str, budget: Budget, workload: Workload, machine: str | None) -> LlamaPlan:
        planned = plan(
            source,
            budget=budget,
            workload=workload,
            conditions=conditions,
            machine=machine,
            count_parent=count_parent,
            writes=writes,
            say=say,
        )
        assert isinstance(planned, LlamaPlan)  # a repository of quantizations is one of GGUF files
        return planned

    def as_asked(source: str) -> LlamaPlan:
        return attempt(source, budget, workload, machine)

    options = [_option(variant, as_asked) for variant in choices["variants"]]
    best = recommend(options)
    if best is None:
        raise ModelError(options[-1].problem or "nothing could be planned")
    assert best.plan is not None
    what_ifs = []
    for change, changed in _changes(best.plan, budget, workload, machine):
        try:
            what_ifs.append(WhatIf(change=change, plan=attempt(best.source, *changed)))
        except MemfitError:
            continue  # this model knows no such KV cache
    return Advice(
        options=tuple(options),
        recommended=best,
        what_ifs=tuple(what_ifs),
        smaller_models=tuple(choices["smaller_models"]),
        instead=None if best.is_good else _instead(choices["smaller_models"], as_asked),
    )


def _option(variant: Mapping[str, Any], attempt: Callable[[str], LlamaPlan]) -> Option:
    planned, problem = None, None
    try:
        planned = attempt(variant["model"])
    except ModelError as error:
        problem = str(error)
    facts = {key: variant[key] for key in ("label", "name", "size_bytes")}
    return Option(**facts, source=variant["model"], plan=planned, problem=problem)


def _instead(models: Sequence[str], attempt: Callable[[str], LlamaPlan]) -> Option | None:
    """Of these models, the largest first, the first that is good as its name alone means it (Q4_K_M, most
    often): to compare all of their quantizations would fetch a header of some MB for each."""
    for name in models[:_MOST_SMALLER]:
        with suppress(MemfitError):  # it cannot do what is asked for: it has a shorter context
            planned = attempt(name)
            spec = planned.spec
            kind = spec.quantization
            option = Option(label=kind, name=kind, source=name, size_bytes=spec.file_bytes, plan=planned)
            if option.is_good:
                return option
    return None


def _changes(
    best: LlamaPlan, budget: Budget, workload: Workload, machine: str | None
) -> Iterator[tuple[str, tuple[Budget, Workload, str | None]]]:
    half = best.context // 2
    yield f"--ctx {half}", (budget, replace(workload, context=half), machine)
    if best.config.kv_type == "f16":
        yield "--kv-type q8_0", (budget, replace(workload, kv_type="q8_0"), machine)
    if budget.ram is not None:
        more = f"{2 * best.ram.budget_bytes // MIB}MiB"
        yield f"--ram {more}", (replace(budget, ram=more), workload, machine)
    for card in _LARGER_CARDS:
        if machine != card:
            yield f"--machine {card}", (Budget(), workload, card)
