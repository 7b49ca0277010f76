"""What each tensor of a model loses in each type: expected KL, from few measurements.

    loss(tensor, type) = loss(tensor, probe) * error(tensor, type) / error(tensor, probe)

loss(tensor, probe) is measured: the model's predictions with that tensor alone in the type `probe`, against
those without. error is the squared error of a sample of its rows, each column as its inputs' mean square
counts; how much a matrix matters, only the measurement knows.
Ignored: that losses do not quite add up, and that they grow slower than errors where both are large. What all
matrices of a kind (attention's keys, say) lose together in the types that they would get is measured, too,
and corrects their losses (`corrected`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memfit.engines.llamacpp.engine import LlamaSession
from memfit.headers.model_spec import TensorSpec
from memfit.headers.tensor_types import TENSOR_TYPES
from memfit.quantize.choice import Option

__all__ = ["TYPES", "corrected", "measure_losses", "probe_places", "tensor_bytes"]

_PROBES = ("Q3_K", "Q4_0")  # the first that divides the rows
_SKIPPED = 64  # tokens that a text begins with, whose predictions know little
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_MOST = 4.0  # times that a loss is corrected
_SAMPLE = 1 << 15  # numbers of a tensor, whose errors stand for all
TYPES = {one.name: one for one in TENSOR_TYPES.values()}


def probe_places(context: int, count: int) -> list[int]:
    """Where in a text predictions are compared."""
    begin = min(_SKIPPED, context // 2)
    step = max(1, (context - begin) // count)
    return list(range(begin, context, step))[:count]


def measure_losses(
    session: LlamaSession,
    tensors: Sequence[TensorSpec],
    types: Mapping[str, Sequence[str]],
    on_tensor: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Mapping[str, Option]]:
    """Of each of `tensors` in its `types`. `on_tensor` hears how many are done, and all.

    Raises:
        InterruptedByUser: Ctrl-C.
    """
    found: dict[str, Mapping[str, Option]] = {}
    # Where activations are rounded, any change at all changes predictions.
    noise = session.probe({tensors[len(tensors) // 2].name: "Q8_0"}) if tensors else 0.0
    for done, tensor in enumerate(tensors, start=1):
        kinds = types[tensor.name]
        probe = next(kind for kind in _PROBES if tensor.shape[0] % TYPES[kind].block_elements == 0)
        rows = max(1, _SAMPLE // tensor.shape[0])
        errors = session.probe_errors(tensor.name, [probe, *kinds], rows)
        loss = max(0.0, session.probe({tensor.name: probe}) - noise) / (errors[0] or 1.0)
        found[tensor.name] = {
            kind: Option(
                size_bytes=tensor_bytes(tensor, kind), loss=0.0 if kind == tensor.type else loss * error
            )
            for kind, error in zip(kinds, errors[1:], strict=True)
        }
        on_tensor(done, len(tensors))
    return found


def corrected(
    session: LlamaSession,
    losses: Mapping[str, Mapping[str, Option]],
    types: Mapping[str, str],
    on_kind: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Mapping[str, Option]]:
    """`losses`, of each kind of matrix by what all of its matrices lose together in `types`."""
    kinds: dict[str, list[str]] = {}
    for name in types:
        kinds.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(name)
    found: dict[str, Mapping[str, Option]] = {}
    for done, names in enumerate(kinds.values(), start=1):
        expected = math.fsum(losses[name][types[name]].loss for name in names)
        together = session.probe({name: types[name] for name in names})
        factor = min(_MOST, max(1 / _MOST, together / expected)) if expected else 1.0
        for name in names:
            found[name] = {kind: replace(one, loss=factor * one.loss) for kind, one in losses[name].items()}
        on_kind(done, len(kinds))
    return found


def tensor_bytes(tensor: TensorSpec, kind: str) -> int:
    """In a file, where tensors are padded."""
    one = TYPES[kind]
    size = tensor.elements // one.block_elements * one.block_bytes
    return -(-size // _ALIGNMENT) * _ALIGNMENT
