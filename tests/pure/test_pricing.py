"""What a body asks the price of: its own fields, and the running plan's for all that it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import make_plan_value, make_tier

from memfit.errors import UsageError
from memfit.planner.request import Budget, Workload
from memfit.server.pricing import read_price
from memfit.units import GIB

_PLAN = make_plan_value(
    tier=make_tier(1, 1, 1, 1, 8 * GIB),
    devices=(
        make_tier(1, 1, 1, 1, 4 * GIB, name="gpu1"),
        make_tier(1, 1, 1, 1, 2 * GIB, name="10.0.0.2:50052"),
    ),
)


def _read(**body: Any) -> tuple[Budget, Workload]:
    return read_price(body, _PLAN)


def test_what_is_left_out_is_as_in_the_running_plan() -> None:
    budget, workload = _read()
    assert workload == _PLAN.workload
    assert budget == Budget(ram=8 * GIB, vram={1: 4 * GIB}, rpc={"10.0.0.2:50052": 2 * GIB})
    assert _read(budget={"ram": None}, workload={"context": None}) == (budget, workload)


def test_what_is_said_holds() -> None:
    budget, workload = _read(
        budget={"ram": "90%", "vram": {"0": "1GiB", "Vulkan1": 5}, "rpc": {}, "disk": False},
        workload={"context": 99, "kv_type": "q8_0", "grammars": True},
    )
    assert budget == Budget(ram="90%", vram={0: "1GiB", "Vulkan1": 5}, rpc={}, disk=False)
    assert (workload.context, workload.kv_type, workload.grammars) == (99, "q8_0", True)
    assert _read(budget={"vram": GIB})[0].vram == GIB


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "x"}, "body.model"),
        ({"budget": []}, "budget"),
        ({"budget": {"disc": True}}, "budget.disc"),
        ({"budget": {"disk": 1}}, "budget.disk"),
        ({"budget": {"ram": -1}}, "budget.ram"),
        ({"budget": {"ram": {"0": 1}}}, "budget.ram"),
        ({"budget": {"ram": "x"}}, "budget.ram"),
        ({"budget": {"vram": {"0": "x"}}}, "budget.vram.0"),
        ({"budget": {"rpc": "10.0.0.2:1"}}, "budget.rpc"),
        ({"budget": {"rpc": {"10.0.0.2": 1}}}, "budget.rpc"),
        ({"budget": {"rpc": {f"10.0.0.2:{port}": 1 for port in range(1, 100)}}}, "budget.rpc"),
        ({"workload": {"context": 0}}, "workload.context"),
        ({"workload": {"context": 1.5}}, "workload.context"),
        ({"workload": {"kv_type": "f8"}}, "workload.kv_type"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_price(body, _PLAN)
    assert caught.value.field == field
