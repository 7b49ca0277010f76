"""Many streaming clients for minutes, and the second turn of a long chat: memfit beside llama-server.

Against memfit both are measured in one run. Each serves as many sequences at once as gives it the most tokens
a second in a short trial; more clients than that wait. Bars: no error, throughput and time to first token
against llama-server's, memory that stays flat and, ours, inside the budget.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import psutil
from limits import Limits
from results import Check, Result, of_checks
from servers import Server, running
from streaming_clients import Load, load, stream

from memfit.units import MIB, parse_size

PARALLEL = (16, 32)  # sequences that are tried, and as many as clients
CONTEXT_OF_ONE = 384  # tokens of a sequence
TRIAL_SECONDS = 15
WARM_UP_SHARE = 0.2  # of the time, before memory is called flat
BUDGET = "2GiB"
THROUGHPUT_BAR, FIRST_TOKEN_BAR, MEMORY_BAR_BYTES = 0.95, 1.1, 4 * MIB  # memory within ± this
SECOND_TURN_BAR = 1.1
LONG_CHAT_TOKENS, LONG_CHATS, QUESTIONS = 2000, 3, 5


@dataclass(frozen=True, kw_only=True)
class Measured:
    kind: str
    parallel: int
    load: Load
    memory: list[int]  # bytes each second after warm-up
    second_turn_seconds: float

    @property
    def flat_within_bytes(self) -> float:
        return (max(self.memory) - min(self.memory)) / 2 if self.memory else 0.0


def run(server: str, limits: Limits) -> list[Result]:
    kinds = ("llama-server", "memfit") if server == "memfit" else ("llama-server",)
    second_turns = _second_turns(kinds)
    measured = {kind: _measured(kind, limits, second_turns[kind]) for kind in kinds}
    return [of_checks("clients", _checks(measured[server], measured["llama-server"]), *_notes(measured))]


def _second_turns(kinds: Sequence[str]) -> dict[str, float]:
    """Median seconds to the first token, a chat of one after the same of the other: machines drift."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(LONG_CHATS):
        for kind in kinds:
            with running(kind, context=4096, parallel=1, ram=BUDGET) as one:
                found[kind] += _questions(one, seed)
    return {kind: median(seconds) for kind, seconds in found.items()}


def _measured(kind: str, limits: Limits, second_turn_seconds: float) -> Measured:
    parallel = _best_parallel(kind, limits)
    with _serving(kind, parallel) as one:
        sampler = _Sampler(one)
        with sampler:
            done = load(one.port, limits.clients, limits.seconds)
        memory = sampler.samples[int(len(sampler.samples) * WARM_UP_SHARE) :]
    return Measured(
        kind=kind, parallel=parallel, load=done, memory=memory, second_turn_seconds=second_turn_seconds
    )


def _best_parallel(kind: str, limits: Limits) -> int:
    candidates = [parallel for parallel in PARALLEL if parallel < limits.clients] + [limits.clients]
    return (
        max(candidates, key=lambda one: _trial(kind, one, limits)) if len(candidates) > 1 else candidates[0]
    )


def _trial(kind: str, parallel: int, limits: Limits) -> float:
    with _serving(kind, parallel) as one:
        return load(one.port, limits.clients, min(TRIAL_SECONDS, limits.seconds)).tokens_per_second


def _serving(kind: str, parallel: int) -> AbstractContextManager[Server]:
    return running(kind, context=CONTEXT_OF_ONE * parallel, parallel=parallel, ram=BUDGET)


class _Sampler(threading.Thread):
    """The summed Pss of a server's processes, once a second while the block runs."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.samples: list[int] = []
        self._server, self._ended = server, threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self.samples.append(sum(_pss(process) for process in self._server.processes()))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def _questions(server: Server, seed: int) -> Iterator[float]:
    """Seconds to the first token of short questions after a chat of LONG_CHAT_TOKENS, one by one."""
    chance = random.Random(seed)
    words = ("sea", "ship", "wind", "old", "captain", "island", "storm", "gold", "night", "star")
    text, tokens = "", 0
    while tokens < LONG_CHAT_TOKENS:
        text += "".join(f" {chance.choice(words)}" for _ in range(max(1, (LONG_CHAT_TOKENS - tokens) // 2)))
        _, answer = server.ask("POST", "/tokenize", {"content": text})
        tokens = len(answer["tokens"])
    turns = [{"role": "user", "content": text}]
    first = stream(server.port, turns, 16)
    turns.append({"role": "assistant", "content": first.text})
    for number in range(QUESTIONS):
        second = stream(server.port, [*turns, {"role": "user", "content": f"And then, {number}?"}], 4)
        problem = first.problem or second.problem
        if problem or second.first_seconds is None:
            raise RuntimeError(f"a chat of {LONG_CHAT_TOKENS} tokens: {problem or 'no token'}")
        yield second.first_seconds


def _checks(ours: Measured, theirs: Measured) -> Iterator[Check]:
    problems = ours.load.problems
    yield Check(name="no error", problem=f"{len(problems)}: {problems[0]}" if problems else "")
    ratio = ours.load.tokens_per_second / max(theirs.load.tokens_per_second, 1e-9)
    yield _bar("tokens a second", ratio, ratio >= THROUGHPUT_BAR, f">= {THROUGHPUT_BAR}")
    ratio = ours.load.first_token_p95 / max(theirs.load.first_token_p95, 1e-9)
    yield _bar("p95 time to first token", ratio, ratio <= FIRST_TOKEN_BAR, f"<= {FIRST_TOKEN_BAR}")
    flat = ours.flat_within_bytes
    yield _bar(
        "memory within ± MiB", flat / MIB, flat <= MEMORY_BAR_BYTES, f"<= {MEMORY_BAR_BYTES / MIB:.0f}"
    )
    if ours.kind == "memfit":
        most = max(ours.memory, default=0)
        yield _bar("peak MiB in the budget", most / MIB, most <= parse_size(BUDGET), f"<= {BUDGET}")
    ratio = ours.second_turn_seconds / max(theirs.second_turn_seconds, 1e-9)
    yield _bar("second turn's first token", ratio, ratio <= SECOND_TURN_BAR, f"<= {SECOND_TURN_BAR}")


def _bar(name: str, value: float, is_met: bool, bound: str) -> Check:
    return Check(name=name, problem="" if is_met else f"{value:.3f}, needs {bound}")


def _notes(measured: dict[str, Measured]) -> Iterator[str]:
    for one in measured.values():
        done = one.load
        yield (
            f"{one.kind}, {one.parallel} sequences: {done.requests} requests, {len(done.problems)} errors, "
            f"{done.tokens_per_second:.1f} tok/s, first token p50 {done.first_token_p50:.2f} s "
            f"p95 {done.first_token_p95:.2f} s, memory {max(one.memory, default=0) / MIB:.1f} MiB "
            f"± {one.flat_within_bytes / MIB:.1f}, second turn {one.second_turn_seconds * 1000:.0f} ms"
        )
    if len(measured) > 1:
        ours, theirs = measured["memfit"].load, measured["llama-server"].load
        yield f"ours/theirs: {ours.tokens_per_second / max(theirs.tokens_per_second, 1e-9):.3f} tok/s"
    yield f"measured at {time.strftime('%Y-%m-%d %H:%M')} on {psutil.cpu_count()} CPUs"
