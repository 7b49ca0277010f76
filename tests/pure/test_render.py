"""What people see: the bar's cells, and that a stranger's text stays text."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from fakes import make_plan_value, make_report, make_spec, make_tier
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from memfit.cli.render import console, loading_progress, plain, print_plan, print_report, print_why
from memfit.engines.protocol import Speed
from memfit.planner.plan import Plan, TierUse
from memfit.units import GIB, MIB

_CELLS = 48


def _shown(plan: Plan) -> list[str]:
    out = io.StringIO()
    print_plan(plan, console(file=out))
    return out.getvalue().splitlines()


def _bar(tier: TierUse) -> str:
    return next(line for line in _shown(make_plan_value(tier=tier)) if re.fullmatch(r"  [█▓▒░·]+", line))


def test_a_plan_by_hand() -> None:
    """217 MiB of 1,024: 48 cells are 21.33 MiB each; edges at 100, 164, 195 and 217 MiB are at 4.69, 7.69,
    9.14 and 10.17 cells."""
    assert _shown(make_plan_value()) == [
        "Toy  llama · 0 M parameters · Q8_0 · 100.00 MiB",
        "context 4096 · 1 sequence · KV f16 · micro-batch 512 · 6 threads · repack off · mmap",
        "",
        "RAM  217.00 MiB of 1.00 GiB",
        "  " + "█" * 5 + "▓" * 3 + "▒" * 1 + "░" * 1 + "·" * 38,
        "  █ weights 100.00 MiB  ▓ KV cache 64.00 MiB  ▒ compute 31.00 MiB  "
        "░ overhead 22.00 MiB  · free 807.00 MiB",
        "",
        "predicted  prompt 200 tok/s (140 tok/s to 260 tok/s) · generation 40.0 tok/s "
        "(28.0 tok/s to 52.0 tok/s)  (calibrated)",
    ]


_BYTES = st.integers(0, 2**50)


@given(weights=_BYTES, kv_cache=_BYTES, compute=_BYTES, overhead=_BYTES, budget=st.integers(1, 2**50))
@example(weights=0, kv_cache=0, compute=0, overhead=0, budget=1)
@example(weights=1, kv_cache=1, compute=1, overhead=1, budget=1)
def test_the_bar_always_has_all_its_cells(
    weights: int, kv_cache: int, compute: int, overhead: int, budget: int
) -> None:
    tier = make_tier(weights, kv_cache, compute, overhead, budget)
    bar = _bar(tier).removeprefix("  ")
    assert len(bar) == _CELLS
    assert re.fullmatch("█*▓*▒*░*·*", bar)
    scale = max(budget, tier.total_bytes)
    assert bar.count("█") == pytest.approx(_CELLS * weights / scale, abs=0.51)
    assert bar.count("·") == pytest.approx(_CELLS * (scale - tier.total_bytes) / scale, abs=0.51)


def test_over_budget_says_short() -> None:
    lines = _shown(make_plan_value(tier=make_tier(GIB, 0, 0, 512 * MIB, GIB)))
    assert "RAM  1.50 GiB of 1.00 GiB" in lines
    assert any(line.endswith("· short 512.00 MiB") for line in lines)
    assert "free" not in "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["[red]R[/red]", "[/]", "[link=file:///]x", "a\x1b[31mb\x07", "a\nb\rc", "\u202e"]
)
def test_a_models_name_is_harmless(name: str) -> None:
    first = _shown(make_plan_value(make_spec(name=name, architecture=name)))[0]
    safe = "".join(letter if letter.isprintable() else "�" for letter in name)
    assert first == f"{safe}  {safe} · 0 M parameters · Q8_0 · 100.00 MiB"


@given(name=st.text(max_size=12))
def test_no_name_breaks_the_picture(name: str) -> None:
    lines = _shown(make_plan_value(make_spec(name=name)))
    assert len(lines) == 8
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["a\\\\", "a\\\\\\", ":skull:"])
def test_a_models_name_is_shown_as_it_is(name: str) -> None:
    assert _shown(make_plan_value(make_spec(name=name)))[0].startswith(f"{name}  llama")


@given(text=st.text())
def test_plain_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    assert plain(text).plain.isprintable()


def test_reasons_are_text() -> None:
    out = io.StringIO()
    print_why(replace(make_plan_value(), why=("[b]one[/b]", "two\x1b[2J")), console(file=out))
    assert out.getvalue() == "  · [b]one[/b]\n  · two�[2J\n"


def test_piped_output_has_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for out in (console(), console(stderr=True)):
        print_plan(make_plan_value(), out)
        print_report(make_report(), out)
    output = capsys.readouterr()
    assert output.out == output.err
    assert "\x1b" not in output.out


def test_a_terminal_gets_colours() -> None:
    out = io.StringIO()
    print_plan(make_plan_value(), Console(file=out, force_terminal=True, width=200))
    assert "\x1b[34m" in out.getvalue()  # blue weights


def test_piped_lines_are_not_wrapped() -> None:
    out = io.StringIO()
    print_why(replace(make_plan_value(), why=("word " * 100,)), console(file=out))
    assert out.getvalue().count("\n") == 1


def test_a_report_by_hand() -> None:
    out = io.StringIO()
    print_report(make_report(), console(file=out))
    assert out.getvalue().splitlines() == [
        "RAM  peak 220.00 MiB · predicted 217.00 MiB (-3.00 MiB off) · budget 1.00 GiB · within budget",
        "prompt 150 tok/s (predicted 200 tok/s) · generation 45.0 tok/s (predicted 40.0 tok/s) · "
        "loaded in 0.2 s",
    ]


def test_a_report_over_budget_and_slow() -> None:
    out = io.StringIO()
    slow = Speed(prompt_tokens=0, prompt_seconds=0.0, generated_tokens=1, generation_seconds=4.0)
    print_report(make_report(peak_bytes=2 * GIB, speed=slow, swapped_bytes=300 * MIB), console(file=out))
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("budget 1.00 GiB · OVER BUDGET")
    assert lines[1].startswith("generation 0.25 tok/s (predicted 40.0 tok/s)")
    assert lines[2].startswith("advice  300.00 MiB of the model went to swap")
    assert lines[3].startswith("advice  generation ran at 0.25 tok/s")


def test_no_progress_where_nobody_watches() -> None:
    with loading_progress(console(file=io.StringIO())) as on_progress:
        assert on_progress is None


def test_progress_on_a_terminal() -> None:
    out = io.StringIO()
    with loading_progress(Console(file=out, force_terminal=True, width=80)) as on_progress:
        assert on_progress is not None
        on_progress(0.5)
    assert "loading" in out.getvalue()
