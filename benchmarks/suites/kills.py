"""kill -9 of the worker process under load: each running request gets a proper error, and service is back.

The worker is the server's child with the most memory. llama-server takes part as its own router, which has
the model in a process of its own too.
"""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
from limits import Limits
from results import Check, Result, of_checks
from servers import Server, running

BACK_SECONDS = 5.0
_PATIENCE_SECONDS = 30.0
_TURNS = [{"role": "user", "content": "Tell a long story about the sea."}]
_LONG = {"model": "demo", "max_tokens": 400, "temperature": 0.8}
# Path and body; streams and whole answers of each API.
LOAD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", _LONG | {"messages": _TURNS, "stream": True}),
    ("/v1/chat/completions", _LONG | {"messages": _TURNS}),
    ("/v1/messages", _LONG | {"messages": _TURNS, "stream": True}),
    ("/v1/completions", _LONG | {"prompt": "Once upon a time", "stream": True}),
)
_SHORT = {"model": "demo", "prompt": "Hello", "max_tokens": 1}


@dataclass(kw_only=True)
class Running:
    """One request under way: what came of it."""

    path: str
    status: int | None = None
    text: str = ""
    began: threading.Event = field(default_factory=threading.Event)  # the first byte of a stream is there
    failure: str = ""

    @property
    def problem(self) -> str:
        """Why its end is none that a client understands; "" for a proper error or a whole answer."""
        if self.failure or self.status is None:
            return f"{self.path}: {self.failure or 'no status'}"
        if self.status >= 400:
            return "" if '"error"' in self.text else f"{self.path}: {self.status} without an error"
        if '"error"' in self.text or _is_whole(self.text):
            return ""
        return f"{self.path}: {self.status} and neither an end nor an error: …{self.text[-80:]!r}"


def _is_whole(text: str) -> bool:
    """Whether a stream or an answer came to its own end."""
    return any(
        end in text.replace(" ", "") for end in ("[DONE]", "message_stop", '"object":"chat.completion"')
    )


def run(server: str, limits: Limits) -> list[Result]:
    with running(server, context=2048, parallel=len(LOAD), routed=True) as one:
        if _first_answer(one, 120.0) is None:
            raise RuntimeError("no answer before the first kill")
        seconds: list[float] = []
        usual = len(one.processes())
        checks = [_killed(one, f"kill {number + 1}", usual, seconds) for number in range(limits.kills)]
        seen = set(one.seen)
    alive = [process.pid for process in seen if process.is_running()]
    checks.append(Check(name="end", problem=f"{alive} outlive the server" if alive else ""))
    slowest = f"service back after {max(seconds):.2f} s at most" if seconds else "service never came back"
    return [of_checks("kills", checks, f"{slowest}, bound {BACK_SECONDS:.0f} s")]


def _killed(server: Server, name: str, usual: int, seconds: list[float]) -> Check:
    worker = _worker(server)
    if worker is None:
        return Check(name=name, problem="no worker process")
    requests = [Running(path=path) for path, _ in LOAD]
    threads = [
        threading.Thread(target=_follow, args=(server, one, body), daemon=True)
        for one, (_, body) in zip(requests, LOAD, strict=True)
    ]
    for thread in threads:
        thread.start()
    for one, (_, body) in zip(requests, LOAD, strict=True):
        if body.get("stream"):
            one.began.wait(_PATIENCE_SECONDS)
    worker.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    back = _first_answer(server, _PATIENCE_SECONDS)
    for thread in threads:
        thread.join(_PATIENCE_SECONDS)
    problems = [one.problem for one in requests if one.problem]
    problems += [f"{thread.name} has not ended" for thread in threads if thread.is_alive()]
    if back is None or back - killed > BACK_SECONDS:
        problems.append(f"service not back in {BACK_SECONDS:.0f} s")
    if back is not None:
        seconds.append(back - killed)
    problems += _left_behind(server, worker, usual)
    return Check(name=name, problem="; ".join(problems))


def _worker(server: Server) -> psutil.Process | None:
    helpers = server.processes()[1:]
    return max(helpers, key=lambda process: process.memory_info().rss, default=None)


def _follow(server: Server, one: Running, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("POST", one.path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        one.status = response.status
        while part := response.read1(1 << 12):
            one.began.set()
            one.text += part.decode(errors="replace")
    except http.client.IncompleteRead as cut:
        one.failure = f"the answer is cut off after {len(cut.partial)} bytes"
    except (OSError, http.client.HTTPException) as problem:
        one.failure = f"{type(problem).__name__}: {problem}"
    finally:
        one.began.set()
        connection.close()


def _first_answer(server: Server, patience: float) -> float | None:
    """When a new request was answered again."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            status, _ = server.ask("POST", "/v1/completions", _SHORT, timeout=patience)
        except (OSError, http.client.HTTPException):
            status = 0
        if status == 200:
            return time.monotonic()
        time.sleep(0.05)
    return None


def _left_behind(server: Server, worker: psutil.Process, usual: int) -> list[str]:
    """Processes that should be gone: the worker as a zombie, helpers that nobody holds any more."""
    problems = []
    if worker.is_running():  # a zombie still has its pid
        problems.append(f"the killed worker {worker.pid} was not waited for")
    living = server.processes()
    if len(living) != usual:
        problems.append(f"{len(living)} processes, not {usual}")
    if orphans := [process.pid for process in server.seen - set(living) if process.is_running()]:
        problems.append(f"orphans {orphans}")
    return problems
