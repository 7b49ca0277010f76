"""A worker without an engine, for tests of what lies between it and its parent. Run as a helper process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

from memfit.engines.channel import Channel, OverBudgetError, run_worker
from memfit.errors import DoesNotFitError, EngineError, HeaderError


class _Worker:
    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._channel = Channel(lambda: self)

    def abort(self) -> None:
        self._cancelled.set()

    def clear_abort(self) -> None:
        self._cancelled.clear()

    def serve(self) -> None:
        self._channel.serve(
            {
                "echo": lambda **values: values,
                "open": self._open,
                "load": self._load,
                "fail": self._fail,
                "descriptors": self._descriptors,
            }
        )

    def _open(self) -> dict[str, Any]:
        """Text without end, until it is cancelled."""
        sent = 0
        while not self._cancelled.is_set():
            self._channel.send("text", text="word ")
            sent += 1
            time.sleep(0.002)
        return {"sent": sent}

    def _load(self) -> dict[str, Any]:
        """Without end, and not to be cancelled."""
        while True:
            self._channel.send("progress", fraction=0.5)
            time.sleep(0.01)

    @staticmethod
    def _fail(how: str) -> dict[str, Any]:
        print("a first line\n  a second one", file=sys.stderr, flush=True)
        if how == "header":
            raise HeaderError("/models/x.gguf", "tensor 3", "its shape has no end")
        if how == "fit":
            raise DoesNotFitError(tier="RAM", needs_bytes=3, budget_bytes=2, suggestions=("--ctx 512",))
        if how == "engine":
            raise EngineError("decode failed")
        if how == "over budget":
            raise OverBudgetError(5)
        if how == "exit":
            os._exit(7)
        if how == "abort":
            os.abort()
        raise KeyError("weights")

    @staticmethod
    def _descriptors() -> dict[str, Any]:
        """What a child of this process has open."""
        code = "import os; print(*os.listdir('/proc/self/fd'))"
        done = subprocess.run(
            [sys.executable, "-c", code], close_fds=False, capture_output=True, text=True, timeout=30
        )
        return {"numbers": [int(number) for number in done.stdout.split()]}


if __name__ == "__main__":
    run_worker(lambda: _Worker().serve())
