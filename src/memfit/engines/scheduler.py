"""Which tokens the next pass computes: continuous batching of many sequences in one KV cache.

Sequences join and leave at any pass. A pass holds one token of every sequence that generates, or pieces of
prompts, or both. What a prompt shares with another that is in the cache, or about to be, is computed once.
Finished and cancelled sequences stay as beginnings for later ones until their room is wanted. The scheduler
lives as long as the loaded model, so a chat's next turn, a batch and a server find the same prefixes. It
knows no engine beyond `Cache`, no text and no sampling.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memfit.engines.cells import SharedCells

__all__ = ["Cache", "Job", "Pass", "Scheduler"]

_WORTH_WAITING = 16  # tokens that another prompt will soon have computed
_ENOUGH_TOKENS = 128  # in a pass of prompts: more are no faster, and the engine cuts up unequal ones
_LEAST_ROOM = 8  # cells kept for a sequence that has passed its expected length
_WEIGHT = 0.05  # of a new answer in the expected length of the next
_AT_ONCE = 64  # tokens of an answer that a grammar leaves no choice about, and that are computed together
_LOOK_AHEAD = 64  # waiting jobs that are considered: those behind one that waits for a shared beginning


class Cache(Protocol):
    """The engine's KV cache, as far as scheduling moves it."""

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let an empty sequence begin with the first `tokens` of another."""

    def cut(self, sequence: int, tokens: int) -> bool:
        """Keep only the first `tokens`; False, and nothing is kept, where that is impossible."""

    def reaches(self, sequence: int, tokens: int) -> bool:
        """Whether a sequence can go on after its first `tokens`: a sliding window may have left them."""


@dataclass(eq=False, kw_only=True)
class Job:
    """One prompt, and what was generated after it."""

    number: int
    prompt: list[int]
    limit: int  # tokens to generate at most
    scored_from: int | None = None  # where in the prompt logits are wanted from on; None: only at its end
    generated: list[int] = field(default_factory=list)
    key: bytes = b""  # the prompt's tokens as bytes: compared by the thousand
    started_at: float | None = None  # time.monotonic() when it first had a sequence
    computed: int = 0  # tokens of its prompt that the cache did not hold

    def __post_init__(self) -> None:
        self.key = array("i", self.prompt).tobytes()

    @property
    def first_output(self) -> int:
        """The first token of the prompt whose logits are wanted."""
        return len(self.prompt) - 1 if self.scored_from is None else self.scored_from

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.generated)


@dataclass(eq=False)
class _Slot:
    """One sequence of the cache: a running job's, or what a finished one left."""

    index: int
    job: Job | None = None
    key: bytes = b""  # tokens in the cache, or on their way: a running job's prompt
    cached: int = 0  # tokens in the cache
    used_at: int = 0
    pauses: set[int] = field(default_factory=set)  # lengths at which others wait to share it

    @property
    def pending(self) -> int:
        """Tokens that are known and not in the cache."""
        return self.job.tokens - self.cached if self.job else 0

    @property
    def generates(self) -> bool:
        """Whether its prompt is computed, and of its answer only what came at once is left."""
        if self.pending <= 1:
            return self.job is not None
        assert self.job
        return self.cached >= len(self.job.prompt) and self.pending <= _AT_ONCE


@dataclass(kw_only=True)
class Pass:
    """What one call of the engine computes; the lists are parallel, one entry a token."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    outputs: list[tuple[int, Job]] = field(default_factory=list)  # entries whose logits are wanted
    slots: list[tuple[_Slot, int]] = field(default_factory=list)  # with their cached tokens before it

    def add(self, slot: _Slot, tokens: list[int]) -> None:
        self.slots.append((slot, slot.cached))
        self.tokens += tokens
        self.positions += range(slot.cached, slot.cached + len(tokens))
        self.sequences += [slot.index] * len(tokens)


class Scheduler:
    """Jobs wait in the order they came; `sequences` of them run in `cells` cells."""

    def __init__(
        self,
        cache: Cache,
        *,
        cells: int,
        sequences: int,
        ubatch: int,
        outputs: int | None = None,
        mixes: bool = True,
    ) -> None:
        """`outputs` of a pass's tokens at most give logits, one of each sequence at least; None: all.

        `mixes` lets prompts and generation share a pass, best where passes are dear by themselves, as when
        weights stream. Else computing decides, and each kind is faster alone.
        """
        self._cache = cache
        self._cells = cells
        self._ubatch = ubatch
        self._outputs = ubatch if outputs is None else outputs
        self._expected = 0.0
        self._slots = [_Slot(index) for index in range(sequences)]
        self._in_use = SharedCells(sequences)
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, _Slot] = {}  # in the order they joined
        self._mixes = mixes
        self._was_prompt = False
        self._is_full = False
        self._clock = 0
        self.prompt_tokens = 0  # computed so far
        self.shared_tokens = 0  # that were not, as the cache held them

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def cells_in_use(self) -> int:
        return self._in_use.used

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def expect(self, tokens: float) -> None:
        """So many tokens are generated per job, until finished ones tell better; 0: its limit."""
        self._expected = tokens

    def add(self, job: Job) -> None:
        """Let a job wait for its turn. Its prompt, and a token more where some are generated, must fit into
        all cells."""
        assert job.limit > 0 or job.scored_from is not None
        assert 0 < len(job.prompt) <= self._cells - bool(job.limit)
        self._waiting.append(job)

    def drop(self, job: Job) -> None:
        """Forget a job, whether it waits or runs; what is computed of it stays for later ones."""
        if job in self._running:
            self._release(job)
        elif job in self._waiting:
            self._waiting.remove(job)

    def next_pass(self) -> Pass | None:
        """The tokens to compute now; None where no job is left. They count as computed from here on."""
        self._join()
        if not self._running:
            assert not self._waiting, "an empty cache has room for any job"
            return None
        self._make_room()
        work = Pass()
        # In the order of sequences: the engine computes such as follow each other together.
        for slot, end in sorted(self._shares().items(), key=lambda one: one[0].index):
            self._compute(work, slot, end)
        return work

    def undo(self, work: Pass) -> None:
        """A pass was not computed to its end, so the cache holds none of its tokens."""
        for slot, before in work.slots:
            self._cut(slot, before)

    def extend(self, job: Job, tokens: Sequence[int]) -> None:
        """A job's next tokens are known; where they are several, the next pass computes them at once."""
        job.generated += tokens

    def finish(self, job: Job) -> None:
        """A job has ended; its tokens stay in the cache as long as there is room."""
        if job.limit:
            found = len(job.generated) + 1
            self._expected += _WEIGHT * (found - self._expected) if self._expected else found
        self._release(job)

    def begin_anew(self) -> None:
        """What the cache holds is of no use: running jobs wait again, in their order, with nothing kept."""
        self._waiting.extendleft(reversed(self._running))
        for job in list(self._running):
            self._release(job)
        for slot in self._slots:
            self._cut(slot, 0)

    # -- joining ---------------------------------------------------------------------------------

    def _join(self) -> None:
        """Give waiting jobs sequences, as far as there are cells for what they will come to."""
        passed: list[Job] = []
        if self._is_full:
            return
        while self._waiting and len(self._running) < len(self._slots) and len(passed) < _LOOK_AHEAD:
            job = self._waiting[0]
            if self._running and not self._has_room(job):
                self._is_full = True  # until a job leaves
                break
            self._waiting.popleft()
            if self._waits(job):
                passed.append(job)
            else:
                self._start(job)
        self._waiting.extendleft(reversed(passed))

    def _has_room(self, job: Job) -> bool:
        donor, shared = self._donor(job)
        kept = {slot.index for slot in self._running.values()} | ({donor.index} if donor else set())
        idle = sum(self._in_use.exclusive(slot.index) for slot in self._slots if slot.index not in kept)
        wanted = job.tokens - shared + self._to_come(job)
        for one, slot in self._running.items():
            wanted += slot.pending + self._to_come(one)
        return self._in_use.used - idle + wanted <= self._cells

    def _to_come(self, job: Job) -> int:
        """Tokens that a job is expected to generate from now on."""
        left = job.limit - len(job.generated)
        expected = self._expected or job.limit
        return min(left, max(_LEAST_ROOM, round(expected) - len(job.generated)))

    def _donor(self, job: Job) -> tuple[_Slot | None, int]:
        """The sequence that has most of a job's beginning in the cache, and how many tokens that is."""
        best, most = None, 0
        for slot in self._slots:
            shared = min(_common(slot.key, job.key), slot.cached, job.first_output)
            if shared > most and self._cache.reaches(slot.index, shared):
                best, most = slot, shared
        return best, most

    def _waits(self, job: Job) -> bool:
        """Whether a running prompt will soon have computed more of this one's beginning than is there."""
        _, now = self._donor(job)
        for slot in self._running.values():
            later = min(_common(slot.key, job.key), job.first_output)
            if slot.cached < later and later >= now + _WORTH_WAITING:
                slot.pauses.add(later)
                return True
        return False

    def _start(self, job: Job) -> None:
        donor, shared = self._donor(job)
        slot = self._choose_slot(donor, shared)
        if slot is donor:
            self._cut(slot, shared)
            shared = slot.cached
        else:
            self._cut(slot, 0)
            if donor:
                self._cache.share(donor.index, slot.index, shared)
                self._in_use.share(donor.index, slot.index, shared)
                slot.cached = shared
                self._touch(donor)
        self.shared_tokens += slot.cached
        slot.job, slot.key, slot.pauses = job, job.key, set()
        self._touch(slot)
        if job.started_at is None:
            job.started_at = time.monotonic()
        self._running[job] = slot

    def _choose_slot(self, donor: _Slot | None, shared: int) -> _Slot:
        """An idle sequence: the donor itself where little of it would be lost, else one unused for long."""
        idle = [slot for slot in self._slots if slot.job is None]
        if donor in idle and (2 * shared >= donor.cached or len(idle) == 1):
            return donor
        others = [slot for slot in idle if slot is not donor]
        return min(others, key=lambda slot: (slot.cached > 0, slot.used_at))

    def _touch(self, slot: _Slot) -> None:
        self._clock += 1
        slot.used_at = self._clock

    def _cut(self, slot: _Slot, tokens: int) -> None:
        kept = tokens if self._cache.cut(slot.index, tokens) else 0
        self._in_use.cut(slot.index, kept)
        slot.cached = kept
        slot.key = slot.key[: kept * _TOKEN_BYTES]

    # -- running ---------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Cells for one token of every running job: finished sequences go first, then the newest jobs."""
        wanted = min(self._ubatch, sum(slot.pending for slot in self._running.values()))
        for slot in sorted(self._slots, key=lambda one: one.used_at):
            if self._in_use.used + wanted <= self._cells:
                return
            if slot.job is None and slot.cached:
                self._cut(slot, 0)
        # Prompts take what is left; a token each must be possible.
        while self._in_use.used + len(self._running) > self._cells and len(self._running) > 1:
            job = next(reversed(self._running))
            self._cut(self._release(job), 0)
            self._waiting.appendleft(job)

    def _shares(self) -> dict[_Slot, int]:
        """Up to which token each sequence is computed now.

        Each that generates has its token, as no more of them run than a ubatch holds.
        """
        ends: dict[_Slot, int] = {}
        room = whole = min(self._ubatch, self._cells - self._in_use.used)
        turn = self._turn()
        waiting = sum(slot.generates for slot in turn)  # for a token of their own
        spare = self._outputs - len(self._running)  # each may have one
        for slot in turn:
            if room <= 0 or (not self._mixes and whole - room >= _ENOUGH_TOKENS and not slot.generates):
                break
            waiting -= slot.generates
            pauses = [one for one in slot.pauses if one > slot.cached]
            ends[slot] = min([slot.cached + min(max(1, room - waiting), slot.pending), *pauses])
            if slot.job and slot.job.scored_from is not None:
                before = max(slot.cached, slot.job.first_output)
                ends[slot] = min(ends[slot], before + 1 + spare)
                spare -= max(0, ends[slot] - before - 1)
            room -= ends[slot] - slot.cached
        return ends

    def _turn(self) -> list[_Slot]:
        """Who is computed now: those that generate and then prompts, or only one kind where they do not mix.

        Then prompts go first until half of the sequences generate; from there on the two take turns.
        """
        generating = [slot for slot in self._running.values() if slot.generates]
        prompts = [slot for slot in self._running.values() if not slot.generates]
        if self._mixes:
            return generating + prompts
        few = 2 * len(generating) < len(self._running)
        self._was_prompt = bool(prompts) and (few or not self._was_prompt)
        return prompts if self._was_prompt else generating

    def _compute(self, work: Pass, slot: _Slot, end: int) -> None:
        job = slot.job
        assert job is not None
        prompt = len(job.prompt)
        tokens = job.prompt[slot.cached : min(end, prompt)]
        if end > prompt:
            tokens += job.generated[max(0, slot.cached - prompt) : end - prompt]
        if slot.cached < prompt:
            computed = min(end, prompt) - slot.cached
            job.computed += computed
            self.prompt_tokens += computed
        entry = len(work.tokens) - slot.cached  # of the sequence's first token, were it in this pass
        work.add(slot, tokens)
        if job.scored_from is not None:
            scored = range(max(slot.cached, job.first_output), end)
            work.outputs += [(entry + position, job) for position in scored]
        elif end == job.tokens:
            work.outputs.append((len(work.tokens) - 1, job))
        self._in_use.grow(slot.index, len(tokens))
        slot.cached = end
        slot.pauses.discard(end)

    def _release(self, job: Job) -> _Slot:
        slot = self._running.pop(job)
        slot.job, slot.pauses, self._is_full = None, set(), False
        tokens = array("i", job.prompt)
        tokens.extend(job.generated)
        slot.key = tokens.tobytes()[: slot.cached * _TOKEN_BYTES]
        self._touch(slot)
        return slot


_TOKEN_BYTES = array("i").itemsize


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    low, high = 0, min(len(one), len(other)) // _TOKEN_BYTES
    if one[: high * _TOKEN_BYTES] == other[: high * _TOKEN_BYTES]:
        return high
    while low + 1 < high:  # `low` tokens are equal, `high` are not
        middle = (low + high) // 2
        start, end = low * _TOKEN_BYTES, middle * _TOKEN_BYTES
        if one[start:end] == other[start:end]:
            low = middle
        else:
            high = middle
    return low
