"""What the user asks for: a budget and a workload, checked where they are made; and what is taken unasked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memfit.errors import UsageError, WrongValueError
from memfit.hardware.machine import Device, Gpu, Machine, Ram
from memfit.memory.reserve import reserve_bytes
from memfit.units import format_bytes, parse_size

__all__ = [
    "ALL_LAYERS",
    "ASSUMED_DISK",
    "KV_TYPES",
    "MOST_TOKENS",
    "POOLINGS",
    "UBATCHES",
    "Budget",
    "Conditions",
    "Workload",
    "context_of",
    "require_devices",
]

POOLINGS = ("none", "mean", "cls", "last", "rank")
KV_TYPES = ("f16", "q8_0", "q4_0")
ASSUMED_DISK = (0.7e9, 1.5e9)  # bytes per second: an older NVMe drive, or two SATA ones
UBATCHES = (512, 256, 128, 64, 32)  # worth trying, the largest first
_CONTEXT = 4096
_MOST_UBATCH = 65_536
ALL_LAYERS = _MOST_UBATCH  # of any model
_MOST_FREE_BYTES = 2**60  # more than any machine has free: percentages of it are no reason to refuse one
MOST_TOKENS = 2**31 - 1  # the engine counts them in 32 bits


Size = str | int  # bytes, or a text such as "8GiB" or "90%" (of what is free)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Hard caps on what memfit's processes hold, runtime overhead included."""

    ram: Size | None = None  # None: what is free, less a reserve
    # For every GPU, or by its number or its name in the engine ("Vulkan0"); None: what is free.
    vram: Size | Mapping[int | str, Size] | None = None
    rpc: Mapping[str, Size | None] = field(default_factory=dict)  # "HOST:PORT" → size; None: all it offers
    disk: bool = True  # whether weights may be streamed from disk

    def __post_init__(self) -> None:
        for endpoint in self.rpc:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
                needed = "HOST:PORT or HOST:PORT=SIZE"
                raise WrongValueError(
                    "rpc", f" is {endpoint!r}; it must be {needed}", got=endpoint, needed=needed
                )

        # What is no size on any machine is refused before anything is measured on this one.
        sizes: dict[str, Size | None] = {"ram": self.ram}
        if isinstance(self.vram, Mapping):
            sizes |= {f"vram {number}": size for number, size in self.vram.items()}
        else:
            sizes["vram"] = self.vram
        sizes |= {f"rpc {endpoint}": size for endpoint, size in self.rpc.items()}
        for name, size in sizes.items():
            if size or size == "":
                _size(name, size, _MOST_FREE_BYTES)

    def ram_bytes(self, ram: Ram) -> int:
        """The cap on this machine. Raises UsageError where it is not a size."""
        if self.ram is None:
            return ram.available_bytes - reserve_bytes(ram.total_bytes, ram.available_bytes)
        return _size("ram", self.ram, ram.available_bytes)

    def device_bytes(self, device: Device) -> int:
        """The cap on one device; 0 where it is not to be used.

        Raises:
            UsageError: not a size, or one that is less than the device's own runtime takes.
        """
        if device.name in self.rpc:
            lent = self.rpc[device.name]
            size = device.free_bytes if lent is None else _size(f"rpc {device.name}", lent, device.free_bytes)
        else:
            size = self._vram_bytes(
                int(device.name.removeprefix("gpu")),
                device.engine_name,
                device.free_bytes,
                device.total_bytes,
            )
            if self.vram is None and size <= device.overhead_bytes:
                return 0  # full of others' work; nobody asked for it
        if 0 < size <= device.overhead_bytes:
            raise UsageError(
                f"{device.name}: the budget is {format_bytes(size)}, and its runtime alone takes "
                f"{format_bytes(device.overhead_bytes)}",
                field=device.name,
                got=size,
                needed=device.overhead_bytes + 1,
            )
        return size

    def gpu_bytes(self, gpu: Gpu) -> int:
        """The cap on a GPU of this machine. A GPU that a mapping does not name is not used."""
        return self._vram_bytes(gpu.index, gpu.engine_name, gpu.free_bytes, gpu.total_bytes)

    def _vram_bytes(self, number: int, name: str | None, free_bytes: int, total_bytes: int) -> int:
        if self.vram is None:
            return free_bytes - reserve_bytes(total_bytes, free_bytes)
        if isinstance(self.vram, Mapping):
            key = name if name is not None and name in self.vram else number
            size = self.vram.get(key, 0)
            return _size(f"vram {key}", size, free_bytes) if size else 0
        return _size("vram", self.vram, free_bytes)


def _size(name: str, size: Size, free_bytes: int) -> int:
    try:
        return parse_size(str(size), free_bytes=free_bytes)
    except ValueError as error:
        raise WrongValueError(name, f": {error}", got=size) from None


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
    # Tokens in the cache when a prompt and when a generation begins, as llama-bench's -d has it; None: a
    # request, whose prompt begins at nothing and whose generation follows it.
    depth: int | None = None
    # Whether sequences share the context's cells; else each has its own equal part, which is faster.
    kv_unified: bool = True
    grammars: bool = False  # whether answers follow JSON schemas, whose grammars take memory
    serves: bool = False  # whether a server answers, whose libraries and calls take memory
    importance: bool = False  # whether an importance matrix is collected
    probes: bool = False  # whether weights are changed in memory, to see what is lost
    outputs: int = 0  # tokens scored per pass at most, whose logits take memory; 0: no texts are scored
    # Whether texts become embeddings, or scores by a reranker, and nothing is generated; with a model that
    # can do nothing else so it is anyway.
    embeds: bool = False
    pooling: str | None = (
        None  # one of POOLINGS: how tokens' embeddings become one; None: the model's own way
    )

    def __post_init__(self) -> None:
        for name, least, most in (
            ("context", 1, MOST_TOKENS),
            ("parallel", 1, 256),  # LLAMA_MAX_SEQ
            ("threads", 1, 512),  # GGML_MAX_N_THREADS
            ("prompt_tokens", 1, MOST_TOKENS),
            ("generated_tokens", 0 if self.embeds else 1, MOST_TOKENS),
            ("depth", 0, MOST_TOKENS),
            ("outputs", 0, 65_536),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                needed = f"between {least} and {most}"
                raise WrongValueError(name, f" is {value}; it must be {needed}", got=value, needed=needed)
        for name, words, needed in (
            ("kv_type", ("auto", *KV_TYPES), f"auto, {', '.join(KV_TYPES)}"),
            ("repack", ("auto", "on", "off"), "auto, on or off"),
            ("pooling", (None, *POOLINGS), ", ".join(POOLINGS)),
        ):
            word = getattr(self, name)
            if word not in words:
                raise WrongValueError(name, f" is {word!r}; it must be {needed}", got=word, needed=needed)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the planner has to keep, as llama.cpp's options state it; None leaves the choice to it."""

    gpu_layers: int | None = None  # layers on devices, from the last on; the output counts as the very last
    cpu_moe_layers: int | None = None  # layers, from the first on, whose routed experts lie in RAM
    overrides: tuple[
        tuple[str, str], ...
    ] = ()  # (regex, device): tensors whose name it is found in lie there
    ubatch: int | None = None  # tokens of a prompt per pass

    def __post_init__(self) -> None:
        for name, least in (("gpu_layers", 0), ("cpu_moe_layers", 0), ("ubatch", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= _MOST_UBATCH:
                needed = f"between {least} and {_MOST_UBATCH}"
                raise WrongValueError(name, f" is {value}; it must be {needed}", got=value, needed=needed)

    def __bool__(self) -> bool:
        return self != Conditions()

    def __str__(self) -> str:
        """As options of the command line."""
        given = [f"-ot {pattern}={device}" for pattern, device in self.overrides]
        if self.cpu_moe_layers is not None:
            all_of_them = self.cpu_moe_layers == ALL_LAYERS
            given.insert(0, "--cpu-moe" if all_of_them else f"--n-cpu-moe {self.cpu_moe_layers}")
        if self.gpu_layers is not None:
            given.insert(0, f"--gpu-layers {'all' if self.gpu_layers == ALL_LAYERS else self.gpu_layers}")
        if self.ubatch is not None:
            given.append(f"--ubatch {self.ubatch}")
        return ", ".join(given)


def context_of(workload: Workload, longest: int | None) -> int:
    """Tokens: asked for, or 4096, or the `longest` that the model was trained for if that is less."""
    return workload.context or min(_CONTEXT, longest or _CONTEXT)


def require_devices(budget: Budget, here: Machine, *, is_dummy: bool) -> None:
    """Raises UsageError where the budget names a device that this machine cannot have."""
    if budget.vram not in (None, {}) and not here.gpus:
        raise WrongValueError(
            "vram",
            f": there is no GPU here ({here.gpu_note or 'none was found'}); "
            "memfit hardware shows what there is, --rpc takes a GPU of another machine",
        )
    if is_dummy and budget.rpc:
        raise WrongValueError(
            "rpc", " names a device of this machine, --machine another machine; use one of them"
        )
    if isinstance(budget.vram, Mapping):
        for key in budget.vram:
            named = [gpu for gpu in here.gpus if key in (gpu.index, gpu.engine_name)]
            if not named:
                raise WrongValueError(
                    f"vram {key}", f": there is no GPU {key}; memfit hardware shows which there are"
                )
            if key == named[0].engine_name and named[0].index in budget.vram:
                raise WrongValueError(f"vram {key}", f" and {named[0].index} are one GPU; name it once")
