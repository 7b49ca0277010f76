"""Starts memfit rpc-servers on loopback for the benchmarks, each with a budget; ends them with the block."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator

from subjects import MEMFIT


@contextlib.contextmanager
def rpc_servers(*budgets: int, threads: int = 2) -> Iterator[list[str]]:
    """`HOST:PORT` of one server for each budget in bytes."""
    processes = []
    try:
        for budget in budgets:
            processes.append(
                subprocess.Popen(
                    [
                        *MEMFIT,
                        "rpc-server",
                        "--port",
                        "0",
                        "--memory",
                        str(budget),
                        "--threads",
                        str(threads),
                        "--json",
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        endpoints = []
        for process in processes:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            endpoints.append(f"{said['host']}:{said['port']}")
        yield endpoints
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait()
