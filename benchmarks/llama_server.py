"""llama-server as a peer: started for a model, asked through many connections, timed, ended."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from subjects import peers


def complete_all(
    path: str, prompts: list[str], most_tokens: int, sequences: int, repack: bool
) -> tuple[int, float, float]:
    """The tokens it generated for all prompts, the seconds until it was ready, and those from the first
    request to the last answer."""
    options = ["-t", "2", "-np", str(sequences), "-c", str(512 * sequences)]
    options += ["--repack" if repack else "--no-repack"]
    begun = time.perf_counter()
    with running(path, options) as port:
        started = time.perf_counter()
        tokens = _ask_all(port, prompts, most_tokens, sequences)
        return tokens, started - begun, time.perf_counter() - started


@contextmanager
def running(path: str, options: list[str]) -> Iterator[int]:
    """The port of a server that is ready for a model, until it is not needed any more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(peers() / "llama-server"), "-m", path, *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "-lv", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            time.sleep(0.05)
            assert server.poll() is None, "llama-server ended"
        yield port
    finally:
        server.terminate()
        server.wait()


def _is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def _ask_all(port: int, prompts: list[str], most_tokens: int, connections: int) -> int:
    """As many requests at a time as there are connections; returns the tokens generated."""
    waiting, tokens, lock = list(reversed(prompts)), [0], threading.Lock()

    def work_through() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            body = {"prompt": prompt, "max_tokens": most_tokens, "temperature": 0, "cache_prompt": False}
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = json.loads(connection.getresponse().read())
            with lock:
                tokens[0] += answer["usage"]["completion_tokens"]

    threads = [threading.Thread(target=work_through) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tokens[0]
