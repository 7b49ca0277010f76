"""The transformers engine's worker process, with what its libraries want to find in the environment."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.engines.client import WorkerProcess
from memfit.memory.precision import precision

__all__ = ["TransformersWorker"]


class TransformersWorker(WorkerProcess):
    """It never uses a network: what it needs lies in the model's folder."""

    def __init__(
        self, *, load_in: str, threads: int, gpus: Sequence[int] = (), verbose: bool = False
    ) -> None:
        """`gpus` by NVML's numbers; torch sees these alone, in this order."""
        environment = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML numbers them
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # no whole segments for a part of one
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",  # its threads would wait beside torch's
            "OMP_NUM_THREADS": str(threads),
            # Tensors are read by several threads otherwise, and lie beside each other before their turn.
            "HF_DEACTIVATE_ASYNC_LOAD": "1",
        }
        if precision(load_in).bits == 8:
            # oneDNN keeps a compiled kernel of each shape, 1,024 of them, and outliers have ever new ones.
            environment |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
        super().__init__("memfit.engines.transformers.worker", environment, verbose=verbose)
