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
from memfit.engines.report import CapReport
from memfit.engines.requests import Speed
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import TierUse
from memfit.planner.speed import Term
from memfit.units import GIB, MIB

_CELLS = 48


def _shown(plan: LlamaPlan) -> list[str]:
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
        "context 4096 · 1 sequence · KV f16 · ubatch 512 · 6 threads · repack off · mmap",
        "",
        "RAM  217.00 MiB of 1.00 GiB",
        "  " + "█" * 5 + "▓" * 3 + "▒" * 1 + "░" * 1 + "·" * 38,
        "  █ weights 100.00 MiB  ▓ KV cache 64.00 MiB  ▒ compute 31.00 MiB  "
        "░ overhead 22.00 MiB  · free 807.00 MiB",
        "",
        "predicted  prompt 200 tok/s (140 tok/s to 260 tok/s) · generation 40.0 tok/s "
        "(28.0 tok/s to 52.0 tok/s)  (calibrated)",
    ]


_GPU = make_tier(256 * MIB, 128 * MIB, 64 * MIB, 64 * MIB, GIB, name="gpu0")
_ENDPOINT = "a-machine-with-a-rather-long-name.in-a-department.example.org:50052"


def test_every_tier_has_its_map() -> None:
    """256, 128, 64 and 64 MiB of 1,024: 12, 6, 3 and 3 of 48 cells."""
    remote = replace(_GPU, name=_ENDPOINT, budget_bytes=512 * MIB)
    lines = _shown(make_plan_value(devices=(_GPU, remote)))
    legend = (
        "  █ weights 256.00 MiB  ▓ KV cache 128.00 MiB  ▒ compute 64.00 MiB  ░ overhead 64.00 MiB  · free "
    )
    assert lines[3].startswith("RAM  217.00 MiB")
    assert lines[6:12] == [
        "gpu0  512.00 MiB of 1.00 GiB",
        "  " + "█" * 12 + "▓" * 6 + "▒" * 3 + "░" * 3 + "·" * 24,
        legend + "512.00 MiB",
        f"{_ENDPOINT}  512.00 MiB of 512.00 MiB",
        "  " + "█" * 24 + "▓" * 12 + "▒" * 6 + "░" * 6,
        legend + "0 B",
    ]


_BRACKETED = "[fe80::1]:50052"


def test_an_address_in_brackets_is_no_markup() -> None:
    remote = replace(_GPU, name=_BRACKETED)
    plan = make_plan_value(devices=(remote, replace(_GPU, name="[/]")))
    assert [line.split("  ")[0] for line in _shown(plan)[3:13:3]] == ["RAM", _BRACKETED, "[/]", ""]
    out = io.StringIO()
    print_report(make_report(plan), console(file=out))
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()[:3]] == ["RAM", _BRACKETED, "[/]"]
    prediction = replace(
        plan.prediction, generation_terms=(Term(device=1, kind="matmul Q8_0", seconds=0.001),)
    )
    assert f"             1 ms  {_BRACKETED}: matmul Q8_0" in _why(replace(plan, prediction=prediction))


def test_a_device_that_is_not_used_is_empty() -> None:
    lines = _shown(make_plan_value(devices=(make_tier(0, 0, 0, 0, GIB, name="gpu0"),)))
    assert lines[6:8] == ["gpu0  0 B of 1.00 GiB", "  " + "·" * 48]


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


def _why(plan: LlamaPlan) -> list[str]:
    out = io.StringIO()
    print_why(plan, console(file=out))
    return out.getvalue().splitlines()


def test_reasons_are_text() -> None:
    lines = _why(replace(make_plan_value(), why=("[b]one[/b]", "two\x1b[2J", r"in RAM: ^blk\.(0|1)\.[a-z]")))
    assert lines[:3] == ["  · [b]one[/b]", "  · two�[2J", r"  · in RAM: ^blk\.(0|1)\.[a-z]"]


def test_what_a_pass_spends_where() -> None:
    """The longest first, each with its device."""
    prediction = replace(
        make_plan_value().prediction,
        prompt_terms=(Term(device=0, kind="matmul Q8_0", seconds=1.5),),
        generation_terms=(
            Term(device=1, kind="graph splits", seconds=0.0002),
            Term(device=0, kind="attention F16", seconds=0.012),
            Term(device=1, kind="other", seconds=0.001),
        ),
    )
    plan = replace(make_plan_value(devices=(_GPU,)), prediction=prediction)
    assert _why(plan)[1:] == [
        "  · what takes the time: prompt: 100% multiplying with weights in RAM",
        "  · what takes the time: generation: 91% attention in RAM, 8% norms and activations in gpu0",
        "  · a prompt's pass of 512 tokens takes 1.5e+03 ms:",
        "       1.5e+03 ms  RAM: matmul Q8_0",
        "  · one token takes 13.2 ms:",
        "            12 ms  RAM: attention F16",
        "             1 ms  gpu0: other",
        "           0.2 ms  gpu0: graph splits",
    ]


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
    assert out.getvalue().splitlines()[0].rstrip() == "  · " + " ".join(["word"] * 100)


def test_a_report_by_hand() -> None:
    out = io.StringIO()
    print_report(make_report(), console(file=out))
    assert out.getvalue().splitlines() == [
        "RAM  peak 220.00 MiB · predicted 217.00 MiB (-3.00 MiB off) · budget 1.00 GiB · within budget",
        "prompt 150 tok/s (predicted 200 tok/s) · generation 45.0 tok/s (predicted 40.0 tok/s) · "
        "loaded in 0.2 s",
    ]


def test_a_report_of_several_tiers_by_hand() -> None:
    out = io.StringIO()
    report = make_report(make_plan_value(devices=(_GPU, replace(_GPU, name=_ENDPOINT))))
    ram, gpu, remote = report.tiers
    tiers = (ram, replace(gpu, peak_bytes=GIB + MIB), replace(remote, peak_bytes=None))
    print_report(replace(report, tiers=tiers), console(file=out))
    assert out.getvalue().splitlines()[:3] == [
        "RAM  peak 220.00 MiB · predicted 217.00 MiB (-3.00 MiB off) · budget 1.00 GiB · within budget",
        "gpu0  peak 1.00 GiB · predicted 512.00 MiB (-513.00 MiB off) · budget 1.00 GiB · OVER BUDGET",
        f"{_ENDPOINT}  peak unknown: nobody there measures it · predicted 512.00 MiB · "
        "budget 1.00 GiB · not proven",
    ]


@pytest.mark.parametrize(
    ("peak_bytes", "counted"), [(900 * MIB, " · the kernel counted 900.00 MiB"), (None, "")]
)
def test_a_report_of_a_hard_cap(peak_bytes: int | None, counted: str) -> None:
    out = io.StringIO()
    cap = CapReport(limit_bytes=GIB + 6 * MIB, peak_bytes=peak_bytes)
    print_report(replace(make_report(), cap=cap), console(file=out))
    assert out.getvalue().splitlines()[1] == f"HARD CAP  1.01 GiB{counted}"


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
