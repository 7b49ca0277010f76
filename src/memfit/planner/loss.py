"""What a quantization is expected to lose: mean KL divergence from the model that it was made of, in nats a
token. Pure.

What was measured of a file says most (known_losses.py). Next comes what llama.cpp publishes for one model of
8 billion parameters: an order, not a promise for another model. Types that it does not list are taken to
lose what those of as many bits do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

__all__ = ["LOSS_SOURCE", "MOST_LOSS", "Loss", "expected_loss"]

LOSS_SOURCE = "https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/README.md"
MOST_LOSS = 0.2  # nats a token: between types of three bits and of two; more is not recommended
_F16_GIB = 14.97
_LOSSLESS = ("F32", "BF16", "F16", "MXFP4_MOE", "MXFP4")  # the last two as gpt-oss was trained
# Llama-3-8B in each type, by the table at LOSS_SOURCE: size in GiB, and mean KL from F16. Without an
# importance matrix where that is published, else with one of 10 M tokens.
_PUBLISHED = {
    "IQ1_S": (1.88, 2.254554),
    "IQ1_M": (2.01, 1.393084),
    "IQ2_XXS": (2.24, 0.812022),
    "IQ2_XS": (2.43, 0.546290),
    "IQ2_S": (2.56, 0.439197),
    "IQ2_M": (2.74, 0.325989),
    "Q2_K_S": (2.96, 0.403360),
    "Q2_K": (2.96, 0.445132),
    "IQ3_XXS": (3.05, 0.183625),
    "IQ3_XS": (3.28, 0.138693),
    "Q3_K_S": (3.41, 0.228217),
    "IQ3_S": (3.42, 0.111278),
    "IQ3_M": (3.53, 0.102534),
    "Q3_K_M": (3.74, 0.101913),
    "Q3_K_L": (4.03, 0.087176),
    "IQ4_XS": (4.14, 0.036334),
    "Q4_0": (4.34, 0.071940),
    "IQ4_NL": (4.35, 0.035742),
    "Q4_K_S": (4.37, 0.043136),
    "Q4_K_M": (4.58, 0.031273),
    "Q4_1": (4.78, 0.071683),
    "Q5_0": (5.21, 0.022239),
    "Q5_K_S": (5.21, 0.016595),
    "Q5_K_M": (5.33, 0.010762),
    "Q5_1": (5.65, 0.018045),
    "Q6_K": (6.14, 0.005452),
    "Q8_0": (7.96, 0.001355),
}


@dataclass(frozen=True, kw_only=True)
class Loss:
    mean_kl: float  # nats a token
    basis: Literal["measured", "published", "bits"]  # of this file; of its type; of types with as many bits
    reference: str  # the model that predictions were compared with; or who published it
    error: float | None = None  # standard error of what was measured
    tokens: int | None = None  # that it was measured over
    reference_bytes: int | None = None  # size of that model

    @property
    def in_words(self) -> str:
        """After "loses": "0.0313 ± 0.0002 nats a token of base.gguf, measured here"."""
        if self.basis == "measured":
            return (
                f"{self.mean_kl:.4f} ± {self.error or 0:.4f} nats a token of {self.reference}, measured here"
            )
        what = "this type" if self.basis == "published" else "types with as many bits"
        return f"about {self.mean_kl:.2g} nats a token, as Llama-3-8B does in {what}"


def expected_loss(quantization: str, bits: float) -> Loss:
    """Of a type, by llama.cpp's name for it, with so many bits a weight."""
    if quantization in _LOSSLESS:
        return Loss(mean_kl=0.0, basis="published", reference=LOSS_SOURCE)
    if quantization in _PUBLISHED:
        return Loss(mean_kl=_PUBLISHED[quantization][1], basis="published", reference=LOSS_SOURCE)
    return Loss(mean_kl=_by_bits(bits), basis="bits", reference=LOSS_SOURCE)


def _by_bits(bits: float) -> float:
    """Between the two nearest of the types that no smaller one is better than, evenly in its logarithm."""
    points: list[tuple[float, float]] = []
    for size, loss in sorted(_PUBLISHED.values()):
        if not points or loss < points[-1][1]:
            points.append((16 * size / _F16_GIB, loss))
    after = bisect_left(points, (bits, 0.0))
    if after in (0, len(points)):
        return points[min(after, len(points) - 1)][1]
    (low, more), (high, less) = points[after - 1 : after + 1]
    share = (bits - low) / (high - low)
    return math.exp((1 - share) * math.log(more) + share * math.log(less))
