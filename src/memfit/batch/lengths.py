"""From the bytes of a job's prompts to the tokens that its plan needs."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.batch.input import Lengths as ByteLengths
from memfit.engines.protocol import Request
from memfit.planner.side_by_side import Lengths

__all__ = ["lengths_in_tokens"]

_ASSUMED_BYTES = 4.0  # of English text in a token; where no line could be counted
_LONGER = 1.25  # a long prompt may have more tokens per byte than those that were counted


def lengths_in_tokens(
    found: ByteLengths, sample: Sequence[Request], counts: Sequence[int | None], answer_tokens: int
) -> Lengths:
    """`counts` are the tokens of the sample's prompts, their template included; `answer_tokens` are expected
    where a line gives no limit."""
    sizes = [_bytes(request) for request in sample]
    pairs = [(size, count) for size, count in zip(sizes, counts, strict=True) if count is not None]
    tokens, size = sum(count for _, count in pairs), sum(size for size, _ in pairs)
    rate = tokens / size if size and tokens else 1 / _ASSUMED_BYTES
    limited = found.with_max_tokens
    answers = limited * (found.mean_max_tokens or 0) + (found.count - limited) * answer_tokens
    longest_answer = max(found.largest_max_tokens or 0, answer_tokens if limited < found.count else 0)
    longest = max([found.largest_prompt_bytes * rate * _LONGER, *(count for _, count in pairs)])
    return Lengths(
        requests=found.count,
        prompt=max(1.0, found.mean_prompt_bytes * rate),
        answer=max(1.0, answers / max(1, found.count)),
        longest=round(longest) + longest_answer + 1,
    )


def _bytes(request: Request) -> int:
    texts = [request.prompt or "", *(message["content"] for message in request.messages)]
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)
