"""Watches what a worker (and its parent) hold in RAM and on GPUs while they run, and raises the alarm at a
limit.

Samples at 20 Hz from the kernel's cheap counters and corrects them by what both processes share; the
worker's own high-water mark catches what falls between two samples.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memfit.memory.page_cache import cached_bytes
from memfit.memory.process_memory import disk_read_bytes, group_bytes, process_memory, process_status

__all__ = ["Meter", "Overrun"]

_INTERVAL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Overrun:
    """A limit that was passed."""

    tier: str  # "RAM", or a GPU's: "gpu0"
    held_bytes: int
    limit_bytes: int


class Meter:
    """`limit_bytes` None watches without alarm; `on_overrun` is called once, on the meter's thread."""

    def __init__(
        self,
        worker_pid: int,
        *,
        count_parent: bool,
        model_files: Sequence[Path],
        limit_bytes: int | None,
        on_overrun: Callable[[], None],
        gpu_bytes: Callable[[int], Mapping[str, int]] | None = None,
        gpu_limits: Mapping[str, int] | None = None,
    ) -> None:
        """`gpu_bytes` says what a process holds on each GPU tier; None where there is none. `gpu_limits` are
        bytes by tier, as `limit_bytes` is RAM's."""
        self._worker = worker_pid
        self._count_parent = count_parent
        self._files = tuple(path.absolute() for path in model_files)
        self._limit_bytes = limit_bytes
        self._on_overrun = on_overrun
        self._gpu_bytes = gpu_bytes
        self._gpu_limits = gpu_limits or {}
        self._gpu_held: Mapping[str, int] = {}
        self._gpu_peaks: dict[str, int] = {}
        self._cached_before = cached_bytes(self._files) or 0
        self.counts_cache = True  # False: the worker reads past it, so what comes there is other programs'
        self._shared_bytes = 0
        self._parent_peak = 0
        self._worker_peak = 0
        self._cache_bytes = 0
        self.overrun: Overrun | None = None
        self.swapped_bytes = 0  # the most that lay in swap at once
        self.disk_read_bytes = 0  # by the worker, when last looked at closely
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memfit-meter", daemon=True)

    def start(self) -> None:
        """Begin; call once the worker has loaded its libraries, so that what is shared is known."""
        if self._count_parent:
            processes = [process_memory(), process_memory(self._worker)]
            self._shared_bytes = sum(one.total_bytes for one in processes) - group_bytes(processes)
        self._thread.start()

    @property
    def peak_bytes(self) -> int:
        """The most that was held at once, page cache that stays because of memfit included."""
        return self.together(self._worker_peak)

    def together(self, worker_bytes: int) -> int:
        """What the processes hold together, from what the worker holds."""
        return self._parent_peak + worker_bytes - self._shared_bytes + self._cache_bytes

    def settle(self) -> None:
        """Look closely: at the page cache, the high-water mark and the disk. Call after loading."""
        self.sample()
        try:
            held = process_memory(self._worker).files
            self.disk_read_bytes = disk_read_bytes(self._worker)
        except ProcessLookupError:
            return  # what was found before stays true
        if not self.counts_cache:
            return
        mapped = sum(held.get(str(path), 0) for path in self._files)
        known = max(self._cached_before, mapped)
        # Where the kernel does not say, nothing is left: loading has dropped what it read.
        self._cache_bytes = max(0, (cached_bytes(self._files) or 0) - known)

    def held_bytes(self) -> int:
        """What is held at this moment, looked at closely.

        Raises:
            ProcessLookupError: the worker is gone.
        """
        ours = [process_memory()] if self._count_parent else []
        return group_bytes([*ours, process_memory(self._worker)])

    def gpu_peak_bytes(self, tier: str) -> int | None:
        """The most that the worker held on a GPU of this machine; None where its driver does not say."""
        return self._gpu_peaks.get(tier)

    def tiers(self) -> dict[str, tuple[int, int]]:
        """By tier of this machine: bytes held now, and at most."""
        found = {"ram": (self.sample(), self.peak_bytes)}
        return found | {
            tier: (self._gpu_held.get(tier, 0), peak) for tier, peak in list(self._gpu_peaks.items())
        }

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self.overrun = self._passed(self.sample())
            if self.overrun:
                self._on_overrun()
                return

    def _passed(self, held_bytes: int) -> Overrun | None:
        """The limit that is passed, with so much held in RAM."""
        looked_at = [("RAM", held_bytes, self._limit_bytes)]
        looked_at += [(tier, held, self._gpu_limits.get(tier)) for tier, held in self._gpu_peaks.items()]
        for tier, held, limit in looked_at:
            if limit is not None and held > limit:
                return Overrun(tier=tier, held_bytes=held, limit_bytes=limit)
        return None

    def sample(self) -> int:
        """Bytes held now; the peaks are brought up to date."""
        try:
            worker = process_status(self._worker)
        except ProcessLookupError:
            return 0
        self._worker_peak = max(self._worker_peak, worker.peak_resident_bytes)
        self._gpu_held = self._gpu_bytes(self._worker) if self._gpu_bytes else {}
        for tier, held in self._gpu_held.items():
            self._gpu_peaks[tier] = max(self._gpu_peaks.get(tier, 0), held)
        ours = process_status() if self._count_parent else None
        parent, swapped = (ours.resident_bytes, ours.swapped_bytes) if ours else (0, 0)
        self._parent_peak = max(self._parent_peak, parent)
        self.swapped_bytes = max(self.swapped_bytes, worker.swapped_bytes + swapped)
        return worker.resident_bytes + parent - self._shared_bytes
