"""Many requests at once on the real engine, and `memfit batch` killed at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import memfit
from conftest import children_of, run_memfit
from memfit.engines.requests import Request, RequestResult, Sampling, TextDelta
from thorough import cases, times

pytestmark = pytest.mark.engine

_SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
}


@pytest.fixture(scope="module", params=[True, False], ids=["common cache", "a part each"])
def session(demo: str, request: pytest.FixtureRequest) -> Iterator[memfit.Session]:
    workload = memfit.Workload(
        context=4096, parallel=4, repack="off", kv_unified=request.param, grammars=True
    )
    with memfit.load(demo, budget=memfit.Budget(ram="500MiB"), workload=workload) as session:
        yield session


def ask(number: int, words: str, **sampling: Any) -> Request:
    settings = Sampling(**{"temperature": 0, "max_tokens": 12, **sampling})
    return Request(number=number, prompt=words, sampling=settings)


def answers(session: Any, requests: list[Request]) -> tuple[dict[int, RequestResult], Any]:
    batch = session.open()
    for request in requests:
        batch.add(request)
    batch.end()
    found = {event.number: event for event in batch.events() if isinstance(event, RequestResult)}
    return found, batch.totals


def test_texts_are_those_of_one_by_one(session: memfit.Session) -> None:
    """Each alone, by the same session. The likeliest token leads by 1.5 or more: rounding changes none."""
    prompts = [
        "1, 2, 3, 4, 5, 6, 7, 8,",
        "10, 20, 30, 40, 50,",
        "100, 101, 102, 103, 104,",
        "2, 4, 6, 8, 10,",
        "31, 32, 33, 34,",
        "200, 300, 400, 500,",
    ]
    alone = [session.generate(prompt, Sampling(temperature=0, max_tokens=12)) for prompt in prompts]
    found, totals = answers(session, [ask(n, prompt) for n, prompt in enumerate(prompts)])
    again = session.generate(prompts[0], Sampling(temperature=0, max_tokens=12))
    report = session.report()
    assert [found[n].completion.text for n in range(6)] == [one.text for one in alone]
    assert again.text == alone[0].text
    assert [found[n].completion.prompt_tokens for n in range(6)] == [one.prompt_tokens for one in alone]
    assert totals.generated_tokens == sum(one.completion.completion_tokens for one in found.values())
    assert totals.passes < 6 * 12
    assert report.within_budget and abs(report.tiers[0].error_bytes or 0) <= 16 << 20


def test_a_common_beginning_is_computed_once(session: memfit.Session) -> None:
    beginning = " ".join(f"Item {n} costs {n * 7} coins." for n in range(60))
    requests = [ask(n, f"{beginning} Question {n}:", max_tokens=4) for n in range(12)]
    found, totals = answers(session, requests)
    whole = found[0].completion.prompt_tokens
    assert totals.shared_tokens >= 11 * (whole - 10)
    assert totals.prompt_tokens <= 1.2 * whole


def test_requests_of_every_kind_beside_each_other(session: memfit.Session) -> None:
    requests = [
        ask(0, "Name a colour.", max_tokens=3),
        ask(1, "One, two, three,", stop=(",",), max_tokens=30),
        ask(2, "x " * 5000),
        Request(
            number=3,
            messages=({"role": "user", "content": "Is the sky red or blue?"},),
            sampling=Sampling(temperature=1.0, seed=7, max_tokens=60),
            schema=_SCHEMA,
        ),
        Request(number=4, prompt="a", schema={"items": {"type": "no such type"}}),
        ask(5, "Tell me", temperature=1.5, seed=3, repeat_penalty=1.2),
        # Whole without a choice; cut inside of what has no choice; drawn under penalties.
        Request(number=6, prompt="a", sampling=Sampling(stop=("]",)), schema={"const": ["<|im_end|>\n", 1]}),
        Request(number=7, prompt="a", sampling=Sampling(max_tokens=3), schema={"const": "a b c d e f g"}),
        Request(
            number=8,
            prompt="a",
            sampling=Sampling(temperature=1.0, seed=3, repeat_penalty=1.3),
            schema={"type": "array", "items": {"enum": [1, 2]}, "minItems": 9, "maxItems": 9},
        ),
    ]
    found, _ = answers(session, requests)
    alone = session.chat(requests[3].messages, Sampling(temperature=0, max_tokens=60), schema=_SCHEMA)
    assert set(found) == set(range(9))
    assert json.loads(alone.text).keys() == {"label", "sure"} and alone.finish_reason == "stop"
    assert found[0].completion.finish_reason == "length" and found[0].completion.completion_tokens == 3
    assert "," not in found[1].completion.text and found[1].completion.finish_reason == "stop"
    assert "try --ctx" in str(found[2].error)
    answer = json.loads(found[3].completion.text)
    assert answer["label"] in ("red", "blue") and isinstance(answer["sure"], bool)
    assert "JSON schema at #/items/type" in str(found[4].error)
    assert found[6].completion.text == '["<|im_end|>\\n", 1' and found[6].completion.finish_reason == "stop"
    assert found[7].completion.finish_reason == "length" and found[7].completion.completion_tokens == 3
    assert '"a b c d e f g"'.startswith(found[7].completion.text)
    assert len(json.loads(found[8].completion.text)) == 9 and found[8].completion.finish_reason == "stop"
    assert found[5].completion.text


def test_a_request_beyond_what_the_model_was_trained_for_fails_alone(demo: str) -> None:
    """SmolLM2 was trained for 8,192 tokens; the context that all share is larger."""
    workload = memfit.Workload(context=10240, parallel=2, repack="off")
    plan = memfit.plan(demo, budget=memfit.Budget(ram="1GiB"), workload=workload)
    with memfit.load(plan) as session:
        found, _ = answers(session, [ask(0, "x " * 9000), ask(1, "The sea is", max_tokens=4)])
    assert "the model was trained for 8192" in str(found[0].error)
    assert found[1].completion


def test_a_batch_that_is_left_early_leaves_the_session_usable(session: memfit.Session) -> None:
    alone = session.generate("The sea is", Sampling(temperature=0, max_tokens=5)).text
    batch = session.open()
    batch.add(ask(0, "Once upon a time", max_tokens=3))
    batch.add(ask(1, "Count: 1, 2, 3,", max_tokens=2000))
    with closing(batch.events()) as events:
        assert next(one for one in events if isinstance(one, RequestResult)).number == 0
    again = session.generate("The sea is", Sampling(temperature=0, max_tokens=5)).text
    batch = session.open()
    batch.add(ask(2, "Count: 1, 2, 3,", max_tokens=2000))
    batch.events().close()  # before anything has come
    still = session.generate("The sea is", Sampling(temperature=0, max_tokens=5)).text
    assert alone == again == still


def test_requests_come_and_go_while_others_run(session: memfit.Session) -> None:
    batch = session.open()
    batch.add(ask(0, "Count: 1, 2, 3,", max_tokens=200), sends_text=True)
    batch.add(ask(1, "Once upon a time", max_tokens=400))
    pieces, ended = [], []
    for event in batch.events():
        if isinstance(event, TextDelta):
            if not pieces:
                batch.add(ask(2, "The sea is", max_tokens=5))
                batch.drop(1)
            pieces.append(event)
        elif isinstance(event, RequestResult):
            ended.append(event)
            if len(ended) == 2:
                batch.end()
    assert [one.number for one in ended] == [2, 0]
    text = "".join(piece.text for piece in pieces)
    assert text and ended[1].completion.text.startswith(text)


def test_many_samplers_hold_no_more_than_one(demo: str) -> None:
    workload = memfit.Workload(context=1024, parallel=16, repack="off")
    with memfit.load(demo, budget=memfit.Budget(ram="500MiB"), workload=workload) as session:
        found, _ = answers(session, [ask(n, f"{n} is", temperature=1.0, max_tokens=3) for n in range(16)])
        assert all(one.completion for one in found.values())
        assert (session.report().tiers[0].error_bytes or 0) > -(4 << 20)  # 9 MiB where each keeps candidates


def write_input(path: Path, lines: int) -> None:
    random.seed(5)
    with path.open("w") as file:
        for number in range(lines):
            body = {
                "messages": [{"role": "user", "content": f"Write about {random.randrange(1000)}."}],
                "max_tokens": random.randrange(1, 24),
                "temperature": 0,
            }
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def test_killed_at_random_moments_every_line_is_answered_once(tmp_path: Path, demo: str) -> None:
    """The parent or the worker, by turns; then the same command to its end."""
    lines = times(24, 60)
    write_input(tmp_path / "in.jsonl", lines)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "memfit", "batch", demo, "--input", str(tmp_path / "in.jsonl")]
    command += ["--output", str(out), "--ram", "500MiB", "--parallel", "8", "--repack", "off"]
    random.seed(11)
    before = b""
    for turn in range(times(4, 8)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.5, 4.0))
        victims = [process.pid] if turn % 2 else children_of(process.pid) if process.poll() is None else []
        for victim in victims[-1:]:
            os.kill(victim, signal.SIGKILL)
        if turn % 2 == 0:
            time.sleep(random.uniform(0.2, 2.0))
            process.kill()
        process.wait(timeout=60)
        now = out.read_bytes() if out.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        assert now.startswith(whole)
        before = now
    last = run_memfit(*command[3:])
    assert last.code == 0, last.err
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    ids = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert ids == [f"r{number}" for number in range(lines)]
    again = run_memfit(*command[3:])
    assert again.code == 0 and "answered before" in again.err


def _journal(out: Path) -> str:
    path = out.with_name(f"{out.name}.journal")
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("load_in", cases(["nf4"], "bf16"))
def test_a_checkpoints_batch_goes_on_after_its_worker_and_itself_are_killed(
    tmp_path: Path, llama: Path, load_in: str
) -> None:
    lines = 8
    write_input(tmp_path / "in.jsonl", lines)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "memfit", "batch", str(llama), "--input", str(tmp_path / "in.jsonl")]
    command += ["--output", str(out), "--parallel", "2", "--ram", "2GiB", "--load-in", load_in]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for victims, answered in ((lambda: children_of(process.pid)[-1:], 1), (lambda: [process.pid], 3)):
            while process.poll() is None and _journal(out).count('"output"') < answered:
                time.sleep(0.02)
            for victim in victims():
                os.kill(victim, signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == -signal.SIGKILL and "starting another one" in said
    before = out.read_bytes()
    last = run_memfit(*command[3:])
    assert last.code == 0, last.err
    assert "requests were answered before; going on" in last.err
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    ids = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert ids == [f"r{number}" for number in range(lines)]
    # Another precision gives other answers: it is another job.
    other = "nf4" if load_in == "bf16" else "bf16"
    refused = run_memfit(*command[3:-1], other)
    assert refused.code == 2 and "belongs to another job" in refused.err


def test_what_cannot_be_answered_is_named_and_the_rest_is_answered(tmp_path: Path, demo: str) -> None:
    lines = [
        '{"prompt": "Hello", "id": "a"}',
        "{broken",
        '{"prompt": "Hello again", "id": "a"}',
        json.dumps({"prompt": "word " * 9000, "id": "long"}),
        '{"prompt": "Hi", "id": "b", "tools": [1]}',
        '{"messages": [{"role": "user", "content": "Bye"}]}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [
        "batch",
        demo,
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    options = ["--ram", "400MiB", "--max-tokens", "4", "--ctx", "512", "--parallel", "2"]
    done = run_memfit(*arguments, *options)
    assert done.code == 0, done.err
    ids = [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ids == ["a", "line-6"]
    failed = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert sorted(one["line"] for one in failed) == [2, 3, 4, 5]
    assert "2 answered, 4 failed" in done.err
    other = run_memfit(*arguments, "--ram", "400MiB", "--max-tokens", "5")
    assert other.code == 2 and "--overwrite" in other.err


def test_through_pipes(demo: str) -> None:
    done = run_memfit(
        *("batch", demo, "--input", "-", "--output", "-", "--ram", "400MiB", "--max-tokens", "4"),
        stdin='{"prompt": "Hello"}\n\n{"prompt": 3}\n',
    )
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    assert json.loads(line)["custom_id"] == "line-1"
    assert "line 3: prompt" in done.err
