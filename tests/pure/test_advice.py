"""Which file of a repository is recommended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from memfit.planner.advice import Option, recommend


def _option(
    label: str, size: int, *, n_params: int = 1000, rate: float = 50.0, fits: bool = True, name: str = ""
) -> Option:
    plan: Any = SimpleNamespace(
        fits=fits,
        spec=SimpleNamespace(n_params=n_params),
        prediction=SimpleNamespace(generation=SimpleNamespace(value=rate)),
    )
    return Option(
        label=label, name=name or label, source=f"hf:o/r/{label}", size_bytes=size, plan=cast(Any, plan)
    )


def _recommended(*options: Option) -> str:
    best = recommend(options)
    assert best is not None
    return best.name


def test_the_least_loss_that_is_faster_than_reading() -> None:
    q8, q4 = _option("Q8_0", 800), _option("Q4_K_M", 450)
    assert _recommended(q8, q4) == "Q8_0"
    assert _recommended(_option("Q8_0", 800, rate=5.0), q4) == "Q4_K_M"
    assert _recommended(_option("Q8_0", 800, fits=False), q4) == "Q4_K_M"
    # A quantization may hold its output matrix twice, and is still the same model.
    assert _recommended(_option("Q8_0", 800, n_params=850), q4) == "Q8_0"


def test_of_two_models_the_larger_one_that_is_fast_enough() -> None:
    small = _option("Q8_0", 500, n_params=500, name="A-0.5B-Q8_0.gguf")
    large = _option("Q4_K_M", 900, n_params=1500, name="A-1.5B-Q4_K_M.gguf")
    assert _recommended(large, small) == "A-1.5B-Q4_K_M.gguf"
    slow = _option("Q4_K_M", 900, n_params=1500, rate=3.0, name="A-1.5B-Q4_K_M.gguf")
    assert _recommended(slow, small) == "A-0.5B-Q8_0.gguf"


def test_where_nothing_fits_the_smallest() -> None:
    assert _recommended(_option("Q8_0", 800, fits=False), _option("Q2_K", 300, fits=False)) == "Q2_K"
