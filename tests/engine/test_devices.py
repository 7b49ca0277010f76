"""Models on real workers: budgets held, bytes where they were planned, the CPU's own text, and deaths."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import run_memfit

import memfit
from memfit.errors import EngineError, WorkerDiedError
from memfit.planner.offload import places_of
from memfit.units import MIB

pytestmark = pytest.mark.engine

PROMPT = "The capital of France is"
GREEDY = memfit.Sampling(temperature=0, max_tokens=48)


@contextmanager
def lent(budget_bytes: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """`HOST:PORT` of a worker, and a function that kills its server with SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "memfit", "worker", "--port", "0", "--memory", str(budget_bytes), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield f"{said['host']}:{said['port']}", lambda: os.kill(said["server_pid"], signal.SIGKILL)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        if process.stdout:
            process.stdout.close()


def planned(model: str, **rpc: str | None) -> memfit.Plan:
    return memfit.plan(
        model,
        budget=memfit.Budget(rpc=rpc),
        workload=memfit.Workload(context=1024, repack="off", threads=1),
    )


@pytest.mark.parametrize("budgets", [(90 * MIB,), (70 * MIB, 60 * MIB)])
def test_budgets_are_held_and_filled_and_the_text_is_the_cpus(demo: str, budgets: tuple[int, ...]) -> None:
    with memfit.load(planned(demo)) as session:
        alone = session.generate(PROMPT, GREEDY).text
    with lent(budgets[0]) as (first, _), lent(budgets[-1]) as (second, _):
        plan = planned(demo, **dict.fromkeys((first, second)[: len(budgets)]))
        with memfit.load(plan) as session:
            text = session.generate(PROMPT, GREEDY).text
            report = session.report()
    assert text == alone
    assert report.within_budget
    places = places_of(plan.spec, plan.parameters)
    for place, (tier, use) in enumerate(zip(report.tiers, plan.tiers, strict=True)):
        assert tier.peak_bytes is not None and tier.error_bytes is not None
        assert tier.peak_bytes <= tier.budget_bytes
        assert abs(tier.error_bytes) <= max(0.02 * tier.peak_bytes, 16 * MIB)
        if place:
            here = sum(one.size_bytes for one in plan.spec.tensors if places[one.name] == place)
            assert abs(use.weights_bytes - here) <= 0.01 * here  # rows are padded
            # Of budgets this small a worker cannot use 2 %, and a layer's parts are 2 % each.
            assert use.total_bytes >= 0.9 * tier.budget_bytes


def test_nothing_answers(demo: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = run_memfit("run", demo, "--rpc", f"127.0.0.1:{port}", "-p", "x")
    assert outcome.code == 5
    assert f"memfit worker --host 127.0.0.1 --port {port}" in outcome.err


def test_a_worker_that_dies_is_an_error_and_this_process_lives(demo: str) -> None:
    moments = random.Random(3)
    with lent(90 * MIB) as (endpoint, kill):
        plan = planned(demo, **{endpoint: None})
        with memfit.load(plan) as session:
            timer = threading.Timer(moments.uniform(0.05, 0.5), kill)
            timer.start()
            with pytest.raises(WorkerDiedError, match=r"Remote RPC server crashed|send failed|recv failed"):
                session.generate(PROMPT, memfit.Sampling(max_tokens=900))
            timer.join()


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
