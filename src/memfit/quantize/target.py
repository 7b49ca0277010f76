"""The best file of at most a size: which type each tensor gets, by what was measured of the model.

First an importance matrix is collected, where none is given; then each tensor's loss is measured; then types
are chosen. All of it on one loaded model, inside its plan's budget: some hundred tokens for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memfit.engines.llamacpp.engine import LlamaSession
from memfit.errors import UsageError
from memfit.evaluate.perplexity import Load, Tokens
from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.headers.tensor_types import NEED_IMPORTANCE
from memfit.planner.plan import Plan
from memfit.quantize.choice import Option
from memfit.quantize.choice_process import choose_apart
from memfit.quantize.importance import collect
from memfit.quantize.job import Quantized, Quantizer, Recipe
from memfit.quantize.losses import TYPES, corrected, measure_losses, probe_places, tensor_bytes
from memfit.units import format_bytes

__all__ = ["PLACES", "Chosen", "Measured", "fit", "measure"]

PLACES = 224  # of a text, where predictions are compared
_IMATRIX_CHUNKS = 40  # at most
_NOTE_BYTES = 512  # at most, what the file's header says of the importance matrix
# Bits a weight, and the type that a file of about as many is called by.
_CALLED = ((3.2, "Q2_K"), (4.3, "Q3_K_M"), (5.2, "Q4_K_M"), (6.1, "Q5_K_M"), (7.5, "Q6_K"), (9.0, "Q8_0"))
_OTHERS = (
    *("Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1"),
    *("Q6_K", "Q8_0"),
)
_CANDIDATES = (*NEED_IMPORTANCE, *_OTHERS)
_FEWER, _MORE = 0.45, 2.5  # times the mean bits: types beyond are not tried

_Step = Callable[[str, int, int], None]  # what is done, how many of it, and of how many


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What each tensor would lose in each type, and what of a file is the same whatever they get."""

    losses: Mapping[str, Mapping[str, Option]]
    rest_bytes: int
    imatrix: Path


@dataclass(frozen=True, kw_only=True)
class Chosen:
    recipe: Recipe
    looked: Quantized
    expected_loss: float  # mean KL from the source, in nats a token, as the sum of what tensors lose


def measure(
    quantizer: Quantizer,
    spec: ModelSpec,
    load: Load,
    plan: Plan,
    tokens: Tokens,
    *,
    imatrix: Path,
    text: str | None,
    threads: int,
    cap_bytes: int | None = None,
    on_step: _Step = lambda *_: None,
) -> Measured:
    """With the name of a `text` an importance matrix is first collected over it, and written to `imatrix`.
    For a cap only types near it are measured.

    Raises:
        UsageError: not even the smallest types are small enough.
        InterruptedByUser: Ctrl-C.
    """
    base = quantizer.look(spec, Recipe(file_type="Q8_0"), threads=threads)
    quantizer.rest()
    tensors = [one for one in spec.tensors if base.tensors[one.name] == "Q8_0"]
    rest_bytes = _NOTE_BYTES + base.file_bytes - sum(tensor_bytes(one, "Q8_0") for one in tensors)
    if cap_bytes is not None:  # as far as can be said before all that takes long
        smallest = rest_bytes + sum(tensor_bytes(one, _fitting(one, True)[0]) for one in tensors)
        _require_room(spec, smallest, cap_bytes)
    with load(plan) as session:
        assert isinstance(session, LlamaSession)
        if text:
            chunks = tokens.chunks[:_IMATRIX_CHUNKS]
            told = partial(on_step, "importance: chunk")
            collect(session, chunks, imatrix, text=text, on_chunk=lambda done: told(done, len(chunks)))
        places = probe_places(tokens.context, PLACES)
        important = session.begin_probing(tokens.chunks[0], places, imatrix)
        types: Mapping[str, Sequence[str]] = {
            one.name: _fitting(one, one.name in important) for one in tensors
        }
        if cap_bytes is not None:
            smallest = rest_bytes + sum(tensor_bytes(one, types[one.name][0]) for one in tensors)
            _require_room(spec, smallest, cap_bytes)
            types = _near(tensors, types, cap_bytes - rest_bytes)
        losses = measure_losses(session, tensors, types, partial(on_step, "loss: tensor"))
        if cap_bytes is not None and (chosen := choose_apart(losses, cap_bytes - rest_bytes)):
            losses = corrected(session, losses, chosen, partial(on_step, "loss: kind of tensor"))
    return Measured(losses=losses, rest_bytes=rest_bytes, imatrix=imatrix)


def fit(quantizer: Quantizer, spec: ModelSpec, measured: Measured, cap_bytes: int, *, threads: int) -> Chosen:
    """A type for each tensor, so that the file is at most so large and the least is lost.

    Raises:
        UsageError: not even the smallest types are small enough.
    """
    losses = measured.losses
    types = choose_apart(losses, cap_bytes - measured.rest_bytes)
    if types is None:
        least = sum(min(one.size_bytes for one in kinds.values()) for kinds in losses.values())
        _require_room(spec, measured.rest_bytes + least, cap_bytes)
        raise AssertionError("what fits is found")
    found = [losses[name][kind] for name, kind in types.items()]
    elements = sum(one.elements for one in spec.tensors if one.name in types)
    bits = 8 * sum(one.size_bytes for one in found) / max(1, elements)
    called = next((name for most, name in _CALLED if bits <= most), spec.quantization)
    recipe = Recipe(file_type=called, types=types, imatrix=measured.imatrix)
    looked = quantizer.look(spec, recipe, threads=threads)
    assert looked.file_bytes <= cap_bytes, "what is beside the tensors was counted"
    return Chosen(recipe=recipe, looked=looked, expected_loss=math.fsum(one.loss for one in found))


def _require_room(spec: ModelSpec, smallest: int, cap_bytes: int) -> None:
    if smallest > cap_bytes:
        raise UsageError(
            f"the smallest possible file of {spec.source} takes {format_bytes(smallest)}, and the target is "
            f"{format_bytes(cap_bytes)}",
            field="--target-size",
            got=cap_bytes,
            needed=smallest,
        )


def _fitting(tensor: TensorSpec, is_important: bool) -> list[str]:
    """Types that divide its rows, the smallest first; its own too, which loses nothing."""
    return [
        kind
        for kind in sorted({*_CANDIDATES, tensor.type}, key=lambda kind: TYPES[kind].bits)
        if tensor.shape[0] % TYPES[kind].block_elements == 0 and (is_important or kind not in NEED_IMPORTANCE)
    ]


def _near(
    tensors: Sequence[TensorSpec], types: Mapping[str, Sequence[str]], room_bytes: int
) -> Mapping[str, Sequence[str]]:
    """Those that may be worth it where the tensors have so much room; all where only the smallest fit."""
    bits = 8 * room_bytes / max(1, sum(one.elements for one in tensors))
    near = {
        name: [kind for kind in kinds if _FEWER * bits <= TYPES[kind].bits <= _MORE * bits]
        for name, kinds in types.items()
    }
    fits = all(near.values()) and room_bytes >= sum(tensor_bytes(one, near[one.name][0]) for one in tensors)
    return near if fits else types
