"""Speeds of one answer as llama-server tells them, in milliseconds and tokens a second."""

from __future__ import annotations

from typing import Any

from memfit.engines.requests import Progress, Speed

__all__ = ["prompt_progress", "timings"]


def timings(speed: Speed, cached_tokens: int) -> dict[str, Any]:
    """What was not timed is 0."""
    return {
        "cache_n": cached_tokens,
        **_rates("prompt", speed.prompt_tokens, speed.prompt_seconds),
        **_rates("predicted", speed.generated_tokens, speed.generation_seconds),
    }


def prompt_progress(progress: Progress) -> dict[str, Any]:
    return {
        "total": progress.total,
        "cache": progress.shared,
        "processed": progress.processed,
        "time_ms": round(progress.seconds * 1000),
    }


def _rates(name: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / seconds if seconds > 0 else 0.0,
    }
