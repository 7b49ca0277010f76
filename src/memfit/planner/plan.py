"""A Plan: what will lie where, with which config, how fast, and why. A value; it runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from memfit.errors import DoesNotFitError, UsageError
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.planner.fingerprint import Fingerprint
from memfit.planner.loss import Loss
from memfit.planner.request import Workload
from memfit.planner.speed import Prediction, Rate

__all__ = ["Change", "Plan", "TierUse"]


@dataclass(frozen=True, kw_only=True)
class TierUse:
    """One tier's budget, and what of it the plan fills."""

    name: str
    kind: str  # "ram", "vram" or "disk"
    budget_bytes: int
    limit_bytes: int  # what may be used: the budget, or what is free where that is less
    # Bytes by name, in the order in which they are shown: "weights"; "kv_cache"; "compute"; and "overhead":
    # processes, libraries, vocabulary, driver, and what only loading needs.
    parts: Mapping[str, int]
    # What an RPC server's own limit counts while it is sent tensors: buffers whole, before they are filled.
    reserved_bytes: int = 0

    @classmethod
    def of(cls, name: str, budget_bytes: int, limit_bytes: int, **parts: int) -> TierUse:
        """The kind follows from the name: "ram", "disk", or a device's."""
        kind = name if name in ("ram", "disk") else "vram"
        return cls(name=name, kind=kind, budget_bytes=budget_bytes, limit_bytes=limit_bytes, parts=parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "budget_bytes": self.budget_bytes,
            "limit_bytes": self.limit_bytes,
            **{f"{name}_bytes": size for name, size in self.parts.items()},
            "reserved_bytes": self.reserved_bytes,
            "total_bytes": self.total_bytes,
        }

    @property
    def weights_bytes(self) -> int:
        return self.parts["weights"]

    @property
    def kv_cache_bytes(self) -> int:
        return self.parts["kv_cache"]

    @property
    def compute_bytes(self) -> int:
        return self.parts["compute"]

    @property
    def needs_bytes(self) -> int:
        """What must be had, be it only for a moment."""
        return max(self.total_bytes, self.reserved_bytes)

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a plan's speeds would be with one thing changed."""

    what: str  # "--ctx 2048", "2.00 GiB more on gpu0"
    prediction: Prediction


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer to "will it fit, and how fast will it be". A plan that does not fit cannot be run."""

    spec: ModelSpec
    context: int  # tokens the engine will really hold
    tiers: tuple[TierUse, ...]
    prediction: Prediction
    why: tuple[str, ...]
    # What the planner would have chosen itself, were it not for the user's conditions on the placement.
    own_choice: Prediction | None = None
    changes: tuple[Change, ...] = ()  # only where they were asked for
    suggestions: tuple[str, ...] = ()  # options that do fit; only where this plan does not
    workload: Workload = field(default_factory=Workload)  # what it was made for
    config: LlamaConfig | TransformersConfig  # what the engine is told
    fingerprint: Fingerprint | None = None  # of model and machine; None: cannot be read back once it is saved
    # What the model's quantization loses: found anew where a saved plan is read, so no part of what it says.
    loss: Loss | None = field(default=None, compare=False)
    engine: ClassVar[str]  # its name: llamacpp or transformers

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the engine will be told, for people and programs to see; the keys are of the plan's JSON."""
        raise NotImplementedError

    @property
    def settings(self) -> str:
        """The same in one line."""
        raise NotImplementedError

    @property
    def identity(self) -> Mapping[str, Any]:
        """What of `facts` the answers depend on, beside the files: another precision than theirs."""
        return {}

    @property
    def parallel(self) -> int:
        """Sequences."""
        return 1

    @property
    def sequence_context(self) -> int:
        """Tokens that one sequence may have."""
        return self.context

    @property
    def embeds(self) -> bool:
        """Whether texts become embeddings or scores, and nothing is generated."""
        return False

    @property
    def ubatch(self) -> int:
        """Tokens of a prompt per pass."""
        return self.config.ubatch

    @property
    def ram(self) -> TierUse:
        return next(tier for tier in self.tiers if tier.kind == "ram")

    @property
    def overfull(self) -> TierUse | None:
        """The tier that what is planned does not fit into; RAM first, which takes what devices do not."""
        return next((tier for tier in self.tiers if tier.needs_bytes > tier.limit_bytes), None)

    @property
    def streamed_bytes(self) -> int:
        """What each pass reads from the disk."""
        return 0

    def _disk(self) -> tuple[TierUse, ...]:
        """What stays in the file, for people to see."""
        if not self.streamed_bytes:
            return ()
        whole = self.spec.file_bytes
        parts = {"weights": self.streamed_bytes, "kv_cache": 0, "compute": 0, "overhead": 0}
        return (TierUse.of("disk", whole, whole, **parts),)

    @property
    def fits(self) -> bool:
        return self.overfull is None

    def require_fit(self) -> None:
        """Raises DoesNotFitError unless the plan fits."""
        if error := self._refusal:
            error.plan = self.to_json()
            raise error

    @property
    def _refusal(self) -> DoesNotFitError | None:
        tier = self.overfull
        if tier is None:
            return None
        return DoesNotFitError(
            tier=tier.name.upper() if tier.kind == "ram" else tier.name,
            needs_bytes=tier.needs_bytes,
            budget_bytes=tier.limit_bytes,
            suggestions=self.suggestions,
        )

    def require_writes(self) -> None:
        """Raises UsageError where nothing is generated with the plan."""
        if self.embeds:
            raise UsageError(
                f"the plan of {self.spec.source} is for embeddings, and generates nothing; "
                "memfit serve serves it"
            )

    def require_embeds(self) -> None:
        """Raises UsageError where the plan makes no embeddings."""
        if not self.embeds:
            raise UsageError(
                "this plan makes no embeddings; make one with --embeddings, or in Python with "
                "Workload(embeds=True)"
            )

    def require_scores(self) -> None:
        """Raises UsageError where the plan has no memory for the logits of scored texts."""
        if not self.workload.outputs:
            raise UsageError("this plan has no memory for scores; make one with Workload(outputs=32)")

    def require_schemas(self) -> None:
        """Raises UsageError where answers cannot be held to a JSON schema."""
        raise UsageError("answers are held to JSON schemas by llama.cpp only; take a GGUF file")

    def require_extras(self, names: Sequence[str]) -> None:
        """Raises UsageError where answers cannot be shaped by these."""
        raise UsageError(f"{', '.join(names)}: llama.cpp only; take a GGUF file", field=names[0])

    def to_json(self) -> dict[str, Any]:
        """The JSON of `plan`, as in docs/json.md."""
        values: dict[str, Any] = {
            "model": {
                "source": self.spec.source,
                "architecture": self.spec.architecture,
                "name": self.spec.name,
                "file_bytes": self.spec.file_bytes,
                "parameters": self.spec.n_params,
                "quantization": self.spec.quantization,
                "loss": self.loss and asdict(self.loss),
            },
            "engine": self.engine,
            "context": self.context,
            "parallel": self.parallel,
            "ubatch": self.ubatch,
            **self.facts,
            "fits": self.fits,
            "why": list(self.why),
            "tiers": [tier.to_json() for tier in (*self.tiers, *self._disk())],
            "streamed_bytes_per_pass": self.streamed_bytes,
            "predicted": {
                "prompt_tokens_per_second": _rate_json(self.prediction.prompt),
                "generation_tokens_per_second": _rate_json(self.prediction.generation),
                "together_tokens_per_second": _rate_json(self.prediction.together),
                "basis": self.prediction.basis,
            },
            "workload": asdict(self.workload),
            "prediction": asdict(self.prediction),
            "own_choice": self.own_choice and asdict(self.own_choice),
            "changes": [asdict(change) for change in self.changes],
            "config": self.config.to_json(),
            "fingerprint": self.fingerprint and asdict(self.fingerprint),
        }
        return values | error.to_json() if (error := self._refusal) else values


def _rate_json(rate: Rate | None) -> dict[str, float] | None:
    if rate is None:
        return None
    return {"value": round(rate.value, 2), "low": round(rate.low, 2), "high": round(rate.high, 2)}
