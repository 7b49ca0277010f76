"""How many sequences a batch of requests runs in parallel, and the context that they share.

    seconds of a request = prompt tokens / prompt's rate + answer tokens / rate of all sequences together

More sequences share each pass over the weights, and take more of the budget for their KV caches: where that
pushes weights out of memory, the plan says so in its speeds. Numbers are planned from the largest down, as
long as fewer are faster; of such as are as fast, the largest is taken. Pure: others make the plans.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from memfit.planner.plan import Plan
from memfit.planner.request import Workload

__all__ = ["Lengths", "plan_parallel", "request_seconds"]

# 64 are slower than 32 on CPUs, whatever kernels alone promise: docs/LOG.md
_SEQUENCES = (1, 2, 4, 8, 16, 32)
_AS_GOOD = 1.01  # kernels are measured with 16 tokens, and are slower with fewer: more is better where equal
_MORE_CELLS = 1.1  # than the mean lengths need, since lengths differ
_WORTH_A_PART = 1.1  # measured: 15 to 40 % of a pass of 16 sequences of 300 tokens
_CELLS = 256  # contexts come in multiples of it


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What a job's requests come to, in tokens."""

    requests: int
    prompt: float  # the mean
    answer: float  # the mean, as far as it is known
    longest: int  # of a prompt and its answer together: the context holds at least that

    @property
    def usual(self) -> float:
        """Of both together, the mean."""
        return self.prompt + self.answer


def plan_parallel(
    lengths: Lengths,
    workload: Workload,
    make: Callable[[Workload], Plan],
    sequences: int | None = None,
    *,
    divides: bool = False,
) -> Plan:
    """The fastest plan that fits; the smallest where none does. A context in `workload` is obeyed, and a
    number of `sequences`. Where the longest request alone is too much, it is left to fail alone. An engine
    that `divides` the context gives each sequence an equal part of it, whatever is asked."""
    plan = _fastest(lengths, workload, make, sequences, divides)
    usual, shorter = round(lengths.usual), lengths
    while not plan.fits and workload.context is None and shorter.longest > usual:
        shorter = replace(shorter, longest=max(usual, shorter.longest // 2))
        plan = _fastest(shorter, workload, make, sequences, divides)
    if plan.fits and shorter != lengths:
        limit = plan.sequence_context
        reason = f"requests of more than {limit} tokens fail: the longest, of {lengths.longest}, does not fit"
        plan = replace(plan, why=(*plan.why, reason))
    return plan


def _fastest(
    lengths: Lengths,
    workload: Workload,
    make: Callable[[Workload], Plan],
    sequences: int | None,
    divides: bool,
) -> Plan:
    most = max(1, lengths.requests)
    asked = [sequences] if sequences is not None else sorted({min(each, most) for each in _SEQUENCES})
    if workload.context is not None:  # of several only as many as have room there
        usual = lengths.longest if divides else lengths.usual
        asked[1:] = [count for count in asked[1:] if count * usual <= workload.context]

    @functools.cache
    def plan_of(count: int) -> Plan:
        return make(_workload(lengths, workload, count, divides))

    best = plan_of(asked[-1])  # mostly it is, and making a plan takes a while
    if not (best.fits or plan_of(asked[0]).fits):
        return plan_of(asked[0])
    for count in reversed(asked[:-1]):
        fewer = plan_of(count)
        if best.fits and _AS_GOOD * request_seconds(fewer, lengths) >= request_seconds(best, lengths):
            break
        best = fewer
    return best if divides else _divided(best, lengths, workload, make)


def _divided(shared: Plan, lengths: Lengths, workload: Workload, make: Callable[[Workload], Plan]) -> Plan:
    """With a part of the context for each sequence, where the longest request fits into it and memory
    suffices: in one that all share, attention steps over everybody else's cells."""
    sequences = shared.parallel
    part = -(-lengths.longest // _CELLS) * _CELLS
    if sequences == 1 or not shared.fits or part * sequences > (workload.context or part * sequences):
        return shared
    plan = make(replace(shared.workload, kv_unified=False, context=workload.context or part * sequences))
    worse = request_seconds(plan, lengths) > _WORTH_A_PART * request_seconds(shared, lengths)
    return shared if worse or not plan.fits else plan


def request_seconds(plan: Plan, lengths: Lengths) -> float:
    """Of the whole job's time, one request's share."""
    prompt, together = plan.prediction.prompt, plan.prediction.together
    assert together, "models that only embed are refused before"
    return lengths.prompt / prompt.value + lengths.answer / together.value


def _workload(lengths: Lengths, workload: Workload, sequences: int, divides: bool) -> Workload:
    cells = -(-round(max(lengths.longest, _MORE_CELLS * sequences * lengths.usual)) // _CELLS) * _CELLS
    if divides:
        cells = sequences * -(-lengths.longest // _CELLS) * _CELLS
    return replace(
        workload,
        parallel=sequences,
        context=workload.context or cells,
        prompt_tokens=max(1, round(lengths.prompt)),
        generated_tokens=max(1, round(lengths.answer)),
    )
