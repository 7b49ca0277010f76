"""Malformed requests and clients that stall or leave: no 5xx, no crash, memory back where it was.

Answers of 501 and 503 that explain themselves as JSON count as refusals: a path that the model cannot serve,
a request that no budget can. What is due an answer, is valid HTTP and gets none has crashed a handler.
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from limits import Limits
from malformed_requests import Attempt, attempts, valid
from results import Result
from servers import Server, running

SEED = 20
CLIENTS = 8
CONTEXT = 512  # so that a request for very many tokens ends within a client's patience
PATIENCE_SECONDS = 60.0  # for an answer that is due
WAIT_SECONDS = 1.0  # for one that may never come
RSS_BOUND_BYTES = 10 << 20
SETTLING_SECONDS = 30
_REFUSALS = (501, 503)
_ASKED = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    attempt: Attempt
    status: int | None  # None: no answer
    problem: str = ""


def run(server: str, limits: Limits) -> list[Result]:
    with running(server, context=CONTEXT, parallel=4) as one:
        for _ in range(3):  # what is loaded on first use is no leak
            list(_sent_all(one, valid()))
        text, helpers = _text(one), _helpers(one)
        before = _settled_rss(one)
        outcomes = list(_sent_all(one, attempts(SEED, limits.malformed)))
        after = _settled_rss(one, before)
        crashes = [] if one.is_ready() else ["the server does not answer any more"]
        if not crashes and _text(one) != text:
            crashes.append("the same request gives another text than before")
        if gone := helpers - _helpers(one):
            crashes.append(f"{len(gone)} of its helper processes ended")
    return [_result(outcomes, crashes, before, after)]


def _sent_all(server: Server, some: Iterable[Attempt]) -> Iterable[Outcome]:
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        yield from pool.map(lambda attempt: _sent(server.port, attempt), some)


def _sent(port: int, attempt: Attempt) -> Outcome:
    """Sends the pieces, and reads as much as this client wants."""
    data, problem = b"", ""
    due = attempt.is_whole and attempt.reads_bytes > 0
    until = time.monotonic() + (PATIENCE_SECONDS if due else WAIT_SECONDS)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
            for piece in attempt.pieces:
                connection.sendall(piece)
            time.sleep(attempt.stalls_seconds)
            while len(data) < attempt.reads_bytes and (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                part = connection.recv(1 << 16)
                if not part:
                    break
                data += part
    except ConnectionRefusedError:
        problem = "connection refused"
    except TimeoutError:
        pass  # judged by what came
    except OSError:
        pass  # a server may close on what it does not read to the end
    status = _status(data)
    if not problem and due and not data:
        ended = time.monotonic() < until
        problem = "closed without an answer" if ended else f"no answer in {PATIENCE_SECONDS:.0f} s"
    if status is not None and status >= 500 and not (status in _REFUSALS and _explains(data)):
        problem = f"{status}: {data.split(b'{', 1)[-1][:120]!r}"
    return Outcome(attempt=attempt, status=status, problem=problem)


def _status(data: bytes) -> int | None:
    words = data[:20].split()
    return int(words[1]) if len(words) > 1 and data.startswith(b"HTTP/") and words[1].isdigit() else None


def _explains(data: bytes) -> bool:
    try:
        return "error" in json.loads(data.split(b"\r\n\r\n", 1)[1])
    except (ValueError, IndexError):
        return False


def _text(server: Server) -> object:
    _, answer = server.ask("POST", "/v1/completions", _ASKED)
    return answer["choices"][0]["text"]


def _helpers(server: Server) -> set[int]:
    return {process.pid for process in server.processes()[1:]}


def _settled_rss(server: Server, most: int = 0) -> int:
    """Of all its processes, when it no longer changes or is low enough: memory is freed a little later."""
    last, until = server.rss_bytes(), time.monotonic() + SETTLING_SECONDS
    while time.monotonic() < until:
        time.sleep(2)
        now = server.rss_bytes()
        if now <= most + RSS_BOUND_BYTES or (not most and abs(now - last) < 1 << 16):
            return now
        last = now
    return last


def _result(outcomes: list[Outcome], crashes: list[str], before: int, after: int) -> Result:
    wrong = [one for one in outcomes if one.problem]
    grown = (after - before) / (1 << 20)
    if after - before > RSS_BOUND_BYTES:
        crashes = [*crashes, f"RSS grew by {grown:.1f} MiB, bound {RSS_BOUND_BYTES >> 20}"]
    kinds = Counter(one.attempt.kind for one in outcomes)
    statuses = Counter(str(one.status or "none") for one in outcomes)
    return Result(
        suite="malformed",
        passed=0 if crashes else len(outcomes) - len(wrong),
        total=len(outcomes),
        failures=(
            *crashes,
            *(f"{one.attempt.kind} {one.attempt.what[:160]}: {one.problem}" for one in wrong),
        ),
        notes=(
            f"RSS {before / (1 << 20):.1f} MiB before, {after / (1 << 20):.1f} after: {grown:+.1f} MiB",
            "answers: " + ", ".join(f"{status} {count}" for status, count in sorted(statuses.items())),
            "sent: " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
        ),
    )
