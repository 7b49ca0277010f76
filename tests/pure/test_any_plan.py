"""Any budget and workload, with devices and disks: a plan that fits, or one that says what is short."""

from __future__ import annotations

import json

import pytest
from fakes import DeviceOracle, make_device, make_layered_spec, make_machine, make_speed, make_speeds
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import DoesNotFitError, UsageError
from memfit.planner.llamacpp.inputs import PlanInputs, repack_modes
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.request import Budget, Workload
from memfit.units import MIB

_DEVICES = ("gpu0", "gpu1", "host:1")


@given(
    ram=st.none() | st.integers(1, 500 * MIB),
    available=st.integers(MIB, 1000 * MIB),
    disk=st.booleans(),
    devices=st.dictionaries(st.sampled_from(_DEVICES), st.integers(1, 400 * MIB), max_size=3),
    overhead=st.sampled_from([0, 30 * MIB]),
    layers=st.integers(1, 4),
    tied=st.booleans(),
    experts=st.sampled_from([None, {0: 8}]),
    context=st.none() | st.integers(1, 20_000),
    parallel=st.sampled_from([1, 1, 2, 17, 256]),
    kv_type=st.sampled_from(["auto", "f16", "q8_0", "q4_0"]),
    repack=st.sampled_from(["auto", "on", "off"]),
    unified=st.booleans(),
    tokens=st.integers(1, 5000),
    depth=st.none() | st.integers(0, 5000),
    measured=st.booleans(),
)
def test_any_request_is_planned(
    ram: int | None,
    available: int,
    disk: bool,
    devices: dict[str, int],
    overhead: int,
    layers: int,
    tied: bool,
    experts: dict[int, int] | None,
    context: int | None,
    parallel: int,
    kv_type: str,
    repack: str,
    unified: bool,
    tokens: int,
    depth: int | None,
    measured: bool,
) -> None:
    spec = make_layered_spec(layers, tied=tied, experts=experts)
    workload = Workload(
        context=context,
        parallel=parallel,
        kv_type=kv_type,
        repack=repack,
        kv_unified=unified,
        prompt_tokens=tokens,
        generated_tokens=tokens,
        depth=depth,
    )
    budget = Budget(
        ram=ram,
        disk=disk,
        vram={int(name[3:]): size for name, size in devices.items() if name.startswith("gpu")},
        rpc={name: size for name, size in devices.items() if ":" in name},
    )
    modes = {False, *repack_modes(workload)}
    speeds = {mode: speed for mode, speed in make_speeds().items() if mode in modes} if measured else None
    lent = [(make_device(name, size, overhead), make_speed(5e9)) for name, size in devices.items()]
    small = any(size <= overhead for size in devices.values())
    try:
        plan = make_plan(
            PlanInputs(
                spec=spec,
                machine=make_machine(available),
                budget=budget,
                workload=workload,
                speeds=speeds,
                devices=lent,
            ),
            DeviceOracle(spec),
        )
    except UsageError as error:
        assert small and "its runtime alone takes" in str(error)
        return
    document = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert document["fits"] is plan.fits
    if plan.config.streamed:
        assert disk and not plan.config.repack
    if repack != "auto":
        assert plan.config.repack is (repack == "on")
    if plan.fits:
        assert all(tier.needs_bytes <= tier.limit_bytes for tier in plan.tiers)
        assert "error" not in document and document["why"]
        return
    with pytest.raises(DoesNotFitError) as caught:
        plan.require_fit()
    assert caught.value.short_bytes > 0 and caught.value.to_json() == plan.to_json()
    assert document["error"]["needed"] > document["error"]["got"]
