"""The llama.cpp engine's worker process, with what its libraries want to find in the environment."""

from __future__ import annotations

import os

from memfit.engines.client import WorkerProcess

__all__ = ["LlamaWorker"]


class LlamaWorker(WorkerProcess):
    """`yields` is for one that takes turns with a device on the same cores."""

    def __init__(self, *, verbose: bool = False, yields: bool = False) -> None:
        environment = {
            "GGML_NO_BACKTRACE": "1",  # an abort would try to attach gdb
            "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads would wait beside the engine's
        }
        if yields:
            # Waiting threads that spin for long keep the device's own threads from computing: measured,
            # 7 tok/s against 112.
            environment["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")
        super().__init__("memfit.engines.llamacpp.worker", environment, verbose=verbose)
