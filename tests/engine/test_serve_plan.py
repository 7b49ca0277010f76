"""/plan: what was predicted beside what is held, and what another budget or workload would take."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
import pytest

from conftest import MOST_SECONDS, WAIT_SECONDS, run_memfit

pytestmark = pytest.mark.engine

_ENDLESS = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[psutil.Process, str]]:
    """Its process, and its address."""
    command = [sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", "--ctx", "1024"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(line.split()[-1] for line in process.stderr if "will listen on" in line)
            yield psutil.Process(process.pid), address
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def client(server: tuple[psutil.Process, str]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server[1], timeout=WAIT_SECONDS, trust_env=False) as client:
        yield client


def test_what_is_held_stands_beside_what_was_predicted(client: httpx2.Client) -> None:
    client.post("/completion", json={"prompt": "Hello", "n_predict": 2})
    plan = client.get("/plan").json()
    (tier,) = plan["measured"]["tiers"]
    assert plan["state"] == "ready" and plan["held_bytes"] == tier["held_bytes"]
    assert (
        plan["tiers"][0]["weights_bytes"] < tier["held_bytes"] <= tier["peak_bytes"] <= tier["budget_bytes"]
    )
    assert tier["predicted_bytes"] == plan["tiers"][0]["total_bytes"]
    assert tier["error_bytes"] == tier["predicted_bytes"] - tier["peak_bytes"]
    memory = psutil.virtual_memory()
    assert 0 < tier["others_bytes"] < tier["capacity_bytes"] <= memory.total
    assert tier["others_bytes"] < memory.total - memory.available  # what the server holds is not among it


def test_the_monitor_shows_it(client: httpx2.Client) -> None:
    client.post("/completion", json={"prompt": "Hello", "n_predict": 2})
    address = str(client.base_url)
    (server,) = run_memfit("monitor", address, "--json").json["servers"]
    plan = client.get("/plan").json()
    (tier,) = server["tiers"]
    for name in ("budget", "weights", "kv_cache", "compute", "overhead", "total"):
        assert tier[f"{name}_bytes"] == plan["tiers"][0][f"{name}_bytes"]
    assert tier["held_bytes"] <= tier["peak_bytes"] <= plan["measured"]["tiers"][0]["peak_bytes"]
    assert server["answered"]["generation_tokens_per_second"] > 0
    here = run_memfit("monitor", "--json").json
    (process,) = [one for one in here["processes"] if one["address"] == address]
    assert (process["command"], process["model"], len(process["pids"])) == ("serve", "demo", 2)
    # The server's own meter counts the same processes, from cheaper counters.
    assert abs(process["held_bytes"] - plan["held_bytes"]) < 0.1 * plan["held_bytes"]
    assert address in [one["address"] for one in here["servers"] if one["error"] is None]


def test_another_workload_is_priced(client: httpx2.Client) -> None:
    now = client.get("/plan").json()
    same, longer = (
        client.post("/plan", json=body, timeout=MOST_SECONDS).json()
        for body in ({}, {"workload": {"context": 4096, "parallel": 2}})
    )
    assert same["fits"]
    for part in ("budget", "weights", "kv_cache", "compute"):  # what processes take may be measured anew
        assert same["tiers"][0][f"{part}_bytes"] == now["tiers"][0][f"{part}_bytes"]
    assert (longer["context"], longer["parallel"]) == (4096, 2)
    cells = [one["tiers"][0]["kv_cache_bytes"] for one in (same, longer)]
    assert cells[1] == 4 * cells[0]
    assert client.get("/plan").json()["context"] == 1024  # nothing else has changed


def test_a_budget_that_is_too_small_is_told(client: httpx2.Client) -> None:
    body = {"budget": {"ram": "150MiB", "disk": False}}
    refused = client.post("/plan", json=body, timeout=MOST_SECONDS)
    assert refused.status_code == 200  # of what was asked, it is the answer
    assert not refused.json()["fits"]
    assert refused.json()["needs_bytes"] > refused.json()["budget_bytes"] == 150 * 2**20
    for body, field in (
        ({"budget": {"ram": "much"}}, "budget.ram"),
        ({"workload": {"context": "long"}}, "workload.context"),
        ({"workload": {"parallel": 0}}, "workload.parallel"),
        ({"weather": {}}, "body.weather"),
    ):
        wrong = client.post("/plan", json=body)
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == field, wrong.text


def test_the_process_that_prices_stays_and_counts(client: httpx2.Client) -> None:
    priced = client.post("/plan", json={}, timeout=MOST_SECONDS).json()
    plan = client.get("/plan").json()
    room = plan["tiers"][0]["budget_bytes"] - plan["tiers"][0]["total_bytes"]
    assert 0 < plan["pricing_bytes"] == priced["pricing_bytes"] <= room


def test_totals_grow_while_an_answer_is_written_and_stay_once_it_is_stopped(client: httpx2.Client) -> None:
    def generated() -> int:
        return int(client.get("/activity").json()["generated_tokens"])

    client.post("/completion", json={"prompt": "Hello", "n_predict": 2})  # loaded
    seen = [generated()]
    with client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer:
        for _ in answer.iter_lines():
            if (now := generated()) > seen[-1]:
                seen.append(now)
            if len(seen) == 4:
                break
    deadline = time.monotonic() + WAIT_SECONDS
    while client.get("/activity").json()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # what was computed until it was stopped is told
    last = generated()
    assert last >= seen[-1] > seen[0]
    client.post("/completion", json={"prompt": "Hello", "n_predict": 2})
    assert generated() >= last + 2


def test_a_price_that_fails_leaves_the_next_ones_well(client: httpx2.Client) -> None:
    """Nobody answers at that device: the planner for it was never there, and the one before is closed."""
    body = {"budget": {"rpc": {"127.0.0.1:1": 2**20}}}
    assert client.post("/plan", json={}, timeout=MOST_SECONDS).status_code == 200
    assert client.post("/plan", json=body, timeout=MOST_SECONDS).status_code == 500
    assert client.post("/plan", json={"workload": {"context": 777}}, timeout=MOST_SECONDS).json()["fits"]


def test_prices_that_are_asked_while_a_plan_is_applied(client: httpx2.Client) -> None:
    """The process that prices is ended for it; who waits for a price does not see that."""
    with ThreadPoolExecutor(12) as pool:

        def ask(path: str, context: int) -> int:
            body = {"workload": {"context": context}}
            return client.post(path, json=body, timeout=MOST_SECONDS).status_code

        prices = [pool.submit(ask, "/plan", 600 + 8 * number) for number in range(4)]
        applied = pool.submit(ask, "/apply", 1024)
        prices += [pool.submit(ask, "/plan", 700 + 8 * number) for number in range(7)]
        assert applied.result() == 200
        assert {one.result() for one in prices} == {200}


def test_one_plan_is_applied_at_a_time(client: httpx2.Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/apply", json={}, timeout=MOST_SECONDS) for _ in range(2)]
        answers = sorted((one.result() for one in asked), key=lambda one: one.status_code)
    assert answers[0].status_code == 200
    if answers[1].status_code != 200:  # it came while the first one was being loaded
        assert answers[1].status_code == 409 and "another plan" in answers[1].json()["error"]["message"]


def test_a_plan_is_applied_and_one_that_does_not_fit_is_not(client: httpx2.Client) -> None:
    body = {"workload": {"context": 2048, "parallel": 2}}
    priced = client.post("/plan", json=body, timeout=MOST_SECONDS).json()
    with client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        next(lines)
        applied = client.post("/apply", json=body, timeout=MOST_SECONDS).json()
        *_, error, end = lines
    assert "another plan" in json.loads(error)["error"]["message"] and end == "[DONE]"
    assert (applied["context"], applied["parallel"], applied["state"]) == (2048, 2, "ready")
    for part in ("weights", "kv_cache", "compute"):
        assert applied["tiers"][0][f"{part}_bytes"] == priced["tiers"][0][f"{part}_bytes"]
    refused = client.post("/apply", json={"budget": {"ram": "150MiB", "disk": False}}, timeout=MOST_SECONDS)
    assert refused.status_code == 409 and "does not fit" in refused.json()["error"]["message"]
    plan = client.get("/plan").json()
    assert (plan["context"], plan["restarts"]) == (2048, 0)
    answer = client.post("/completion", json={"prompt": "Hello", "n_predict": 2})
    assert answer.json()["tokens_predicted"] == 2


def test_an_applied_plan_stays_where_its_worker_dies(
    client: httpx2.Client, server: tuple[psutil.Process, str]
) -> None:
    body = {"workload": {"context": 1536, "parallel": 3}}
    assert client.post("/apply", json=body, timeout=MOST_SECONDS).status_code == 200
    restarts = client.get("/plan").json()["restarts"]
    with client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer:
        lines = answer.iter_lines()
        next(lines)
        (worker,) = server[0].children(recursive=True)
        worker.kill()
        assert any("error" in line for line in lines)
    answered = client.post("/completion", json={"prompt": "Hello", "n_predict": 2}, timeout=MOST_SECONDS)
    assert answered.json()["tokens_predicted"] == 2
    plan = client.get("/plan").json()
    assert (plan["context"], plan["parallel"], plan["restarts"]) == (1536, 3, restarts + 1)
