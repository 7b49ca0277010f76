"""The executor against a session without a model: every line once, whatever dies."""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from pathlib import Path

import pytest
from fake_session import FakeSession, FakeStream
from fakes import make_report

from memfit.batch.executor import Executor, Progress
from memfit.batch.input import open_input
from memfit.batch.output import open_sink
from memfit.engines.requests import Idle, Request, RequestResult, Sampling, TextDelta
from memfit.errors import InterruptedByUser, ModelError, WorkerDiedError


class Session(FakeSession):
    """Answers in random order with the prompt's own words; dies of some prompts, and at some moments."""

    def __init__(self, world: World) -> None:
        super().__init__([], make_report())
        self.world = world
        world.sessions += 1

    def open(self, *, expected_tokens: float = 0) -> FakeStream:
        return RandomBatch(self)


class RandomBatch(FakeStream):
    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._world = session.world
        self._ended = False

    def end(self) -> None:
        self._ended = True

    def add(self, request: Request, *, sends_text: bool = False) -> None:
        super().add(request, sends_text=sends_text)
        self._world.most_open = max(self._world.most_open, len(self._requests))

    def events(self) -> Generator[RequestResult | TextDelta | Idle]:
        world = self._world
        while self._requests:
            words = [one.messages[0]["content"] for one in self._requests]
            # Those behind the first few wait for their turn: they kill nobody yet.
            if any("poison" in word for word in words[: world.parallel]) or world.dies_now():
                raise WorkerDiedError("it ended")
            if world.interrupts_after == world.answers:
                self.was_cancelled = True
                return
            request = self._requests[random.randrange(min(world.parallel, len(self._requests)))]
            self._requests.remove(request)
            world.answers += 1
            text = request.messages[0]["content"]
            if "refused" in text:
                yield RequestResult(number=request.number, error=ModelError("refused"))
                continue
            self._session._answers.append(text)
            yield RequestResult(number=request.number, completion=self._session.answer(request))
        assert self._ended, "the executor says when no more requests come"


class World:
    def __init__(self, *, dies_at: set[int] = frozenset(), interrupts_after: int = -1) -> None:  # type: ignore[assignment]
        self.parallel = 4
        self.sessions = self.answers = self.most_open = self._moments = 0
        self.interrupts_after = interrupts_after
        self._dies_at = dies_at

    def dies_now(self) -> bool:
        self._moments += 1
        return self._moments in self._dies_at


def work(folder: Path, prompts: list[str], world: World) -> tuple[dict[str, str], dict[int, str]]:
    """The texts by custom_id and the errors by line, of one run."""
    source = folder / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": one, "id": str(i)}) + "\n" for i, one in enumerate(prompts))
    )
    seen: list[Progress] = []
    with (
        open_input(str(source), Sampling()) as lines,
        open_sink(str(folder / "out.jsonl"), lines, identity={}) as sink,
    ):
        Executor(
            lines,
            sink,
            lambda: Session(world),
            model="m",
            ahead=10,
            expected_tokens=1,
            on_progress=seen.append,
            say=lambda text: None,
        ).run()
        assert seen[-1].answered + seen[-1].failed == len(prompts)
    return results(folder)


def results(folder: Path) -> tuple[dict[str, str], dict[int, str]]:
    lines = (folder / "out.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    texts = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert len(texts) == len(answers), "each line once"
    errors = folder / "out.errors.jsonl"
    failed = [json.loads(line) for line in errors.read_text().splitlines()] if errors.exists() else []
    return texts, {one["line"]: one["error"]["message"] for one in failed}


def test_every_line_is_answered_in_order_and_few_are_open(tmp_path: Path) -> None:
    world = World()
    texts, errors = work(tmp_path, [f"p{n}" for n in range(50)], world)
    assert list(texts.items()) == [(str(n), f"p{n}") for n in range(50)]
    assert not errors
    assert world.sessions == 1 and world.most_open == 10


def test_a_request_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    texts, errors = work(tmp_path, ["a", "refused", "b"], World())
    assert texts == {"0": "a", "2": "b"} and errors == {2: "refused"}


def test_the_one_request_that_kills_workers_fails_alone(tmp_path: Path) -> None:
    prompts = [f"p{n}" for n in range(40)]
    prompts[17] = "poison"
    world = World()
    texts, errors = work(tmp_path, prompts, world)
    assert set(texts) == {str(n) for n in range(40)} - {"17"}
    assert errors == {18: "it ended"}
    assert world.sessions <= 8  # the first, all again, halves of ten, and twice alone


@pytest.mark.parametrize("seed", range(30))
def test_workers_killed_from_outside_cost_no_answer(tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    dies_at = set(random.sample(range(1, 120), 6))
    texts, errors = work(tmp_path, [f"p{n}" for n in range(60)], World(dies_at=dies_at))
    assert len(texts) + len(errors) == 60
    # Only two deaths in a row, alone, cost a request.
    assert len(errors) <= 1


def test_a_worker_that_always_dies_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerDiedError):
        work(tmp_path, ["poison"] * 30, World())
    texts, errors = results(tmp_path)
    assert not texts and len(errors) == 4


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    prompts = [f"p{n}" for n in range(30)]
    with pytest.raises(InterruptedByUser):
        work(tmp_path, prompts, World(interrupts_after=12))
    before = (tmp_path / "out.jsonl").read_bytes()
    world = World()
    texts, _ = work(tmp_path, prompts, world)
    assert len(texts) == 30 and world.answers == 18
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
