"""What the user asks for: a budget and a workload, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from memfit.errors import UsageError
from memfit.hardware.machine import Ram
from memfit.units import MIB, parse_size

__all__ = ["KV_TYPES", "RESERVE_BYTES", "Budget", "Workload"]

KV_TYPES = ("f16", "q8_0", "q4_0")
RESERVE_BYTES = 512 * MIB  # left to everybody else where no budget is given
_MOST_TOKENS = 2**31 - 1  # the engine counts them in 32 bits


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Hard caps on what memfit's processes hold, runtime overhead included."""

    ram: str | int | None = None  # bytes, or a size such as "8GiB" or "90%"; None: what is free

    def ram_bytes(self, ram: Ram) -> int:
        """The cap in bytes on this machine.

        Raises:
            UsageError: not a size.
        """
        if self.ram is None:
            return max(1, ram.available_bytes - RESERVE_BYTES)
        try:
            return parse_size(str(self.ram), free_bytes=ram.available_bytes)
        except ValueError as error:
            raise UsageError(f"--ram: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How the model will be used. None and "auto" leave the choice to the planner."""

    context: int | None = None  # tokens over all sequences; None: 4096, or the model's if smaller
    parallel: int = 1  # sequences
    kv_type: str = "auto"  # f16 unless only q8_0 makes it fit
    threads: int | None = None  # None: the physical cores this process may use
    repack: str = "auto"  # "on" and "off" are obeyed; auto takes what the kernels measure faster
    prompt_tokens: int = 512  # expected of a typical request; weighs prompt against generation speed
    generated_tokens: int = 128

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--ctx", self.context, 1, _MOST_TOKENS),
            ("--parallel", self.parallel, 1, 256),  # LLAMA_MAX_SEQ
            ("--threads", self.threads, 1, 512),  # GGML_MAX_N_THREADS
            ("prompt tokens", self.prompt_tokens, 1, _MOST_TOKENS),
            ("generated tokens", self.generated_tokens, 1, _MOST_TOKENS),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} is {value}; it must be between {least} and {most}")
        if self.kv_type not in ("auto", *KV_TYPES):
            raise UsageError(f"--kv-type is {self.kv_type!r}; it must be auto, {', '.join(KV_TYPES)}")
        if self.repack not in ("auto", "on", "off"):
            raise UsageError(f"--repack is {self.repack!r}; it must be auto, on or off")
