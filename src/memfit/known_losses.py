"""What models lose, as it was measured here: kept by the content of their files, for whoever plans them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from memfit.engines.calibration import KeptAnswers
from memfit.errors import UsageError
from memfit.hardware.folders import cache_folder
from memfit.headers.model_spec import ModelSpec
from memfit.planner.fingerprint import FileMark
from memfit.planner.loss import Loss, expected_loss
from memfit.planner.plan import Plan
from memfit.strict_json import JsonReader

__all__ = ["keep_loss", "known_loss", "loss_of", "with_loss"]

_FORMAT = "1"
_SAME_MODEL = 0.9  # of the parameters; some quantizations write the output matrix twice, or pad rows


def with_loss(plan: Plan) -> Plan:
    """A plan that says what its model loses; as it is where it is a checkpoint's."""
    if plan.engine != "llamacpp" or plan.fingerprint is None or plan.embeds:
        return plan
    return replace(plan, loss=loss_of(plan.spec, plan.fingerprint.files))


def loss_of(spec: ModelSpec, files: Sequence[FileMark]) -> Loss:
    """What was measured of these files, else what is expected of their type."""
    return known_loss(files) or expected_loss(spec.quantization, 8 * spec.file_bytes / max(1, spec.n_params))


def known_loss(files: Sequence[FileMark]) -> Loss | None:
    """What was measured of these files."""
    kept = _answers().find(_question(files))
    try:
        return JsonReader("a known loss").read_object(Loss, kept) if kept else None
    except UsageError:  # not as this version writes it
        return None


def keep_loss(plan: Plan, reference: Plan, *, mean_kl: float, error: float, tokens: int) -> None:
    """Keep what a planned model was found to lose against another, where that is its source: a larger file of
    as many parameters. What was measured against a yet larger one, or over more tokens, stays."""
    if plan.engine != "llamacpp" or plan.facts["kv_type"] != "f16":
        return
    theirs = reference.spec
    sizes = sorted((plan.spec.n_params, theirs.n_params))
    is_quantized = plan.spec.file_bytes < theirs.file_bytes and sizes[0] >= _SAME_MODEL * sizes[1]
    files = plan.fingerprint.files if plan.fingerprint else ()
    if not (files and is_quantized):
        return
    known = known_loss(files)
    if known and (known.reference_bytes or 0, known.tokens or 0) > (theirs.file_bytes, tokens):
        return
    loss = Loss(
        mean_kl=mean_kl,
        basis="measured",
        reference=theirs.source,
        error=error,
        tokens=tokens,
        reference_bytes=theirs.file_bytes,
    )
    _answers().keep(_question(files), asdict(loss))


def _answers() -> KeptAnswers:
    return KeptAnswers(cache_folder() / "losses", _FORMAT, kept_seconds=None)


def _question(files: Sequence[FileMark]) -> str:
    return " ".join(f"{one.size_bytes}:{one.sha256}" for one in files)
