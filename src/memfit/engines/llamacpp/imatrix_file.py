"""Importance matrices in llama.cpp's GGUF format: for each matrix the mean square of what it is multiplied
with, column by column.

A tensor NAME is there as two: NAME.in_sum2, float32 [columns, experts], sums of squares; and NAME.counts,
float32 [1, experts], how many tokens they are of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from memfit.errors import HeaderError, UsageError
from memfit.headers.gguf import read_header

__all__ = ["COUNTS", "SUMS", "read_imatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path | str) -> dict[str, Any]:
    """For each tensor its columns' mean squares, float32 [experts * columns]; 1 for experts without a token.

    Raises:
        UsageError: the file is missing or damaged, or of another kind.
    """
    path = Path(path)

    def refusal(problem: str) -> UsageError:
        return UsageError(f"--imatrix {path}: {problem}", field="--imatrix")

    if not path.is_file():
        raise refusal("no plain file" if path.exists() else "no such file")
    try:
        header = read_header(path)
    except HeaderError as error:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"  # of another file nothing is quoted
        raise refusal(
            f"a damaged GGUF file: {error}" if is_gguf else "not an importance matrix in GGUF"
        ) from None
    if header.metadata.get("general.type") != "imatrix":
        raise refusal("a GGUF file, but not an importance matrix")
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
            if not all(np.isfinite(one).all() and (one >= 0).all() for one in (sums, counts)):
                raise refusal(f"{name.removesuffix(SUMS)} has numbers that are no mean squares")
            with np.errstate(divide="ignore", invalid="ignore"):
                means = np.where(counts > 0, sums / counts, np.float32(1))
            found[name.removesuffix(SUMS)] = np.ascontiguousarray(means.ravel(), dtype=np.float32)
    if not found:
        raise refusal("it holds no tensor's importance")
    return found
