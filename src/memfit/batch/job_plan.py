"""Plans a job of many requests: how many run in parallel, and in how large a context.

Of a sample tokens are counted; for the whole job they follow from the bytes of its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memfit.api import open_planner
from memfit.batch.input import Input, InputSizes
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request
from memfit.planner.parallel import Lengths, plan_parallel
from memfit.planner.plan import Plan
from memfit.planner.request import Workload

__all__ = ["lengths_in_tokens", "plan_job"]

_ASSUMED_BYTES = 4.0  # of English text in a token; where no line could be counted
_SAMPLE = 64  # lines whose tokens are counted
_LONGER = 1.25  # a prompt of fewer bytes may have more tokens than the longest


def plan_job(
    model: str,
    lines: Input,
    options: PlanOptions,
    *,
    workload: Workload,
    engine: str = "auto",
    sequences: int | None = None,
) -> Plan:
    """The workload's `generated_tokens` are expected where a line gives no limit. `sequences` is how many run
    in parallel; None for what pays off. A request that is longer than what the model was trained for is left
    to fail alone.

    Raises:
        MemfitError: as `memfit.plan` does.
    """
    sample = [line.request for line in lines.sample(_SAMPLE)]
    with open_planner(model, engine, replace(options, many=True), workload) as planner:
        counts = [None if tokens is None else len(tokens) for tokens in planner.tokenize(sample)]
        found = lengths_in_tokens(lines.sizes, sample, counts, workload.generated_tokens)
        found = replace(found, longest=min(found.longest, planner.spec.context_length or found.longest))
        chosen = sequences or planner.only_parallel
        return plan_parallel(found, workload, planner.plan, chosen, divides=planner.divides)


def lengths_in_tokens(
    found: InputSizes, sample: Sequence[Request], counts: Sequence[int | None], answer_tokens: int
) -> Lengths:
    """`counts` are the tokens of the sample's prompts, their template included; `answer_tokens` are expected
    where a line gives no limit."""
    sizes = [_bytes(request) for request in sample]
    pairs = [(size, count) for size, count in zip(sizes, counts, strict=True) if count is not None]
    constant, rate = _tokens_by_bytes(pairs, found.largest_prompt_bytes)
    counted: float = max((count for _, count in pairs), default=0)
    if all(size < found.largest_prompt_bytes for size, _ in pairs):
        counted = max(counted, constant + rate * found.largest_prompt_bytes)
    limited = found.with_max_tokens
    answers = limited * (found.mean_max_tokens or 0) + (found.count - limited) * answer_tokens
    longest_answer = max(found.largest_max_tokens or 0, answer_tokens if limited < found.count else 0)
    return Lengths(
        requests=found.count,
        prompt=max(1.0, constant + rate * found.mean_prompt_bytes),
        answer=max(1.0, answers / max(1, found.count)),
        longest=round(_LONGER * counted) + longest_answer + 1,
    )


def _tokens_by_bytes(pairs: Sequence[tuple[int, int]], largest: int) -> tuple[float, float]:
    """Tokens of a prompt without bytes, which are its template's, and tokens for each byte more.

    The line through the mean of the counted prompts and the longest of them. Where that gives no line, all
    tokens are counted as the bytes'.
    """
    usual = [pair for pair in pairs if pair[0] < largest] or pairs
    if not usual:
        return 0.0, 1 / _ASSUMED_BYTES
    size, tokens = (sum(column) / len(usual) for column in zip(*usual, strict=True))
    most = max(pairs)
    rate = (most[1] - tokens) / (most[0] - size) if most[0] > size else 0.0
    if not 0 < rate * size <= tokens:
        return 0.0, tokens / size if size and tokens else 1 / _ASSUMED_BYTES
    return tokens - rate * size, rate


def _bytes(request: Request) -> int:
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    texts = [prompt, *(message["content"] for message in request.messages)]
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)
