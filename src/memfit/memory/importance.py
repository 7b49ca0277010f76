"""What an importance matrix takes while it is collected: a float32 for each column of each matrix in a layer,
and of each expert.

Matrices that are multiplied with the same share theirs, which is not known before; then it is less.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from memfit.headers.model_spec import TensorSpec

__all__ = ["importance_bytes"]


def importance_bytes(tensors: Iterable[TensorSpec]) -> int:
    matrices = (one.shape for one in tensors if one.name.startswith("blk.") and len(one.shape) > 1)
    return sum(4 * shape[0] * prod(shape[2:]) for shape in matrices)
