"""How many threads compute: those that are planned, fewer while other programs need the CPUs.

Runs in a worker. Threads meet at a barrier a thousand times a token. Where one of them has no CPU, all others
wait for it: two threads on two CPUs beside one busy program are about half as fast as one thread alone
(benchmarks/busy.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from memfit.hardware.cpu_use import CpuMeter, CpuUse

__all__ = ["Threads"]

_SPAN_SECONDS = 0.2  # of one look: the kernel counts in steps of 10 ms
_CONTENDED = 0.05  # the share of waiting from which others are in the way, not merely there
_AT_REST = 0.5  # of a span without a pass, from which on nothing of ours could have waited


class Threads:
    """Asked before each pass, and told when it has ended."""

    def __init__(self, most: int, use: Callable[[int], None], meter: CpuMeter | None = None) -> None:
        """`most` are planned, and compute until `use` is told another number. What others do is watched from
        here on."""
        self.most = self.count = most
        self._use = use
        self._meter = meter or CpuMeter()
        self._ended, self._rest_seconds = time.monotonic(), 0.0
        self.restart()

    def restart(self) -> None:
        """Count passes from here on."""
        self.passes = self.thread_passes = 0  # the second counts a pass once for each of its threads

    @property
    def mean(self) -> float:
        """Over the passes that were counted."""
        return self.thread_passes / self.passes if self.passes else self.count

    def look(self) -> None:
        """A pass begins."""
        self._rest_seconds += time.monotonic() - self._ended
        if self.most > 1 and (use := self._meter.use(_SPAN_SECONDS)):
            before, self.count = self.count, self._fitting(use, self._rest_seconds)
            self._rest_seconds = 0.0
            if self.count != before:
                self._use(self.count)
        self.passes += 1
        self.thread_passes += self.count

    def done(self) -> None:
        """The pass has ended."""
        self._ended = time.monotonic()

    def _fitting(self, use: CpuUse, rest_seconds: float) -> int:
        free = max(1, min(self.most, math.floor(use.cpus - use.others + 0.5)))
        if free >= self.count:
            return free
        in_the_way = use.waited > _CONTENDED or rest_seconds > _AT_REST * use.seconds
        # Who computes in turns with us, as a device on this machine does, is not in the way.
        return free if in_the_way else self.count
