"""How long and how much the suites of our own go on; what others wrote has its own measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    cases: int = 2000  # schemathesis' requests
    malformed: int = 10_000  # requests
    kills: int = 50  # of the worker process
    clients: int = 64  # that stream at a time
    seconds: int = 300  # of load by them
