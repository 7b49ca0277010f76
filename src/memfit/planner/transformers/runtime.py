"""What was measured of this machine's torch, transformers and bitsandbytes, for plans to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memfit.units import MIB

__all__ = ["UNUSED_BYTES", "GpuRuntime", "Runtime"]

# On a GPU: what torch's allocator rounds up, and the work space of cuBLAS, which may be 32 MiB. Assumed.
UNUSED_BYTES = 64 * MIB


@dataclass(frozen=True, kw_only=True)
class GpuRuntime:
    """A GPU that may be used, and what running there takes."""

    number: int  # NVML's
    budget_bytes: int
    limit_bytes: int  # the budget, or what is free where that is less
    process_bytes: int  # the driver's context and kernels, outside of torch's memory

    @property
    def name(self) -> str:
        return f"gpu{self.number}"

    @property
    def room_bytes(self) -> int:
        return self.limit_bytes - self.process_bytes - UNUSED_BYTES


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Of its CPU, or of its GPUs."""

    process_bytes: int  # memfit's processes without the model: libraries, tokenizer, kernels
    loading_process_bytes: int  # the same until the first pass
    starting_bytes: int  # at most, before there are weights: reading a tokenizer takes more than having it
    packs_4bit: bool  # AVX512-BF16: bitsandbytes packs 4-bit weights anew at the first pass
    layer_seconds: float  # of one token in one decoder layer with next to nothing in it
    elements_per_second: Mapping[str, float]  # weights past one token, by precision
    operations_per_second: Mapping[str, float]  # of a prompt, by precision
    disk_bytes_per_second: float
    gpus: tuple[GpuRuntime, ...] = ()  # whose memory and speed the figures above are of, where there are any
    link_bytes_per_second: float = 0.0  # from RAM to them
    converting_bytes: int = 0  # at most, while a GGUF file becomes a checkpoint
    basis: str = "calibrated"

    @property
    def main(self) -> str:
        """The device that has what is no layer, and computes what no other one does."""
        return self.gpus[0].name if self.gpus else "cpu"
