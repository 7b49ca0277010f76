"""How long an answer took, in llama-server's words: `timings`, and `prompt_progress` while a prompt is
computed."""

from __future__ import annotations

from typing import Any

from memfit.engines.requests import Progress, Speed
from memfit.openai.answers import Answer

__all__ = ["progress_timings", "prompt_progress", "running_timings", "timings"]


def timings(answer: Answer) -> dict[str, Any]:
    """Milliseconds and tokens. The first token comes of the prompt's own pass, so rates leave it out."""
    usage, speed = answer.usage, answer.speed
    return {
        "cache_n": usage.cached_tokens,
        **_part(
            "prompt", usage.prompt_tokens - usage.cached_tokens, speed.prompt_seconds, speed.prompt_tokens
        ),
        **_part("predicted", usage.completion_tokens, speed.generation_seconds, speed.generated_tokens),
    }


def running_timings(speed: Speed, cached_tokens: int) -> dict[str, Any]:
    """Of an answer that is still being written."""
    return {
        "cache_n": cached_tokens,
        **_part("prompt", speed.prompt_tokens, speed.prompt_seconds, speed.prompt_tokens),
        **_part("predicted", speed.generated_tokens, speed.generation_seconds, speed.generated_tokens),
    }


def progress_timings(progress: Progress) -> dict[str, Any]:
    """Before there is an answer."""
    computed = progress.processed - progress.shared
    return running_timings(Speed(prompt_tokens=computed, prompt_seconds=progress.seconds), progress.shared)


def prompt_progress(progress: Progress) -> dict[str, Any]:
    return {
        "total": progress.total,
        "cache": progress.shared,
        "processed": progress.processed,
        "time_ms": round(1000 * progress.seconds),
    }


def _part(name: str, tokens: int, seconds: float, timed_tokens: int) -> dict[str, Any]:
    timed = timed_tokens > 0 and seconds > 0
    return {
        f"{name}_n": tokens,
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / timed_tokens if timed else 0.0,
        f"{name}_per_second": timed_tokens / seconds if timed else 0.0,
    }
