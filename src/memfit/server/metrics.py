"""What is counted for /metrics, in Prometheus' text form, by llama-server's names where it has one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from memfit.engines.requests import Status, StreamTotals
from memfit.openai.answers import Answer

__all__ = ["Metrics"]

_MOST_RECENT = 50
# llama-server's, of prompts and answers: the sums beneath, and what is told of them.
_COUNTERS = {
    "prompt_tokens_total": "Prompt tokens computed.",
    "prompt_tokens_cached_total": "Prompt tokens that the KV cache held.",
    "prompt_seconds_total": "Seconds of computing prompts.",
    "tokens_predicted_total": "Tokens generated.",
    "tokens_predicted_seconds_total": "Seconds of generating.",
}
_NOTHING_DRAFTED = {
    f"spec_decode_num_{name}_total": f"{what} (none: nothing is drafted)."
    for name, what in (
        ("draft_tokens", "Tokens drafted"),
        ("accepted_tokens", "Drafted tokens that were accepted"),
        ("drafts", "Drafts"),
    )
}


class Metrics(Collector):
    """One server's. `status`, `totals` and `restarts` are asked whenever it is read."""

    def __init__(
        self,
        status: Callable[[], Status],
        totals: Callable[[], StreamTotals],
        restarts: Callable[[], int],
    ) -> None:
        self._status, self._totals, self._restarts = status, totals, restarts
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._sums = dict.fromkeys(_COUNTERS, 0.0)
        self._timed_prompt = self._timed_predicted = 0
        self._longest = 0  # tokens of prompt and answer
        self._recent: deque[dict[str, Any]] = deque(maxlen=_MOST_RECENT)  # answers, the newest first

    def count(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            usage, speed = answer.usage, answer.speed
            for name, value in (
                ("prompt_tokens_total", usage.prompt_tokens - usage.cached_tokens),
                ("prompt_tokens_cached_total", usage.cached_tokens),
                ("prompt_seconds_total", speed.prompt_seconds),
                ("tokens_predicted_total", usage.completion_tokens),
                ("tokens_predicted_seconds_total", speed.generation_seconds),
            ):
                self._sums[name] += value
            self._timed_prompt += speed.prompt_tokens
            self._timed_predicted += speed.generated_tokens
            self._longest = max(self._longest, usage.prompt_tokens + usage.completion_tokens)
            self._recent.appendleft(
                {
                    "ended": time.time(),
                    "prompt_tokens": usage.prompt_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "prompt_seconds": speed.prompt_seconds,
                    "generation_seconds": speed.generation_seconds,
                }
            )

    def activity(self) -> dict[str, Any]:
        """Who is answered and who waits, what was computed so far, and the last answers; no texts."""
        status, totals = self._status(), self._totals()
        return {
            "running": status.running,
            "waiting": status.waiting,
            # Totals come with the end of an answer.
            "generated_tokens": max(totals.generated_tokens, status.generated_tokens),
            "prompt_tokens": self._sums["prompt_tokens_total"],
            "recent": list(self._recent),
        }

    def count_prompt(self, tokens: int) -> None:
        """Of a text that was embedded."""
        self._sums["prompt_tokens_total"] += tokens
        self._longest = max(self._longest, tokens)

    def text(self) -> bytes:
        # A counter that does not end in _total, which the library's text form knows none of.
        name = "llamacpp:n_tokens_max"
        head = f"# HELP {name} The longest sequence, in tokens.\n# TYPE {name} counter\n"
        longest = f"{head}{name} {self._longest}\n"
        return generate_latest(self._registry) + longest.encode()

    def collect(self) -> Iterable[Metric]:
        status, totals, sums = self._status(), self._totals(), self._sums
        for name, what in _COUNTERS.items():
            yield _metric(name, what, sums[name])
        for name, what in _NOTHING_DRAFTED.items():
            yield _metric(name, what, 0)
        yield _metric("n_decode_total", "Passes of the model.", totals.passes)
        prompt = self._timed_prompt / (sums["prompt_seconds_total"] or 1)
        predicted = self._timed_predicted / (sums["tokens_predicted_seconds_total"] or 1)
        busy = totals.generated_tokens / (totals.passes or 1)
        for name, what, value in (
            ("prompt_tokens_seconds", "Prompt tokens computed a second, of each answer.", prompt),
            ("predicted_tokens_seconds", "Tokens generated a second, of each answer.", predicted),
            ("requests_processing", "Requests that run.", status.running),
            ("requests_deferred", "Requests that wait.", status.waiting),
            ("n_busy_slots_per_decode", "Tokens generated a pass, on average.", busy),
        ):
            yield _metric(name, what, value)
        for name, what, value in (
            ("kv_cache_cells", "Cells of the KV cache in use.", status.cells_in_use),
            ("worker_restarts", "Workers that were started again.", self._restarts()),
            ("held_bytes", "RAM that all of memfit's processes hold.", status.held_bytes),
        ):
            yield _metric(name, what, value, of="memfit")


def _metric(name: str, what: str, value: float, *, of: str = "llamacpp") -> Metric:
    kind = "counter" if name.endswith("_total") else "gauge"
    metric = Metric(f"{of}:{name.removesuffix('_total')}", what, kind)
    metric.add_sample(f"{of}:{name}", {}, value)
    return metric
