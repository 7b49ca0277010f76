"""Continuous batching, against a cache that computes nothing but remembers which token lies where."""

from __future__ import annotations

import random

import pytest

from memfit.engines.scheduler import Job, Scheduler


class FakeCache:
    """Cells by sequence and position; asserts what llama.cpp's unified cache would."""

    def __init__(self, *, cells: int, window: int | None = None) -> None:
        self.cells = cells
        self.window = window
        self.rows: dict[int, list[int]] = {}
        self.shared_calls = 0

    def share(self, source: int, target: int, tokens: int) -> None:
        assert not self.rows.get(target) and len(self.rows[source]) >= tokens > 0
        self.rows[target] = self.rows[source][:tokens]
        self.shared_calls += 1

    def cut(self, sequence: int, tokens: int) -> bool:
        self.rows[sequence] = self.rows.get(sequence, [])[:tokens]
        return True

    def reaches(self, sequence: int, tokens: int) -> bool:
        held = len(self.rows.get(sequence, []))
        return self.window is None or held - tokens < self.window

    def compute(self, scheduler: Scheduler, job_tokens: dict[Job, list[int]]) -> int:
        """One pass; checks each token's place, and that outputs see exactly their job's tokens."""
        work = scheduler.next_pass()
        assert work is not None
        assert 0 < len(work.tokens) == len(work.positions) == len(work.sequences)
        for token, position, sequence in zip(work.tokens, work.positions, work.sequences, strict=True):
            row = self.rows.setdefault(sequence, [])
            assert len(row) == position
            row.append(token)
        # Cells that several sequences begin with count once only if they share them; no more than all fit.
        assert scheduler.cells_in_use <= self.cells
        for entry, job in work.outputs:
            assert self.rows[work.sequences[entry]] == job_tokens[job]
            token = random.randrange(1000)
            if len(job.generated) + 1 >= job.limit:
                scheduler.finish(job)
                del job_tokens[job]
            else:
                scheduler.extend(job, [token])
                job_tokens[job].append(token)
        return len(work.tokens)


def run(scheduler: Scheduler, cache: FakeCache, jobs: list[Job]) -> int:
    """Passes until all have ended."""
    open_jobs = {job: list(job.prompt) for job in jobs}
    for job in jobs:
        scheduler.add(job)
    passes = 0
    while open_jobs:
        cache.compute(scheduler, open_jobs)
        passes += 1
        assert passes < 10_000
    assert scheduler.is_idle and scheduler.next_pass() is None
    return passes


def make(
    cache: FakeCache, *, sequences: int, ubatch: int = 32, expected: float = 0, mixes: bool = True
) -> Scheduler:
    scheduler = Scheduler(cache, cells=cache.cells, sequences=sequences, ubatch=ubatch, mixes=mixes)
    scheduler.expect(expected)
    return scheduler


def test_one_job_alone() -> None:
    cache = FakeCache(cells=100)
    scheduler = make(cache, sequences=4, ubatch=8)
    # 20 tokens of prompt in pieces of 8, 8, 4; the last pass gives the first of 5 tokens.
    assert run(scheduler, cache, [Job(number=1, prompt=list(range(20)), limit=5)]) == 3 + 4
    assert scheduler.prompt_tokens == 20


def test_a_prompt_is_computed_beside_generation() -> None:
    cache = FakeCache(cells=200)
    scheduler = make(cache, sequences=2, ubatch=16)
    first, second = (
        Job(number=1, prompt=[1] * 4, limit=10),
        Job(number=2, prompt=list(range(100, 140)), limit=1),
    )
    scheduler.add(first)
    scheduler.next_pass()
    scheduler.extend(first, [7])
    scheduler.add(second)
    work = scheduler.next_pass()
    assert work is not None
    assert work.tokens == [7, *range(100, 115)]  # one generated, 15 of the prompt
    assert work.outputs == [(0, first)]


def test_where_they_do_not_mix_prompts_and_generation_take_turns() -> None:
    cache = FakeCache(cells=2000)
    scheduler = make(cache, sequences=4, ubatch=256, mixes=False)
    jobs = [Job(number=n, prompt=[n] * 100, limit=50) for n in range(4)]
    for job in jobs:
        scheduler.add(job)
    kinds = []
    for _ in range(6):
        work = scheduler.next_pass()
        assert work is not None
        kinds.append(len(work.tokens))
        for _, job in work.outputs:
            scheduler.extend(job, [1])
    # Two prompts are enough for a pass; then half of the sequences generate, and the others' turn comes.
    assert kinds == [200, 2, 200, 4, 4, 4]


@pytest.mark.parametrize("mixes", [True, False])
def test_tokens_that_come_at_once_are_computed_beside_those_of_others(mixes: bool) -> None:
    """A grammar leaves no choice about them; who has one token is not to wait for who has many."""
    cache = FakeCache(cells=500)
    scheduler = make(cache, sequences=3, ubatch=8, mixes=mixes)
    jobs = [Job(number=n, prompt=[n] * 2, limit=90) for n in range(3)]
    for job in jobs:
        scheduler.add(job)
    scheduler.next_pass()
    for token in range(100, 120):
        scheduler.extend(jobs[0], [token])
    scheduler.extend(jobs[1], [1])
    scheduler.extend(jobs[2], [2])
    work = scheduler.next_pass()
    assert work is not None
    assert work.tokens == [*range(100, 106), 1, 2]
    assert [job.number for _, job in work.outputs] == [1, 2]
    for job in jobs[1:]:
        scheduler.extend(job, [3])
    work = scheduler.next_pass()
    assert work is not None
    assert work.tokens == [*range(106, 112), 3, 3]


def test_a_common_beginning_is_computed_once() -> None:
    cache = FakeCache(cells=4000)
    scheduler = make(cache, sequences=8, ubatch=256, expected=10)
    prefix = list(range(1000))
    jobs = [Job(number=n, prompt=[*prefix, 5000 + n, 1, 2], limit=10) for n in range(100)]
    run(scheduler, cache, jobs)
    assert scheduler.prompt_tokens == 1000 + 100 * 3
    assert scheduler.shared_tokens == 99 * 1000


def test_a_common_beginning_under_a_sliding_window_is_computed_once_for_those_that_run_together() -> None:
    cache = FakeCache(cells=4000, window=50)
    scheduler = make(cache, sequences=8, ubatch=256, expected=10)
    prefix = list(range(1000))
    jobs = [Job(number=n, prompt=[*prefix, *[5000 + n] * 60], limit=10) for n in range(8)]
    run(scheduler, cache, jobs)
    assert scheduler.prompt_tokens == 1000 + 8 * 60


def test_the_next_turn_of_a_chat_goes_on_in_place() -> None:
    cache = FakeCache(cells=300)
    scheduler = make(cache, sequences=1)
    first = Job(number=1, prompt=list(range(50)), limit=5)
    run(scheduler, cache, [first])
    again = Job(number=2, prompt=[*first.prompt, *first.generated[:4], 7, 7], limit=5)
    run(scheduler, cache, [again])
    assert scheduler.shared_tokens == 54
    assert cache.shared_calls == 0


def test_jobs_wait_for_cells_and_none_is_lost() -> None:
    cache = FakeCache(cells=100)
    scheduler = make(cache, sequences=8)
    # Each needs 30 + 20 cells: two at a time, however many sequences there are.
    jobs = [Job(number=n, prompt=[n] * 30, limit=20) for n in range(10)]
    for job in jobs:
        scheduler.add(job)
    scheduler.next_pass()
    assert scheduler.running == 2
    scheduler.drop(jobs[0])
    scheduler.drop(jobs[9])
    scheduler.next_pass()
    assert (scheduler.running, scheduler.waiting) == (2, 6)


def test_jobs_longer_than_expected_make_the_newest_wait_again() -> None:
    cache = FakeCache(cells=100)
    scheduler = make(cache, sequences=8, expected=1)
    jobs = [Job(number=n, prompt=[n] * 10, limit=60) for n in range(5)]
    run(scheduler, cache, jobs)  # 5 * 70 cells do not fit into 100
    assert scheduler.prompt_tokens > 50  # some began anew


def test_expected_lengths_follow_what_is_seen() -> None:
    cache = FakeCache(cells=1000)
    scheduler = make(cache, sequences=64)
    # By their limits only one fits; each ends after one token, which the next ones are expected to do too.
    for number in range(20):
        scheduler.add(Job(number=number, prompt=[number] * 10, limit=900))
    work = scheduler.next_pass()
    assert work is not None and len(work.outputs) == 1
    scheduler.finish(work.outputs[0][1])
    work = scheduler.next_pass()
    assert work is not None and scheduler.running > 10


@pytest.mark.parametrize("seed", range(200))
def test_random_jobs(seed: int) -> None:
    """Every output sees exactly its own tokens, whatever is shared, dropped, or computed again."""
    random.seed(seed)
    cells = random.choice((64, 128, 512))
    cache = FakeCache(cells=cells, window=random.choice((None, 4, 40)))
    scheduler = make(
        cache,
        sequences=random.choice((1, 2, 5, 16)),
        ubatch=random.choice((16, 32, 64)),
        expected=random.choice((0, 1, 20)),
        mixes=random.choice((True, False)),
    )
    beginnings = [[random.randrange(3) for _ in range(random.randrange(1, 30))] for _ in range(3)]
    jobs = []
    for number in range(random.randrange(1, 40)):
        prompt = [*random.choice(beginnings), *(random.randrange(3) for _ in range(random.randrange(20)))]
        prompt = prompt[: cells - 1]
        jobs.append(Job(number=number, prompt=prompt, limit=random.randrange(1, cells - len(prompt) + 1)))
    run(scheduler, cache, jobs)


def test_all_begins_anew() -> None:
    """What the cache holds went bad: nothing of it is used again, and jobs go on in their order."""
    cache = FakeCache(cells=400)
    scheduler = make(cache, sequences=2, ubatch=64)
    jobs = [Job(number=number, prompt=[1, 2, number] + [5] * 30, limit=6) for number in range(4)]
    open_jobs = {job: list(job.prompt) for job in jobs}
    for job in jobs:
        scheduler.add(job)
    for _ in range(3):
        cache.compute(scheduler, open_jobs)
    assert scheduler.running == 2 and any(job.generated for job in jobs)
    scheduler.begin_anew()
    assert (scheduler.running, scheduler.waiting, scheduler.cells_in_use) == (0, 4, 0)
    assert not any(cache.rows.values())
    finished: list[int] = []
    while open_jobs:
        before = set(open_jobs)
        cache.compute(scheduler, open_jobs)
        finished += sorted(job.number for job in before - set(open_jobs))
    assert finished == [0, 1, 2, 3] and scheduler.is_idle
