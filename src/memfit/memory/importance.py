"""What is held beside a model while its importance matrix is collected, or its matrices are changed.

    collecting    a float32 for each column of each matrix in a layer, and of each expert
    probing       the same, as the matrix is read; predictions; tables of the types of few bits; and the
                  process that chooses types meanwhile (measured with 211 to 1,500 tensors of 15 types)

Matrices that are multiplied with the same share their part of the first, which is not known before; then it
is less.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from memfit.headers.model_spec import TensorSpec
from memfit.units import KIB, MIB

__all__ = ["importance_bytes"]

_COLLECTING_BYTES = 4 * MIB  # of numpy, between its arrays
_PROBING_BYTES = 16 * MIB
_CHOOSING_BYTES = 34 * MIB
_CHOICE_BYTES = 28 * KIB  # for each tensor


def importance_bytes(tensors: Iterable[TensorSpec], *, collects: bool, probes: bool) -> int:
    """0 where neither is planned."""
    shapes = [one.shape for one in tensors if one.name.startswith("blk.") and len(one.shape) > 1]
    once = sum(4 * shape[0] * prod(shape[2:]) for shape in shapes)
    probing = once + _PROBING_BYTES + _CHOOSING_BYTES + len(shapes) * _CHOICE_BYTES
    return collects * (once + _COLLECTING_BYTES) + probes * probing
