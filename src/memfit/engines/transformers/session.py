"""A checkpoint that transformers runs: what its session adds is a folder for what stays on the disk, and what
transformers itself says of its memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from memfit.engines.protocol import LoadOptions
from memfit.engines.report import ModelBytes
from memfit.engines.transformers.calibrate import cached_figures
from memfit.engines.transformers.gguf_files import convert
from memfit.engines.transformers.process import TransformersWorker
from memfit.engines.worker_session import WorkerSession
from memfit.errors import ModelError
from memfit.hardware.folders import cache_folder, scratch_folder
from memfit.hardware.nvidia import read_gpus
from memfit.hardware.probe import probe
from memfit.planner.transformers.transformers_plan import TransformersPlan

__all__ = ["TransformersSession"]


class TransformersSession(WorkerSession):
    """What transformers adds to a session: a folder for offloaded layers, and its own account of memory."""

    plan: TransformersPlan

    def __init__(self, plan: TransformersPlan, options: LoadOptions) -> None:
        """Load the model, as WorkerSession does.

        Raises:
            ModelError: also where the disk has no room for what stays on it, or what a GGUF file becomes.
        """
        if plan.config.gguf:
            self.require_loadable(plan)
            plan, self._earlier_peak_bytes = convert(plan, count_parent=options.count_parent)
        config = plan.config
        with contextlib.ExitStack() as opened:
            self._folder = opened.enter_context(_offload_folder(plan.offloaded_bytes, plan.written_bytes))
            super().__init__(
                plan,
                options,
                lambda: TransformersWorker(
                    load_in=config.load_in, threads=config.threads, gpus=config.gpus, verbose=options.verbose
                ),
            )
            self._opened.push(opened.pop_all())

    def _gpu_ids(self) -> dict[str, str | None]:
        used = self.plan.config.gpus
        gpus, _ = read_gpus() if used else ((), None)
        return {f"gpu{gpu.index}": gpu.pci_id for gpu in gpus if gpu.index in used}

    def _model_bytes(self) -> ModelBytes:
        """What transformers says beside what is there."""
        found, loading = self._ask("model_bytes"), self._loaded["loading_peak_bytes"]
        return ModelBytes(
            by_dtype=found["by_dtype"],
            tensors=found["tensors"],
            reported_bytes=found["reported_bytes"],
            loaded_bytes=sum(self._loaded["loaded_bytes"].values()),
            steady_bytes=self._meter.held_bytes(),
            steady_predicted_bytes=self.plan.steady_bytes,
            loading_bytes=max(self._earlier_peak_bytes, self._meter.together(loading)),
            loading_predicted_bytes=self.plan.loading_bytes,
        )

    @property
    def torch_gpu_bytes(self) -> list[int]:
        """What torch's allocator has taken at most, by GPU; the driver's context is not in it."""
        return list(self._ask("model_bytes")["gpu_bytes"])

    @property
    def loaded_bytes(self) -> int:
        """In RAM after loading and before the first pass, all processes."""
        return self._meter.together(self._loaded["resident_bytes"])

    def _doubt(self) -> None:
        cached_figures(probe().cpu.model, lambda _: None).doubt()

    def _load_request(self) -> dict[str, Any]:
        return {"config": self.plan.config.to_json(), "offload_folder": self._folder}


@contextlib.contextmanager
def _offload_folder(offloaded_bytes: int, size_bytes: int) -> Iterator[str | None]:
    """A folder on a real disk with room for `size_bytes`, removed at the end; None where no layer stays on
    the disk."""
    if not offloaded_bytes:
        yield None
        return
    where = cache_folder()
    where.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(where).free
    if free < size_bytes:
        raise ModelError(
            f"{where} has {free} bytes free, and {size_bytes} bytes of weights stay on the disk; free some, "
            "or set XDG_CACHE_HOME to a folder on another disk"
        )
    with scratch_folder(where, "offload-") as folder:
        yield str(folder)
