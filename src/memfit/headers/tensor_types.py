"""The table of GGUF types: each tensor type (Q4_K, BF16) and file type with number, name and block size.

Source: ggml/include/ggml.h, ggml/src/ggml-common.h and include/llama.h of llama-cpp-python 0.3.36.
Says how many bytes a type takes, not how its numbers are packed, nor which operations support it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FILE_TYPES", "NEED_IMPORTANCE", "TENSOR_TYPES", "WRITTEN", "TensorType"]


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """How one GGML type stores a row: whole blocks, each of a fixed size."""

    name: str  # as ggml.h writes it: "Q4_K"
    block_elements: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Of a weight, with its share of scales."""
        return 8 * self.block_bytes / self.block_elements

    def __post_init__(self) -> None:
        assert self.block_elements > 0 and self.block_bytes > 0


# Numbers that are absent here (4, 5, 31-33, 36-38) were taken out of GGUF; the engine refuses them.
_ROWS = (
    # number, name, elements per block, bytes per block
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
)

TENSOR_TYPES = {
    number: TensorType(name=name, block_elements=elements, block_bytes=size)
    for number, name, elements, size in _ROWS
}

# llama_ftype without "LLAMA_FTYPE_MOSTLY_": what `general.file_type` means.
# They are listed in runs of consecutive numbers; those between were taken out of the format.
FILE_TYPES = {
    number: name
    for first, names in (
        (0, "F32 F16 Q4_0 Q4_1"),
        (7, "Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS"),
        (21, "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16"),
        (36, "TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0"),
    )
    for number, name in enumerate(names.split(), start=first)
}

# Types that need an importance matrix (tensor_requires_imatrix in llama-quant.cpp).
NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
# Types that files are made of: Q4_K_M has Q4_K. The others are for computing, and the quantizer aborts.
WRITTEN = frozenset(
    one.name
    for one in TENSOR_TYPES.values()
    if any(f"{kind}_".startswith(f"{one.name}_") for kind in FILE_TYPES.values())
)
