"""llama.cpp as an engine: GGUF models, planned tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.planning import LlamaPlanner
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.engines.protocol import LoadOptions, PlanOptions
from memfit.engines.worker_session import WorkerSession
from memfit.errors import InterruptedByUser, WorkerDiedError, WrongValueError
from memfit.hardware.machine import is_remote
from memfit.hardware.probe import probe
from memfit.headers.purpose import require_known_purpose, require_writes
from memfit.hub.resolve import ResolvedModel
from memfit.memory.rpc_memory import decode_rpc_memory
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import Plan
from memfit.planner.request import Workload

__all__ = ["ENGINE", "LlamaSession"]

_LOST_DEVICE = re.compile("RPC|ggml-rpc|send failed|recv failed")  # ggml-rpc.cpp's words before it aborts


class LlamaSession(WorkerSession):
    """What llama.cpp adds to a session: devices."""

    plan: LlamaPlan

    def __init__(self, plan: LlamaPlan, options: LoadOptions) -> None:
        """Load the model, as WorkerSession does."""
        devices = plan.config.devices
        super().__init__(plan, options, lambda: LlamaWorker(verbose=options.verbose, yields=bool(devices)))

    def collect(self, tokens: Sequence[int]) -> None:
        """Compute a text alone, and add what matrices are multiplied with to the importance matrix; the plan
        must have memory for it (Workload.importance).

        Raises:
            EngineError: there are values that are no numbers.
            InterruptedByUser: Ctrl-C.
        """
        if self._ask("collect", tokens=list(tokens))["cancelled"]:
            raise InterruptedByUser

    def write_imatrix(self, path: Path, *, text: str, chunks: int, chunk_tokens: int) -> None:
        """Write what was collected as llama.cpp's GGUF file; `text` is the name of what was read, in so many
        chunks.

        Raises:
            OutputError: it cannot be written.
        """
        self._tell("write_imatrix", path=str(path), text=text, chunks=chunks, chunk_tokens=chunk_tokens)

    def begin_probing(self, tokens: Sequence[int], places: Sequence[int], imatrix: Path) -> set[str]:
        """Remember what the model predicts at these places of a text; the plan must be for it
        (Workload.probes). `imatrix` says what counts in matrices; those that it knows are returned."""
        found = self._tell(
            "begin_probing",
            tensors=[asdict(one) for one in self.plan.spec.tensors],
            tokens=list(tokens),
            places=list(places),
            imatrix=str(imatrix),
        )
        return set(found["important"])

    def probe(self, tensors: Mapping[str, str]) -> float:
        """What is lost where these tensors have these types: mean KL from the model as it is, in nats.

        Raises:
            InterruptedByUser: Ctrl-C.
        """
        found = self._ask("probe", tensors=dict(tensors))
        if found["cancelled"]:
            raise InterruptedByUser
        loss: float = found["loss"]
        return loss

    def probe_errors(self, tensor: str, types: Sequence[str], rows: int) -> list[float]:
        """For each type the squared error over some rows of a tensor, each column as it counts."""
        found: list[float] = self._tell("probe_errors", tensor=tensor, types=list(types), rows=rows)["errors"]
        return found

    def _tell(self, do: str, **values: Any) -> dict[str, Any]:
        """What takes seconds and cannot be cancelled: Ctrl-C ends the worker."""
        with self._explaining_death():
            return self._worker.ask(do, **values)

    def _gpu_ids(self) -> dict[str, str | None]:
        names = self.plan.config.devices
        tiers = [tier.name for tier in self.plan.tiers if tier.kind == "vram"]
        used = zip(names, tiers, strict=True) if names else ()
        local = {name: tier for name, tier in used if not is_remote(name)}
        if not local:
            return {}
        seen = self._worker.ask("gpus", wanted=list(local))["gpus"]
        return {local[name]: found["pci_id"] for name, found in seen.items() if name in local}

    def _load_request(self) -> dict[str, Any]:
        tier, config = self.plan.ram, self.plan.config
        read_by_us = self.plan.spec.tensors if config.is_read_by_us else ()
        return {
            "config": config.to_json(),
            "more_bytes": tier.kv_cache_bytes + tier.compute_bytes,
            "tensors": [asdict(one) for one in read_by_us],
            "chat_template": self._options.chat_template,
            "finds_format": self._options.finds_format,
        }

    def _doubt(self) -> None:
        LlamaCalibration(cpu_model=probe().cpu.model, say=lambda _: None).doubt()

    def _device_peaks(self) -> dict[str, int | None]:
        names = self.plan.config.devices
        tiers = [tier.name for tier in self.plan.tiers if tier.kind == "vram"]
        peaks: dict[str, int | None] = dict.fromkeys(tiers, 0)
        if not names:
            return peaks
        answers = self._ask("device_memory", names=list(names))["devices"]
        for tier, name in zip(tiers, names, strict=True):
            lent = decode_rpc_memory(*answers[name])
            peaks[tier] = lent.peak_bytes if lent else self._meter.gpu_peak_bytes(tier)
        return peaks

    def _explain(self, error: WorkerDiedError) -> WorkerDiedError:
        """The engine aborts where a remote device is lost."""
        remote = [name for name in self.plan.config.devices if is_remote(name)]
        if not remote or not _LOST_DEVICE.search(str(error)):
            return error
        return WorkerDiedError(
            f"lost {' or '.join(remote)}: its worker ended, or closed the connection; {error}"
        )


class LlamaEngine:
    """Satisfies protocol.Engine."""

    def accepts(self, model: ResolvedModel) -> bool:
        return not model.is_checkpoint

    def planner(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> LlamaPlanner:
        if options.load_in or options.double_quant or options.trust_remote_code:
            raise WrongValueError(
                "load_in",
                ", --double-quant and --trust-remote-code are for transformers; with --engine "
                "transformers it dequantizes a GGUF file",
            )
        spec = model.read_spec()
        (require_writes if options.writes else require_known_purpose)(spec)
        return LlamaPlanner(spec, options, workload)

    def load(self, plan: Plan, options: LoadOptions) -> LlamaSession:
        assert isinstance(plan, LlamaPlan)
        return LlamaSession(plan, options)


ENGINE = LlamaEngine()
