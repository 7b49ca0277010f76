"""A machine, a model and an oracle whose every byte can be worked out by hand."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from memfit.engines.report import Report, TierReport
from memfit.engines.requests import Speed
from memfit.errors import EngineError
from memfit.hardware.machine import Cpu, Device, Gpu, Machine, Ram
from memfit.headers.model_spec import MetadataValue, ModelSpec, TensorSpec
from memfit.memory.estimate import RAM, DeviceBytes, Graph, LlamaConfig, MemoryEstimate, Operation
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import TierUse
from memfit.planner.speed import (
    OP_OFFLOAD_TOKENS,
    AttentionSpeed,
    DeviceSpeed,
    Prediction,
    Rate,
    WeightSpeed,
)
from memfit.units import GIB, KIB, MIB


def make_tensor(name: str, shape: tuple[int, ...], kind: str, size_bytes: int) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, type=kind, size_bytes=size_bytes, offset_bytes=0, file_index=0)


def make_spec(
    *tensors: TensorSpec,
    name: str = "Toy",
    architecture: str = "llama",
    context_length: int = 32768,
    metadata: dict[str, MetadataValue] | None = None,
    n_experts: int = 0,
    n_experts_used: int = 0,
) -> ModelSpec:
    """Without tensors: one matrix of 1,000 weights in 1,000 bytes, and an output of its own."""
    tensors = tensors or (
        make_tensor("token_embd.weight", (10, 10), "F16", 200),
        make_tensor("blk.0.ffn_up.weight", (10, 100), "Q8_0", 1000),
        make_tensor("output.weight", (10, 10), "Q8_0", 100),
    )
    return ModelSpec(
        source="toy.gguf",
        paths=(Path("/models/toy.gguf"),),
        file_bytes=104857600,
        data_offset_bytes=(0,),
        architecture=architecture,
        name=name,
        quantization="Q8_0",
        n_params=sum(tensor.elements for tensor in tensors),
        context_length=context_length,
        vocabulary=10,
        metadata=metadata or {},
        tensors=tensors,
        n_experts=n_experts,
        n_experts_used=n_experts_used,
    )


def make_ram(available_bytes: int, total_bytes: int = 64 * GIB) -> Ram:
    return Ram(
        total_bytes=total_bytes,
        available_bytes=available_bytes,
        physical_bytes=64 * GIB,
        cgroup_limit_bytes=None,
        swap_total_bytes=0,
        swap_used_bytes=0,
        type=None,
        megatransfers_per_second=None,
    )


def make_gpu(
    index: int = 0,
    free_bytes: int = 8 * GIB,
    *,
    total_bytes: int | None = None,
    pci_id: str | None = None,
    engine_name: str | None = None,
) -> Gpu:
    return Gpu(
        index=index,
        name="Toy GPU",
        total_bytes=total_bytes or free_bytes,
        used_bytes=0,
        free_bytes=free_bytes,
        others_bytes=None,
        driver="1",
        cuda=None,
        compute_capability=None,
        pci_id=pci_id,
        engine_name=engine_name or f"CUDA{index}",
        link=None,
    )


def make_machine(
    available_bytes: int = 8 * GIB, *, physical: int = 6, logical: int = 12, gpus: tuple[Gpu, ...] = ()
) -> Machine:
    cpu = Cpu(
        model="Toy CPU",
        architecture="x86_64",
        physical_cores=physical,
        logical_cores=logical,
        instruction_sets=(),
    )
    return Machine(
        system="Linux 6.1",
        cpu=cpu,
        ram=make_ram(available_bytes),
        gpus=gpus,
        gpu_note=None,
        disks=(),
    )


def make_device(name: str = "gpu0", free_bytes: int = GIB, overhead_bytes: int = 0) -> Device:
    """A GPU of this machine ("gpu0"), or a worker that lends its memory ("host:1")."""
    return Device(
        name=name,
        engine_name=name if ":" in name else name.replace("gpu", "CUDA"),
        description="Toy",
        total_bytes=free_bytes,
        free_bytes=free_bytes,
        overhead_bytes=overhead_bytes,
        is_memfit_server=":" in name,
    )


def make_speed(factor: float = 1e9, **changes: object) -> DeviceSpeed:
    """`factor` bytes and twice as many operations a second, whatever the type; 1 / `factor` s a node."""
    speed = DeviceSpeed(
        weights={
            name: WeightSpeed(bytes_per_second=factor, operations_per_second=2 * factor)
            for name in ("F16", "Q8_0")
        },
        attention={"F16/64": AttentionSpeed(generation=2 * factor, prompt=2 * factor)},
        activation_bytes_per_second=factor,
        node_seconds=1 / factor,
        split_seconds=0.0,
        split_bytes_per_second=1e12,
        basis="calibrated",
    )
    return replace(speed, **changes)  # type: ignore[arg-type]


def make_speeds(plain: float = 1e9, repacked: float = 1e9) -> dict[bool, DeviceSpeed]:
    """This CPU's speeds by repacking; `plain` and `repacked` scale everything."""
    return {False: make_speed(plain), True: make_speed(repacked)}


def make_device_bytes(count: int) -> tuple[DeviceBytes, ...]:
    """Of so many open devices that hold nothing."""
    return (DeviceBytes(weights_bytes=0, kv_cache_bytes=0, compute_bytes=0, scratch_bytes=0),) * count


def make_graph(*operations: Operation, tokens: int = 1, splits: tuple[int, ...] = (0,)) -> Graph:
    nothing = tuple(0 for _ in splits)
    return Graph(tokens=tokens, operations=operations, splits=splits, split_bytes=nothing, sent_bytes=nothing)


def make_operation(kind: str = "matmul", type_name: str = "Q8_0", **changes: int) -> Operation:
    """The rows of a matrix are long ones."""
    width = 0 if kind == "other" else 4096
    values = {"device": RAM, "count": 1, "bytes": 0, "operations": 0, "width": width, **changes}
    return Operation(kind=kind, type=type_name, **values)


class FakeOracle:
    """weights 100 MiB (112 repacked) + KV + ubatch x 60 KiB + 1 MiB + 20 MiB + 2 MiB per sequence.

    KV per token of context, which is rounded up to 256: f16 16 KiB, q8_0 8.5 KiB, q4_0 4.5 KiB.
    Its graph is one matrix of 100 Mi weights of a byte each: 2 operations a weight and token.
    """

    weights_bytes = 100 * MIB
    kv_bytes = {"f16": 16 * KIB, "q8_0": 8 * KIB + 512, "q4_0": 4 * KIB + 512}  # noqa: RUF012

    def __init__(self, refuses: Callable[[LlamaConfig], bool] = lambda _: False) -> None:
        self._refuses = refuses
        self.asked: list[LlamaConfig] = []

    def ask(self, config: LlamaConfig) -> MemoryEstimate:
        self.asked.append(config)
        if self._refuses(config):
            raise EngineError(f"the engine cannot do {config.kv_type}")
        context = -(-config.context // 256) * 256
        return MemoryEstimate(
            context=context,
            weights_bytes=self.weights_bytes + 12 * MIB * config.repack,
            kv_cache_bytes=self.kv_bytes[config.kv_type] * context,
            compute_bytes=60 * KIB * config.ubatch,
            scratch_bytes=MIB,
            process_bytes=20 * MIB + 2 * MIB * config.parallel,
            generation=self._graph(1),
            prompt=self._graph(min(config.ubatch, config.context)),
        )

    def _graph(self, tokens: int) -> Graph:
        size = self.weights_bytes
        return make_graph(make_operation(bytes=size, operations=2 * size * tokens), tokens=tokens)


def make_layered_spec(
    layers: int = 3,
    *,
    tied: bool = False,
    experts: Mapping[int, int] | None = None,
    more: tuple[TensorSpec, ...] = (),
) -> ModelSpec:
    """Per layer 8 MiB of attention and 16 MiB each of gate, up and down; the embedding has 10 MiB and the
    output 12. All of Q8_0 with a byte a weight. `experts` are layers whose blocks are so many experts, of
    which a token uses 2."""
    experts = experts or {}

    def matrix(name: str, mebibytes: int) -> TensorSpec:
        return make_tensor(f"{name}.weight", (1024, mebibytes * KIB), "Q8_0", mebibytes * MIB)

    tensors = [matrix("token_embd", 10), make_tensor("output_norm.weight", (64,), "F32", 256)]
    tensors += [] if tied else [matrix("output", 12)]
    for layer in range(layers):
        suffix = "_exps" if layer in experts else ""
        tensors.append(make_tensor(f"blk.{layer}.attn_norm.weight", (64,), "F32", 256))
        tensors.append(matrix(f"blk.{layer}.attn_q", 8))
        # In the order of a real file, which is not that of execution.
        tensors += [matrix(f"blk.{layer}.ffn_{kind}{suffix}", 16) for kind in ("down", "gate", "up")]
    count = max(experts.values(), default=0)
    used = 2 if count else 0
    return make_spec(*one_after_another((*tensors, *more)), n_experts=count, n_experts_used=used)


def one_after_another(tensors: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """As they lie in a file."""
    offset = 0
    for tensor in tensors:
        yield replace(tensor, offset_bytes=offset)
        offset += tensor.size_bytes


def engine_devices(spec: ModelSpec, config: LlamaConfig) -> Iterator[tuple[TensorSpec, int]]:
    """Where llama.cpp puts each tensor (llama-model.cpp, `create_tensor`), written from its source.

    The first pattern that is found in a name decides; else the input lies in RAM, the last layers lie on
    the devices in their order, and the output on the last device with a layer. A tied output is the
    embedding, a second time where it lies elsewhere.
    """
    count = 1 + max(int(one.name.split(".")[1]) for one in spec.tensors if one.name.startswith("blk."))
    layer_devices = [RAM] * (count - sum(config.layers))
    for device, layers in enumerate(config.layers):
        layer_devices += [device + 1] * layers
    output = layer_devices[-1] or len(config.devices)

    def lies(name: str, layer_device: int) -> int:
        found = (target for pattern, target in config.overrides if re.search(pattern, name))
        return next(found, layer_device)

    tied = all(one.name != "output.weight" for one in spec.tensors)
    for one in spec.tensors:
        if one.name.startswith("blk."):
            yield one, lies(one.name, layer_devices[int(one.name.split(".")[1])])
        elif one.name == "token_embd.weight":
            yield one, lies(one.name, RAM)
            if tied and lies(one.name, output) != lies(one.name, RAM):
                yield one, lies(one.name, output)
        else:
            yield one, lies(one.name, output)


class DeviceOracle:
    """Counts a spec's tensors where the engine puts them; the KV cache lies at its layer's device.

    KV per layer and token of context: f16 1 KiB, q8_0 544 B, q4_0 288 B. Every device that is open: 4 MiB
    of compute and 1 MiB of scratch, half a MiB more for each further thread; the processes take 20 MiB. A
    layer's attention takes 4,096 operations per cell and token. An expert tensor of 8 experts is read to a
    quarter for one token.
    """

    kv_bytes = {"f16": 1024, "q8_0": 544, "q4_0": 288}  # noqa: RUF012

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def ask(self, config: LlamaConfig) -> MemoryEstimate:
        assert len(config.layers) == len(config.devices)
        context = -(-config.context // 256) * 256
        kv_bytes = self.kv_bytes[config.kv_type] * context
        devices = list(engine_devices(self._spec, config))
        layer_devices = self._layer_devices(config)
        weights = [0] * (1 + len(config.devices))
        for tensor, device in devices:
            weights[device] += tensor.size_bytes
        caches = [layer_devices.count(device) * kv_bytes for device in range(len(weights))]
        return MemoryEstimate(
            context=context,
            weights_bytes=weights[RAM],
            kv_cache_bytes=caches[RAM],
            compute_bytes=4 * MIB,
            scratch_bytes=MIB,
            process_bytes=20 * MIB,
            generation=self._graph(config, 1, context, kv_bytes),
            prompt=self._graph(config, min(config.ubatch, context), context, kv_bytes),
            layer_kv_bytes=(kv_bytes,) * len(layer_devices),
            devices=tuple(
                DeviceBytes(
                    weights_bytes=size,
                    kv_cache_bytes=cache,
                    compute_bytes=4 * MIB,
                    scratch_bytes=MIB,
                    thread_bytes=MIB // 2,
                )
                for size, cache in zip(weights[1:], caches[1:], strict=True)
            ),
        )

    def _layer_devices(self, config: LlamaConfig) -> list[int]:
        """The KV cache does not heed overrides."""
        plain = replace(config, overrides=())
        layers: dict[int, int] = {}
        for tensor, device in engine_devices(self._spec, plain):
            if tensor.name.startswith("blk."):
                layers[int(tensor.name.split(".")[1])] = device
        return [layers[layer] for layer in sorted(layers)]

    def _graph(self, config: LlamaConfig, tokens: int, context: int, kv_bytes: int) -> Graph:
        splits, here = [0] * (1 + len(config.devices)), RAM
        operations = []
        for operation in self._operations(config, tokens, context, kv_bytes):
            operations.append(operation)
            if operation.device != here:
                splits[operation.device] += 1
                here = operation.device
        splits[RAM] += here != RAM
        return Graph(
            tokens=tokens,
            operations=tuple(operations),
            splits=tuple(splits),
            split_bytes=tuple(4096 * tokens * count for count in splits),
            sent_bytes=(0, self._sent_bytes(config, tokens), *[0] * len(splits))[: len(splits)],
        )

    def _sent_bytes(self, config: LlamaConfig, tokens: int) -> int:
        """With op_offload the first device multiplies with what lies in RAM, from 32 tokens on."""
        if not (config.op_offload and config.devices) or tokens < OP_OFFLOAD_TOKENS:
            return 0
        kept = (one for one, device in engine_devices(self._spec, config) if device == RAM)
        return sum(one.size_bytes for one in kept if one.name.startswith("blk.") and len(one.shape) > 1)

    def _operations(
        self, config: LlamaConfig, tokens: int, context: int, kv_bytes: int
    ) -> Iterator[Operation]:
        """In order of execution."""
        placed = {one.name: (one, device) for one, device in engine_devices(self._spec, config)}
        share = 2 / self._spec.n_experts if self._spec.n_experts else 1.0

        def multiply(name: str, rows: int) -> Operation:
            tensor, device = placed[name]
            if name.startswith("blk.") and self._sent_bytes(config, tokens):
                device = device or 1
            routed = share if "_exps" in name else 1.0
            read = min(1.0, routed * tokens) if routed < 1 else 1.0
            return make_operation(
                "experts" if routed < 1 else "matmul",
                tensor.type,
                device=device,
                bytes=int(tensor.size_bytes * read),
                operations=int(2 * tensor.elements * routed * rows),
            )

        for layer, layer_device in enumerate(self._layer_devices(config)):
            yield multiply(f"blk.{layer}.attn_q.weight", tokens)
            yield make_operation(
                "attention",
                "F16",
                device=layer_device,
                bytes=kv_bytes,
                operations=4096 * context * tokens,
                cells=context,
                width=64,
            )
            for kind in ("gate", "up", "down"):
                for suffix in ("", "_exps"):
                    name = f"blk.{layer}.ffn_{kind}{suffix}.weight"
                    if name in placed:
                        yield multiply(name, tokens)
        yield multiply("output.weight" if "output.weight" in placed else "token_embd.weight", 1)


def write_checkpoint(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """The header of a .safetensors file, and a hole where the data would be."""
    width = {"BF16": 2, "F32": 4, "U8": 1}[dtype]
    header, end = {}, 0
    for name, shape in tensors.items():
        size = width
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)
    return path


def make_tier(
    weights: int,
    kv_cache: int,
    compute: int,
    overhead: int,
    budget: int,
    *,
    name: str = "ram",
    limit: int | None = None,
    reserved: int = 0,
) -> TierUse:
    return TierUse(
        name=name,
        kind="ram" if name == "ram" else "vram",
        budget_bytes=budget,
        limit_bytes=budget if limit is None else limit,
        parts={"weights": weights, "kv_cache": kv_cache, "compute": compute, "overhead": overhead},
        reserved_bytes=reserved,
    )


def make_plan_value(
    spec: ModelSpec | None = None, tier: TierUse | None = None, *, devices: tuple[TierUse, ...] = ()
) -> LlamaPlan:
    """A finished plan: 100 + 64 + 31 + 22 = 217 MiB of 1 GiB in RAM."""
    spec = spec or make_spec()
    tier = tier or make_tier(100 * MIB, 64 * MIB, 31 * MIB, 22 * MIB, GIB)
    return LlamaPlan(
        spec=spec,
        config=LlamaConfig(
            paths=spec.paths,
            context=4096,
            parallel=1,
            kv_type="f16",
            ubatch=512,
            threads=6,
            repack=False,
            load_mode="mmap",
        ),
        context=4096,
        tiers=(tier, *devices),
        prediction=Prediction(
            prompt=Rate(value=200.0, low=140.0, high=260.0),
            generation=Rate(value=40.0, low=28.0, high=52.0),
            together=Rate(value=40.0, low=28.0, high=52.0),
            basis="calibrated",
        ),
        why=("because",),
    )


def make_report(
    plan: LlamaPlan | None = None, *, peak_bytes: int | None = 220 * MIB, **changes: object
) -> Report:
    """Every tier of the plan reached `peak_bytes`."""
    plan = plan or make_plan_value()
    report = Report(
        plan=plan,
        tiers=tuple(
            TierReport(
                name=tier.name,
                kind=tier.kind,
                budget_bytes=tier.budget_bytes,
                predicted_bytes=tier.total_bytes,
                peak_bytes=peak_bytes,
            )
            for tier in plan.tiers
        ),
        speed=Speed(prompt_tokens=300, prompt_seconds=2.0, generated_tokens=90, generation_seconds=2.0),
        load_seconds=0.25,
        disk_read_bytes=4096,
        swapped_bytes=0,
    )
    return replace(report, **changes)  # type: ignore[arg-type]
