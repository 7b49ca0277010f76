"""What reading a part of the weights from the disk, for every pass, makes of a predicted speed.

    seconds of a pass = max(seconds of computing,
                            streamed bytes / the disk's bytes per second + parts * seconds of each)

A part is a tensor in llama.cpp, a whole layer in transformers; each is read once a pass, ahead of computing.
Ignored: what reading costs the cores, and the first pass, whose reading nothing hides.
benchmarks/streaming.py and benchmarks/disk_layers.py hold it to reality.
"""

from __future__ import annotations

import math
from dataclasses import replace

from memfit.planner.speed import Prediction, Rate

__all__ = ["slowed"]

_PART_SECONDS = 0.5e-3  # handing one over, and a short read: 0.45 to 0.6 ms with SmolLM2 and Gemma
_VARIES = 2.0  # either side of what was measured: one virtual disk's speed halved and doubled within minutes


def slowed(
    prediction: Prediction,
    read_bytes: int,
    parts: int,
    disk: tuple[float, float],
    prompt_tokens: int,
    ubatch: int,
    sequences: int,
) -> Prediction:
    """From a prediction for everything in memory; each pass reads so many `parts` from a `disk` of so many
    bytes/s, slowest and fastest, and serves all `sequences` in parallel."""
    slow, fast = disk

    def reading(rate: Rate, tokens: int, passes: int) -> Rate:
        def at(computing: float, disk: float) -> float:
            seconds = read_bytes / disk + parts * _PART_SECONDS
            return tokens / max(tokens / computing, passes * seconds)

        return Rate(
            value=at(rate.value, math.sqrt(slow * fast)),
            low=at(rate.low, slow / _VARIES),
            high=at(rate.high, fast * _VARIES),
        )

    return replace(
        prediction,
        prompt=reading(prediction.prompt, prompt_tokens, math.ceil(prompt_tokens / ubatch)),
        generation=prediction.generation and reading(prediction.generation, 1, 1),
        together=prediction.together and reading(prediction.together, sequences, 1),
    )
