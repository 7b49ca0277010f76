"""Predicted against measured, by hand, and as docs/json.md has it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes import make_plan_value, make_report, make_tier

from memfit.engines.report import CapReport
from memfit.engines.requests import Speed
from memfit.units import GIB, MIB

_ANSWER = {"text": "", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}


def test_the_error_is_predicted_minus_measured() -> None:
    assert make_report(peak_bytes=220 * MIB).tiers[0].error_bytes == -3 * MIB
    assert make_report(peak_bytes=200 * MIB).tiers[0].error_bytes == 17 * MIB


@pytest.mark.parametrize(("peak_bytes", "within"), [(0, True), (GIB, True), (GIB + 1, False), (None, True)])
def test_within_budget(peak_bytes: int | None, within: bool) -> None:
    assert make_report(peak_bytes=peak_bytes).within_budget is within


def test_one_tier_over_its_budget_is_enough() -> None:
    plan = make_plan_value(devices=(make_tier(200 * MIB, 0, 0, 0, 219 * MIB, name="gpu0"),))
    report = make_report(plan, peak_bytes=220 * MIB)
    assert [tier.within_budget for tier in report.tiers] == [True, False]
    assert not report.within_budget
    assert [tier.error_bytes for tier in report.tiers] == [-3 * MIB, -20 * MIB]


def test_a_peak_that_nobody_measured_is_null() -> None:
    plan = make_plan_value(devices=(make_tier(MIB, 0, 0, 0, 2 * MIB, name="host:1"),))
    report = make_report(plan)
    unknown = replace(report, tiers=(report.tiers[0], replace(report.tiers[1], peak_bytes=None)))
    assert unknown.tiers[1].error_bytes is None
    assert unknown.within_budget
    measured = json.loads(json.dumps(unknown.to_json(**_ANSWER)["measured"]))
    assert measured["tiers"][1] == {
        "name": "host:1",
        "kind": "vram",
        "budget_bytes": 2 * MIB,
        "predicted_bytes": MIB,
        "peak_bytes": None,
        "error_bytes": None,
    }


def test_rates_by_hand() -> None:
    speed = Speed(prompt_tokens=300, prompt_seconds=2.0, generated_tokens=9, generation_seconds=4.0)
    assert speed.prompt_tokens_per_second == 150.0
    assert speed.generation_tokens_per_second == 2.25
    idle = Speed(prompt_tokens=0, prompt_seconds=0.0, generated_tokens=0, generation_seconds=0.0)
    assert (idle.prompt_tokens_per_second, idle.generation_tokens_per_second) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "swapped_bytes", "words"),
    [
        (1.0, 0, []),
        (20.0, 0, []),  # 0.5 tok/s exactly
        (20.1, 0, ["smaller quantization"]),
        (1.0, 5 * MIB, ["5.00 MiB of the model went to swap"]),
        (40.0, 5 * MIB, ["swap", "0.25 tok/s"]),
        (0.0, 0, []),  # nothing was timed
    ],
)
def test_advice(seconds: float, swapped_bytes: int, words: list[str]) -> None:
    speed = Speed(prompt_tokens=1, prompt_seconds=1.0, generated_tokens=10, generation_seconds=seconds)
    advice = make_report(speed=speed, swapped_bytes=swapped_bytes).advice
    assert len(advice) == len(words)
    assert all(word in line for word, line in zip(words, advice, strict=True))


def test_the_json_is_that_of_the_docs() -> None:
    measured = json.loads(json.dumps(make_report(make_plan_value()).to_json(**_ANSWER)["measured"]))
    assert measured == {
        "tiers": [
            {
                "name": "ram",
                "kind": "ram",
                "budget_bytes": 1073741824,
                "predicted_bytes": 227540992,
                "peak_bytes": 230686720,
                "error_bytes": -3145728,
            }
        ],
        "prompt_tokens_per_second": 150.0,
        "generation_tokens_per_second": 45.0,
        "threads": None,
        "load_seconds": 0.25,
        "disk_read_bytes": 4096,
        "swapped_bytes": 0,
        "locked_bytes": 0,
        "hard_cap": None,
    }
    capped = replace(make_report(), cap=CapReport(limit_bytes=9, peak_bytes=None))
    assert capped.to_json(**_ANSWER)["measured"]["hard_cap"] == {"limit_bytes": 9, "peak_bytes": None}


def test_a_rate_that_was_not_timed_is_null() -> None:
    idle = Speed(prompt_tokens=0, prompt_seconds=0.0, generated_tokens=0, generation_seconds=0.0)
    measured = make_report(speed=idle).to_json(**_ANSWER)["measured"]
    assert measured["prompt_tokens_per_second"] is None
    assert measured["generation_tokens_per_second"] is None


_AS_PREDICTED = Speed(
    prompt_tokens=512, prompt_seconds=512 / 200, generated_tokens=64, generation_seconds=64 / 40
)


@pytest.mark.parametrize(
    ("changes", "is_far_off"),
    [
        ({}, False),
        ({"generation_seconds": 64 / 200}, True),
        ({"generation_seconds": 64 / 5}, True),
        ({"prompt_seconds": 512 / 5}, True),
        ({"prompt_seconds": 5.0, "prompt_tokens": 25}, False),  # too short to say anything
        ({"generation_seconds": 6.0, "generated_tokens": 31}, False),
        ({"generation_seconds": 64 / 5, "threads": 0.75}, False),  # other programs had the CPUs
        ({"prompt_seconds": 60.0, "generation_seconds": 60.0}, False),  # many answers side by side
    ],
)
def test_a_run_far_from_its_prediction(changes: dict[str, Any], is_far_off: bool) -> None:
    plan = make_plan_value()
    share = changes.get("threads", 1.0)  # of those planned
    speed = replace(_AS_PREDICTED, **{**changes, "threads": share * plan.config.threads})
    report = make_report(plan, speed=speed)
    assert (plan.prediction.prompt.value, plan.prediction.generation.value) == (200.0, 40.0)
    assert report.is_far_off is is_far_off


def test_a_long_prompts_attention_explains_a_slow_run() -> None:
    long = replace(_AS_PREDICTED, prompt_tokens=4096, generation_seconds=60.0, threads=None)
    assert not make_report(speed=long).is_far_off


def test_a_device_elsewhere_explains_a_slow_run() -> None:
    slow = replace(_AS_PREDICTED, generation_seconds=60.0, threads=None)
    for name, is_far_off in (("gpu0", True), ("host:1", False)):
        plan = make_plan_value(devices=(make_tier(MIB, 0, 0, 0, 2 * MIB, name=name),))
        assert make_report(plan, speed=slow).is_far_off is is_far_off


def test_swapping_explains_a_slow_run() -> None:
    slow = replace(_AS_PREDICTED, generation_seconds=60.0, threads=None)
    assert make_report(speed=slow).is_far_off
    assert not make_report(speed=slow, swapped_bytes=MIB).is_far_off
