"""The question "how many bytes will exactly this configuration use", and the shape of its answer.

An engine answers it (engines/llamacpp/oracle.py); the planner only sees this interface. The answer also
says what the engine's own graph will compute where, which is what the speed model needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from memfit.strict_json import Between, Matching, tupled

__all__ = ["RAM", "DeviceBytes", "Graph", "LlamaConfig", "MemoryEstimate", "Operation", "Oracle"]

RAM = 0  # as a device's number; `LlamaConfig.devices` follow from 1 on


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that decides an engine's memory and kernels; a plan carries one of these."""

    paths: tuple[Path, ...]  # the model's files, in shard order
    context: Annotated[int, Between(1, 2**31 - 1)]  # tokens over all sequences (llama.cpp's n_ctx)
    parallel: Annotated[int, Between(1, 256)]  # sequences (n_seq_max); LLAMA_MAX_SEQ
    kv_type: Annotated[str, Matching("f16|q8_0|q4_0", "one of f16, q8_0, q4_0")]  # of keys and values
    ubatch: Annotated[int, Between(1, 65_536)]  # tokens per pass of a prompt (n_ubatch)
    threads: Annotated[int, Between(1, 512)]  # GGML_MAX_N_THREADS
    repack: bool  # weights in RAM rewritten while loading for this CPU's kernels
    # "mmap": the file's own pages; "read": copied into the engine's buffers; "own": into our memory.
    load_mode: Annotated[str, Matching("mmap|read|own", "one of mmap, read, own")]
    devices: tuple[str, ...] = ()  # the engine's names: "CUDA0", or "HOST:PORT" of a remote one
    # Per device: layers that lie there with their KV cache; the others, first, lie in RAM.
    layers: tuple[Annotated[int, Between(0, 4096)], ...] = ()
    # Exceptions: a tensor whose name matches the pattern lies on that device, not on its layer's.
    overrides: tuple[tuple[str, int], ...] = ()
    # With load_mode "own": tensors in RAM's care that stay on the disk, and what they pass through.
    streamed: tuple[str, ...] = ()
    ring_bytes: int = 0
    dequantized: tuple[str, ...] = ()  # with "own": quantized matrices in RAM that are held as BF16
    twofold: tuple[str, ...] = ()  # with "own": matrices in RAM that are held plain, and rewritten beside
    prompt_dequantized: tuple[str, ...] = ()  # with "own": matrices in RAM that are BF16, too, for prompts
    widened: tuple[str, ...] = ()  # with "read" and `repack`: matrices that are rewritten as Q8_0
    plain: tuple[str, ...] = ()  # with "read" and `repack`: matrices that stay as they are
    # With "read": the first device multiplies long prompts with matrices in RAM, sent over for each pass.
    op_offload: bool = False
    kv_unified: bool = True  # any sequence may use all of the context; else each has an equal part of it
    grammar_bytes: int = 0  # what the grammars of JSON schemas may hold together; 0: no answer follows one
    outputs: Annotated[int, Between(0, 65_536)] = 0  # tokens scored per pass (n_outputs_max); 0: none are
    serving_bytes: int = 0  # what a server's libraries and calls hold; 0: nothing is served
    importance_bytes: int = 0  # what collecting an importance matrix and changing weights hold; 0: neither
    embeds: bool = False  # texts become embeddings or scores: every token of a pass is an output
    # How tokens' embeddings become one; None: in the model's own way.
    pooling: Annotated[str, Matching("none|mean|cls|last|rank", "a pooling or null")] | None = None

    @property
    def is_read_by_us(self) -> bool:
        """Whether the engine only builds the model, and memfit gives its tensors their data."""
        return self.load_mode == "own" or (self.load_mode == "read" and not self.devices)

    @property
    def needs_numpy(self) -> bool:
        """In the worker: to answer several sequences, grammars and scores, and to widen weights."""
        many = self.parallel > 1 and not self.embeds
        return bool(many or self.grammar_bytes or self.outputs or self.widened)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "paths": [str(path.absolute()) for path in self.paths]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LlamaConfig:
        """What `to_json` gave, after any number of readings and writings as JSON."""
        found = {name: tupled(value) for name, value in values.items()}
        return cls(**{**found, "paths": tuple(map(Path, found["paths"]))})


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The graph nodes of one kind on one device, together."""

    device: int
    # "matmul", "experts" (routed ones), "attention", "cache sent" (copied to the device), or "other": norms,
    # activations.
    kind: str
    type: str  # GGML's name of the weights' type, or the KV cache's; empty for "other"
    count: int  # nodes
    bytes: int  # weights or cache read; for "other" whatever is read and written
    operations: int  # multiplications and additions
    cells: int = (
        0  # of "attention" and "cache sent": cells of the KV cache that bytes and operations stand for
    )
    width: int = 0  # numbers per row of the matrices, or per head of "attention"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One pass over the model: what it computes where, and what passes between devices."""

    tokens: int
    operations: tuple[Operation, ...]
    splits: tuple[int, ...]  # per device: graph splits: how often computing moves there
    split_bytes: tuple[int, ...]  # per device: activations copied into it
    sent_bytes: tuple[int, ...]  # per device: weights in RAM, sent over to be multiplied there (op_offload)
    last_device: int = RAM  # where a pass ends


@dataclass(frozen=True, kw_only=True)
class DeviceBytes:
    """What one device holds once loaded, as the engine counts it; the device's runtime is not in it."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    scratch_bytes: int  # work buffer, where the device's kernels are a CPU's with as many threads as ours
    thread_bytes: int = 0  # of the work buffer, what each further thread adds at most

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.scratch_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes in RAM and on devices once loaded, each as the engine counts it."""

    context: int  # tokens the engine will really hold: it rounds up to a multiple of 256
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int  # the graph's activations
    scratch_bytes: int  # the CPU kernels' work buffer, and the sampler's candidates
    process_bytes: int  # memfit's processes themselves: Python, vocabulary, metadata, output buffer
    generation: Graph  # of one token over a full context
    prompt: Graph  # of one ubatch over a full context
    layer_kv_bytes: tuple[int, ...] = ()  # KV cache of each layer, all sequences together
    devices: tuple[DeviceBytes, ...] = ()

    @property
    def total_bytes(self) -> int:
        """In RAM."""
        return (
            self.weights_bytes
            + self.kv_cache_bytes
            + self.compute_bytes
            + self.scratch_bytes
            + self.process_bytes
        )


class Oracle(Protocol):
    """Asks an engine without loading weights."""

    def ask(self, config: LlamaConfig) -> MemoryEstimate:
        """Raises EngineError where the engine refuses the configuration."""
        ...
