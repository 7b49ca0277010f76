"""Models on real workers: budgets held, bytes where they were planned, the CPU's own text, and deaths."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading

import pytest

import memfit
from conftest import children_of, rpc_server, run_memfit
from memfit.errors import EngineError
from memfit.planner.llamacpp.tensor_devices import devices_of
from memfit.units import MIB
from thorough import times

pytestmark = pytest.mark.engine

PROMPT = "The capital of France is"
GREEDY = memfit.Sampling(temperature=0, max_tokens=24)


def planned(model: str, *, context: int = 1024, **rpc: str | None) -> memfit.Plan:
    return memfit.plan(
        model,
        budget=memfit.Budget(rpc=rpc),
        workload=memfit.Workload(context=context, repack="off", threads=1),
    )


# A tensor of half a MiB may bring 2 MiB of compute buffer with it, so smaller budgets cannot all be filled.
@pytest.mark.parametrize(("budgets", "context"), [((90 * MIB,), 1024), ((100 * MIB, 96 * MIB), 2048)])
def test_budgets_are_held_and_filled_and_the_text_is_the_cpus(
    demo: str, budgets: tuple[int, ...], context: int
) -> None:
    with memfit.load(planned(demo, context=context)) as session:
        alone = session.generate(PROMPT, GREEDY).text
    with rpc_server(budgets[0]) as first, rpc_server(budgets[-1]) as second:
        endpoints = (first.endpoint, second.endpoint)[: len(budgets)]
        plan = planned(demo, context=context, **dict.fromkeys(endpoints))
        with memfit.load(plan) as session:
            text = session.generate(PROMPT, GREEDY).text
            report = session.report()
    assert text == alone
    assert report.within_budget
    assert plan.config.load_mode == "own" and plan.streamed_bytes == 0
    devices = devices_of(plan.spec, plan.config)
    for device, (tier, use) in enumerate(zip(report.tiers, plan.tiers, strict=True)):
        assert tier.peak_bytes is not None and tier.error_bytes is not None
        assert tier.peak_bytes <= tier.budget_bytes
        assert abs(tier.error_bytes) <= max(0.02 * tier.peak_bytes, 16 * MIB)
        if device:
            here = sum(one.size_bytes for one in plan.spec.tensors if devices[one.name] == device)
            assert abs(use.weights_bytes - here) <= 0.01 * here  # rows are padded
            assert use.total_bytes >= 0.97 * tier.budget_bytes
            assert tier.error_bytes <= 4 * MIB


def test_nothing_answers(demo: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = run_memfit("run", demo, "--rpc", f"127.0.0.1:{port}", "-p", "x")
    assert outcome.code == 5
    assert f"memfit rpc-server --host 127.0.0.1 --port {port}" in outcome.err


def test_a_worker_killed_at_random_moments(demo: str) -> None:
    """Loading or answering: an error that names it, and nothing left behind. Killed before it was reached, it
    was started again by then."""
    moments = random.Random(3)
    children = children_of(os.getpid())
    lost = 0
    with rpc_server(90 * MIB) as worker:
        plan = planned(demo, **{worker.endpoint: None})
        port = str(worker.port)
    kills = times(4, 20)
    for _ in range(kills):
        with rpc_server(90 * MIB, "--port", port) as worker:
            timer = threading.Timer(moments.uniform(0, 2.5), os.kill, (worker.server_pid, signal.SIGKILL))
            timer.start()
            try:
                with memfit.load(plan) as session:
                    session.generate(PROMPT, memfit.Sampling(max_tokens=500))
            except EngineError as error:
                assert worker.endpoint in str(error)
                lost += 1
            timer.join()
        assert children_of(os.getpid()) == children
    assert lost >= kills // 2


def test_no_such_gpu(demo: str) -> None:
    outcome = run_memfit("plan", demo, "--vram", "1GiB")
    if outcome.code == 0:
        pytest.skip("there is a GPU here")
    assert outcome.code == 2 and "--vram" in outcome.err


def test_a_silent_listener_is_not_waited_for(demo: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(EngineError, match="no answer within"),
    ):
        planned(demo, **{f"127.0.0.1:{silent.getsockname()[1]}": None})
