"""Importance matrices in llama.cpp's GGUF format: for each matrix the mean square of what it is multiplied
with, column by column.

A tensor NAME is there as two: NAME.in_sum2, float32 [columns, experts], sums of squares; and NAME.counts,
float32 [1, experts], how many tokens they are of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from memfit.errors import HeaderError, ModelNotFoundError, UsageError
from memfit.headers.gguf import read_header

__all__ = ["COUNTS", "SUMS", "read_imatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path | str) -> dict[str, Any]:
    """For each tensor its columns' mean squares, float32 [experts * columns]; 1 for experts without a token.

    Raises:
        UsageError: the file is missing or damaged, or of another kind.
    """
    path = Path(path)
    try:
        header = read_header(path)
    except ModelNotFoundError:
        raise UsageError(f"--imatrix {path}: no such file") from None
    except HeaderError as error:
        raise UsageError(f"--imatrix {path}: not an importance matrix in GGUF: {error}") from None
    if header.metadata.get("general.type") != "imatrix":
        raise UsageError(f"--imatrix {path}: a GGUF file, but not an importance matrix")
    stored = {
        tensor.name: np.fromfile(
            path, dtype=np.float32, count=tensor.elements, offset=tensor.offset_bytes
        ).reshape(tensor.shape[::-1])
        for tensor in header.tensors
        if tensor.type == "F32"
    }
    found = {}
    for name, sums in stored.items():
        counts = stored.get(name.removesuffix(SUMS) + COUNTS)
        if name.endswith(SUMS) and counts is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                means = np.where(counts > 0, sums / counts, np.float32(1))
            found[name.removesuffix(SUMS)] = np.ascontiguousarray(means.ravel(), dtype=np.float32)
    if not found:
        raise UsageError(f"--imatrix {path}: it holds no tensor's importance")
    return found
