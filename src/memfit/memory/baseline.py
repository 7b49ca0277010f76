"""What memfit's processes hold beyond what the oracle counts: measured on this machine once, cached.

Two parts: the parent (Python, the command line, terminal output), and what a worker holds after its
first real decode that a simulating one does not (thread stacks, kernels' code pages, the scheduler's
tables). Pure: measuring needs an engine (engines/llamacpp/calibrate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from memfit.memory.process_memory import ProcessMemory, group_bytes

__all__ = ["Baseline"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    parent: ProcessMemory | None  # None: the caller's own process, which memfit does not count
    decode_bytes: int  # a worker's growth from simulated to decoding, buffers aside

    def with_worker(self, worker: ProcessMemory) -> int:
        """Bytes of parent and worker together; `worker` is a simulating one."""
        processes = [worker] if self.parent is None else [self.parent, worker]
        return group_bytes(processes) + self.decode_bytes
