"""Which file of a repository is recommended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from memfit.planner.advice import Advice, Option, recommend
from memfit.planner.loss import Loss, expected_loss


def _option(
    label: str, size: int, *, n_params: int = 1000, rate: float = 50.0, fits: bool = True, name: str = ""
) -> Option:
    generation = SimpleNamespace(value=rate)
    plan: Any = SimpleNamespace(
        fits=fits,
        loss=None,
        spec=SimpleNamespace(n_params=n_params),
        prediction=SimpleNamespace(generation=generation, main=generation),
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


def test_not_the_fastest_where_it_loses_too_much() -> None:
    q4, q2 = _option("Q4_K_M", 450, rate=2.0), _option("Q2_K", 300, rate=12.0)
    assert _recommended(q4, q2) == "Q4_K_M"
    short = _option("Q4_K_M", 450, fits=False)
    # Of those that lose too much the one that loses least: IQ2_M 0.33, Q2_K 0.45, IQ1_S 2.3.
    few = (_option("Q2_K", 300, rate=30.0), _option("IQ2_M", 290, rate=3.0), _option("IQ1_S", 200, rate=99.0))
    assert _recommended(short, *few) == "IQ2_M"
    # A type that nobody published is as good as its bits: 6.4 here, then 2.2.
    assert _recommended(_option("UD-Q6_K_XL", 800), _option("Q2_K", 300)) == "UD-Q6_K_XL"
    assert _recommended(_option("UD-IQ1_M", 275, rate=50.0), _option("Q3_K_M", 420, rate=1.0)) == "Q3_K_M"


def test_what_was_measured_counts_before_what_is_published() -> None:
    q4, q3 = _option("Q4_K_M", 450), _option("Q3_K_M", 380)
    assert _recommended(q4, q3) == "Q4_K_M"
    for option, mean_kl in ((q4, 0.3), (q3, 0.1)):
        assert option.plan is not None
        measured = Loss(mean_kl=mean_kl, basis="measured", reference="F16", error=0.01, tokens=1000)
        object.__setattr__(option.plan, "loss", measured)
    assert _recommended(q4, q3) == "Q3_K_M"
    assert q4.loss and q4.loss.basis == "measured" and not q4.is_good


def test_a_warning_names_the_loss_and_a_smaller_model() -> None:
    best = _option("IQ1_S", 200)
    smaller = _option("Q4_K_M", 100, rate=20.0)
    warned = Advice(options=(best,), recommended=best, what_ifs=(), smaller_models=(), instead=smaller)
    assert warned.warning is not None
    assert "IQ1_S is expected to lose 2.3" in warned.warning
    assert "hf:o/r/Q4_K_M fits, loses 0.031 and generates 20.0 tok/s" in warned.warning
    good = Advice(options=(smaller,), recommended=smaller, what_ifs=(), smaller_models=())
    assert good.warning is None
    none = _option("Q4_K_M", 100, fits=False)
    assert Advice(options=(none,), recommended=none, what_ifs=(), smaller_models=()).warning


def test_more_bits_are_never_expected_to_lose_more() -> None:
    losses = [expected_loss("none of llama.cpp's", bits / 10).mean_kl for bits in range(5, 200)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 and 0 < losses[-1] < 0.002
    assert expected_loss("BF16", 16.0).mean_kl == 0 and expected_loss("Q4_K_M", 9.0).mean_kl == 0.031273


def test_where_nothing_fits_the_smallest() -> None:
    assert _recommended(_option("Q8_0", 800, fits=False), _option("Q2_K", 300, fits=False)) == "Q2_K"
