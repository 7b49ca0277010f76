"""A server under test: memfit or llama-server, started on a free loopback port and ended by its pid.

What a suite wants is said once, in Options; the table of flags says how each server spells it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
from subjects import MEMFIT, ROOT, models, peers

KINDS = ("memfit", "llama-server")
START_SECONDS = 120
END_SECONDS = 15


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve; None leaves it to the server."""

    context: int | None = None  # tokens over all sequences
    parallel: int | None = None  # sequences at once
    threads: int | None = None
    alias: str | None = None  # the model's name in requests and answers
    embeddings: bool = False
    ram: str | None = None  # a budget, which llama-server does not know
    routed: bool = False  # the model in a process of its own: memfit's always is, llama-server's as a router


# Option → how memfit spells it, and llama-server; an empty spelling is left out.
_FLAGS = {
    "context": ("--ctx", "--ctx-size"),
    "parallel": ("--parallel", "--parallel"),
    "threads": ("--threads", "--threads"),
    "alias": ("--alias", "--alias"),
    "embeddings": ("--embeddings", "--embeddings"),
    "ram": ("--ram", ""),
    "routed": ("", ""),
}


@dataclass(kw_only=True)
class Server:
    kind: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    alias: str = "demo"
    seen: set[psutil.Process] = field(default_factory=set)  # its helpers, to find orphans by

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """The server and all of its helpers that live."""
        try:
            whole = psutil.Process(self.process.pid)
            living = [whole, *whole.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self.seen.update(living)
        return living

    def rss_bytes(self) -> int:
        return sum(_rss(process) for process in self.processes())

    def is_ready(self) -> bool:
        try:
            status, _ = self.ask("GET", "/health", timeout=5)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 120) -> tuple[int, Any]:
        """Status and body of one request, as JSON where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command(kind: str, model: str, port: int, options: Options, folder: Path) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "memfit":
        words = [*MEMFIT, "serve", model, *where]
    elif options.routed:
        preset = folder / "preset.ini"
        preset.write_text(f"version = 1\n\n[{options.alias}]\nmodel = {model}\n")
        words = [str(peers() / "llama-server"), "--models-preset", str(preset), *where]
    else:
        words = [str(peers() / "llama-server"), "-m", model, *where, "--slots", "--metrics"]
    for option in fields(options):
        value, flag = getattr(options, option.name), _FLAGS[option.name][KINDS.index(kind)]
        if flag and value not in (None, False) and not (option.name == "alias" and options.routed):
            words += [flag] if value is True else [flag, str(value)]
    return words


@contextlib.contextmanager
def running(kind: str, model: str | None = None, **options: Any) -> Iterator[Server]:
    """A server of `model`, demo by default, that answers /health; ended with the block, helpers too."""
    options.setdefault("alias", "demo")
    chosen, port = Options(**options), free_port()
    with tempfile.TemporaryDirectory(prefix="memfit-suite-") as folder:
        log = Path(folder) / "server.log"
        words = command(kind, model or models()["demo"], port, chosen, Path(folder))
        with log.open("wb") as said:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_paths()
            )
        server = Server(kind=kind, port=port, process=process, log=log, alias=chosen.alias or "demo")
        try:
            wait_until_ready(server)
            yield server
        finally:
            end(server)


def wait_until_ready(server: Server, seconds: float = START_SECONDS) -> float:
    """The seconds until it answered /health.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of what it said.
    """
    begun = time.perf_counter()
    while not server.is_ready():
        waited = time.perf_counter() - begun
        if server.process.poll() is not None or waited > seconds:
            said = server.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{server.kind} is not ready after {waited:.0f} s: {said}")
        time.sleep(0.05)
    server.processes()
    return time.perf_counter() - begun


def end(server: Server) -> list[psutil.Process]:
    """Ends it as a user would; returns the helpers that outlived it, and ends those."""
    server.processes()
    server.process.terminate()
    try:
        server.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    _, orphans = psutil.wait_procs([one for one in server.seen if one.pid != server.process.pid], 3)
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.send_signal(signal.SIGKILL)
    return orphans


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _paths() -> dict[str, str]:
    """memfit of this checkout, wherever the environment's came from."""
    before = os.environ.get("PYTHONPATH")
    source = str(ROOT / "src")
    return os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{before}" if before else source}
