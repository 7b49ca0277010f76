"""How likely texts are: by both engines, against the logits themselves, within the plan's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.engines.requests import LogitsBlock, TokenScore
from memfit.errors import UsageError
from memfit.units import GIB, MIB

_TOKENS = [504, 357, 282, 464, 314, 70, 30, 138, 122, 28, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]


def _scored(model: str, outputs: int, **options: Any) -> tuple[tuple[TokenScore, ...], list[LogitsBlock]]:
    blocks: list[LogitsBlock] = []
    workload = memfit.Workload(context=256, outputs=outputs)
    plan = memfit.plan(model, budget=memfit.Budget(ram=4 * GIB), workload=workload, **options)
    with memfit.load(plan) as session:
        found = session.score(_TOKENS, first=4, top=3, on_logits=blocks.append)
        report = session.report()
    assert report.within_budget
    ram = report.tiers[0]
    # Predicted is what a whole ubatch takes, too, which these few tokens do not fill.
    assert -2 * MIB < (ram.error_bytes or 0) < max(20 * MIB, 0.05 * ram.predicted_bytes)
    return found, blocks


def _require_logits_of_scores(found: tuple[TokenScore, ...], blocks: list[LogitsBlock]) -> None:
    """The blocks are the rows that the scores were taken from: in order, each position once."""
    import numpy as np

    rows = np.concatenate([np.asarray(block.logits) for block in blocks]).astype(np.float64)
    assert len(rows) == len(found) == len(_TOKENS) - 4
    assert [block.first for block in blocks] == [
        4 + sum(len(before.logits) for before in blocks[:index]) for index in range(len(blocks))
    ]
    for row, score, token in zip(rows, found, _TOKENS[4:], strict=True):
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert score.logprob == pytest.approx(logprobs[token], abs=1e-4)
        assert [one for one, _ in score.top] == list(np.argsort(-row, kind="stable")[:3])
        assert score.is_greedy == (score.top[0][0] == token)


@pytest.mark.engine
def test_llama_cpp_scores_the_same_whatever_the_block(demo: str) -> None:
    all_found = []
    for outputs in (1, 7, 32):
        found, blocks = _scored(demo, outputs)
        _require_logits_of_scores(found, blocks)
        all_found.append([one.logprob for one in found])
    # Kernels for one token and for several round differently.
    for other in all_found[1:]:
        assert other == pytest.approx(all_found[0], abs=0.2)


@pytest.mark.engine
@pytest.mark.parametrize("outputs", [1, 7])
def test_transformers_scores_by_its_own_logits(llama: Path, outputs: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found, blocks = _scored(str(llama), outputs, load_in="fp32")
    _require_logits_of_scores(found, blocks)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([_TOKENS])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[index - 1, _TOKENS[index]]) for index in range(4, len(_TOKENS))]
    assert [one.logprob for one in found] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.engine
def test_a_plan_without_outputs_scores_nothing(demo: str) -> None:
    with memfit.load(demo, budget=memfit.Budget(ram=GIB)) as session:
        with pytest.raises(UsageError, match="no memory for scores"):
            session.score(_TOKENS)
        with pytest.raises(UsageError, match="one before it"):
            session.score(_TOKENS, first=0)
