"""The Python interface on the real engine: sessions, streaming, cache reuse, and the limit while loading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

import memfit
from conftest import children_of
from memfit.engines.client import WorkerProcess
from memfit.memory.process_memory import process_memory
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.units import MIB

pytestmark = pytest.mark.engine

_GREEDY = memfit.Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def plan(demo: str) -> LlamaPlan:
    """Two threads, on whatever machine this is."""
    workload = memfit.Workload(context=256, threads=2)
    return memfit.plan(demo, budget=memfit.Budget(ram="400MiB"), workload=workload)


@pytest.fixture(scope="module")
def session(plan: LlamaPlan) -> Iterator[memfit.Session]:
    """For the tests that leave it as it was."""
    with memfit.load(plan) as session:
        yield session


def test_generate_chat_and_stream_agree(session: memfit.Session) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = session.chat(messages, _GREEDY)
    assert answer.text
    assert answer.completion_tokens == 12 or answer.finish_reason == "stop"
    assert "".join(session.stream(messages, _GREEDY)) == answer.text
    raw = session.generate("The capital of France is", _GREEDY)
    assert "".join(session.stream("The capital of France is", _GREEDY)) == raw.text
    assert session.report().within_budget


def test_a_notebooks_own_data_is_not_counted(plan: LlamaPlan) -> None:
    ballast = bytearray(300 * MIB)
    with memfit.load(plan) as session:
        session.generate("Hello", _GREEDY)
        (tier,) = session.report().tiers
    assert tier.peak_bytes < 400 * MIB
    assert abs(tier.error_bytes) <= 16 * MIB
    assert len(ballast)


def test_a_conversation_is_not_processed_twice(plan: LlamaPlan, session: memfit.Session) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    first = session.chat(messages, _GREEDY)
    longer = [
        *messages,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And another?"},
    ]
    second = session.chat(longer, _GREEDY)
    assert second.speed.prompt_tokens < second.prompt_tokens - first.prompt_tokens // 2
    with memfit.load(plan) as fresh:
        assert fresh.chat(longer, _GREEDY).text == second.text


def test_a_sliding_window_conversation_is_right(gemma: str) -> None:
    """Past its window the cache cannot go back; the answer must be that of a fresh session all the same."""
    long = "The cat sat on the mat. " * 100
    with memfit.load(gemma, budget=memfit.Budget(ram="600MiB")) as session:
        session.generate(long + "Then", _GREEDY)
        again = session.generate(long + "But", _GREEDY)
    with memfit.load(gemma, budget=memfit.Budget(ram="600MiB")) as fresh:
        assert fresh.generate(long + "But", _GREEDY).text == again.text


def test_leaving_a_stream_early_frees_the_session(session: memfit.Session) -> None:
    for _ in session.stream("Once upon a time", memfit.Sampling(temperature=0)):
        break
    assert "Paris" in session.generate("The capital of France is", _GREEDY).text


def test_an_interrupt_while_loading_does_not_wait_for_it(
    plan: LlamaPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    waited, before = [], children_of(os.getpid())
    monkeypatch.setattr(WorkerProcess, "cancel", waited.append)  # loading does not heed it
    with pytest.raises(KeyboardInterrupt):
        memfit.load(plan, on_progress=interrupt)
    assert not waited
    assert children_of(os.getpid()) == before


def test_the_context_can_be_filled_and_no_more(session: memfit.Session) -> None:
    full = session.generate("word " * 240, memfit.Sampling(temperature=0))
    assert full.finish_reason == "length"
    assert full.prompt_tokens + full.completion_tokens == 256
    with pytest.raises(memfit.MemfitError, match="--ctx"):
        session.generate("word " * 300)
    assert "Paris" in session.generate("The capital of France is", _GREEDY).text


@pytest.mark.parametrize("repack", ["on", "off"])
def test_loading_stops_before_a_limit_that_the_plan_overlooked(demo: str, repack: str) -> None:
    """A plan that is wrong by the KV cache: the worker says so before it would hold too much."""
    plan = memfit.plan(demo, workload=memfit.Workload(repack=repack))
    limit = plan.ram.total_bytes - 20 * MIB
    wrong = replace(plan.ram, parts={**plan.ram.parts, "weights": 0}, limit_bytes=limit)
    with pytest.raises(memfit.DoesNotFitError) as caught:
        memfit.load(replace(plan, tiers=(wrong,)))
    assert caught.value.exit_code == 3
    assert caught.value.needs_bytes > limit


def test_a_limit_passed_while_running_ends_the_worker(plan: LlamaPlan) -> None:
    with memfit.load(plan) as session:
        held = process_memory(session.worker_pid).total_bytes
        session._meter._limit_bytes = held - MIB
        with pytest.raises(memfit.DoesNotFitError):
            session.generate("Once upon a time", memfit.Sampling(seed=1, repeat_penalty=1.3))


def test_a_closed_session_still_reports(plan: LlamaPlan) -> None:
    with memfit.load(plan) as session:
        session.generate("Hello", _GREEDY)
        before = session.report()
    assert session.report().tiers == before.tiers
