"""The precisions that transformers loads a model in, one row each: the only place that knows what they are.

With bitsandbytes only the weights of linear layers are quantized; all else, and the KV cache, keeps the plain
type. A checkpoint that is quantized already is loaded as it is stored, as far as kernels compute on that
(packed_weights.py), or unpacked into another row of the table. Knows bits and bytes, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LOAD_IN", "PRECISIONS", "STORED", "Precision", "precision", "stored_precision"]

STORED = "stored"
_PLAIN = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}  # torch's name, bytes
_SCALE_BYTES = 4  # float32
_CODE_BYTES = 16 * 4  # the 4-bit code book; every layer has its own copy
_NESTED_CODE_BYTES = 256 * 4  # the 8-bit one of scales, likewise
_OFFSET_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How weights are held."""

    name: str  # "nf4-dq" is nf4 with double quantization, "stored" what a quantized checkpoint holds
    plain_type: str = "bf16"  # of what is not quantized: "fp32", "bf16" or "fp16"
    bits: int | None = None  # of a linear layer's weight; None: nothing is quantized
    block: int = 0  # weights that share one scale; 0: those of an output row
    nested_block: int = 0  # scales that share one scale of their own: double quantization; 0: none do

    @property
    def load_in(self) -> str:
        """The value of --load-in."""
        return self.name.removesuffix("-dq")

    @property
    def is_quantized(self) -> bool:
        """By bitsandbytes, while loading."""
        return self.bits is not None

    @property
    def is_stored(self) -> bool:
        """Weights stay as packed_weights.py says."""
        return self.name == STORED

    @property
    def packages(self) -> tuple[str, ...]:
        """What must be installed beside transformers."""
        return ("bitsandbytes",) if self.is_quantized else ()

    @property
    def dtype(self) -> str:
        """torch's name of the plain type."""
        return _PLAIN[self.plain_type][0]

    @property
    def element_bytes(self) -> int:
        """Of what is not quantized, the KV cache too."""
        return _PLAIN[self.plain_type][1]

    def packed_bytes(self, elements: int) -> int:
        """A linear layer's weights; an odd number of 4-bit ones is padded by one."""
        assert self.bits is not None
        return -(-elements * self.bits // 8)

    def blocks(self, elements: int) -> int:
        return -(-elements // self.block)

    def state_bytes(self, rows: int, elements: int) -> int:
        """Scales and code books of a linear layer with so many output rows.

        INT8: SCB, a float32 for each row. 4 bits: a float32 for each block, and the code book. With double
        quantization a byte for each block, and for those bytes an offset, a float32 for each nested block,
        and their code book.
        """
        if not self.block:
            return rows * _SCALE_BYTES
        blocks = self.blocks(elements)
        if not self.nested_block:
            return blocks * _SCALE_BYTES + _CODE_BYTES
        scales = -(-blocks // self.nested_block) * _SCALE_BYTES
        return blocks + scales + _NESTED_CODE_BYTES + _OFFSET_BYTES + _CODE_BYTES


_TABLE = {
    row.name: row
    for row in (
        Precision(name="fp32", plain_type="fp32"),
        Precision(name="bf16"),
        Precision(name="fp16", plain_type="fp16"),
        Precision(name="int8", bits=8),
        Precision(name="nf4", bits=4, block=64),
        Precision(name="nf4-dq", bits=4, block=64, nested_block=256),
        Precision(name="fp4", bits=4, block=64),
        Precision(name="fp4-dq", bits=4, block=64, nested_block=256),
        Precision(name=STORED),
    )
}
LOAD_IN = tuple(dict.fromkeys(row.load_in for row in _TABLE.values()))
PRECISIONS = ("fp32", "bf16", "int8", "nf4", "nf4-dq")  # those that differ in bytes


def precision(name: str, *, double_quant: bool = False) -> Precision:
    return _TABLE[name + "-dq" * double_quant]


def stored_precision(dtype: str | None) -> Precision:
    """Of a checkpoint whose config.json says `dtype`; float32 where it says nothing."""
    return next(row for row in _TABLE.values() if row.dtype == (dtype or "float32"))
