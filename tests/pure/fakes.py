"""A machine, a model and an oracle whose every byte can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memfit.engines.protocol import Speed
from memfit.engines.report import Report, TierReport
from memfit.errors import EngineError
from memfit.hardware.machine import Cpu, Machine, Ram
from memfit.headers.model_spec import MetadataValue, ModelSpec, TensorSpec
from memfit.memory.oracle import Answer, EngineParameters
from memfit.planner.plan import Plan, TierUse
from memfit.planner.speed import KernelSpeed, Prediction, Rate
from memfit.units import GIB, KIB, MIB


def make_tensor(name: str, shape: tuple[int, ...], kind: str, size_bytes: int) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, type=kind, size_bytes=size_bytes, offset_bytes=0, file_index=0)


def make_spec(
    *tensors: TensorSpec,
    name: str = "Toy",
    architecture: str = "llama",
    context_length: int = 32768,
    metadata: dict[str, MetadataValue] | None = None,
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
        parameters=sum(tensor.elements for tensor in tensors),
        context_length=context_length,
        vocabulary=10,
        metadata=metadata or {},
        tensors=tensors,
    )


def make_ram(available_bytes: int) -> Ram:
    return Ram(
        total_bytes=64 * GIB,
        available_bytes=available_bytes,
        physical_bytes=64 * GIB,
        cgroup_limit_bytes=None,
        swap_total_bytes=0,
        swap_used_bytes=0,
        type=None,
        megatransfers_per_second=None,
    )


def make_machine(available_bytes: int = 8 * GIB, *, physical: int = 6, logical: int = 12) -> Machine:
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
        gpus=(),
        gpu_note=None,
        disks=(),
    )


def make_speeds(plain: float = 1e9, repacked: float = 1e9) -> dict[bool, dict[str, KernelSpeed]]:
    """Kernel speeds by repacking; `plain` and `repacked` scale everything."""
    return {
        repack: {
            kind: KernelSpeed(
                bytes_per_second=factor, operations_per_second=2 * factor, node_seconds=1 / factor
            )
            for kind in ("F16", "Q8_0")
        }
        for repack, factor in ((False, plain), (True, repacked))
    }


class FakeOracle:
    """weights 100 MiB (112 repacked) + KV + micro-batch x 60 KiB + 1 MiB + 20 MiB + 2 MiB per sequence.

    KV per token of context, which is rounded up to 256: f16 16 KiB, q8_0 8.5 KiB, q4_0 4.5 KiB.
    """

    weights_bytes = 100 * MIB
    kv_bytes = {"f16": 16 * KIB, "q8_0": 8 * KIB + 512, "q4_0": 4 * KIB + 512}  # noqa: RUF012

    def __init__(self, refuses: Callable[[EngineParameters], bool] = lambda _: False) -> None:
        self._refuses = refuses
        self.asked: list[EngineParameters] = []

    def ask(self, parameters: EngineParameters) -> Answer:
        self.asked.append(parameters)
        if self._refuses(parameters):
            raise EngineError(f"the engine cannot do {parameters.kv_type}")
        context = -(-parameters.context // 256) * 256
        return Answer(
            context=context,
            weights_bytes=self.weights_bytes + 12 * MIB * parameters.repack,
            kv_cache_bytes=self.kv_bytes[parameters.kv_type] * context,
            compute_bytes=60 * KIB * parameters.micro_batch,
            scratch_bytes=MIB,
            nodes=100,
            process_bytes=20 * MIB + 2 * MIB * parameters.parallel,
        )


def make_tier(weights: int, kv_cache: int, compute: int, overhead: int, budget: int) -> TierUse:
    return TierUse(
        name="ram",
        kind="ram",
        budget_bytes=budget,
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        compute_bytes=compute,
        overhead_bytes=overhead,
    )


def make_plan_value(spec: ModelSpec | None = None, tier: TierUse | None = None) -> Plan:
    """A finished plan: 100 + 64 + 31 + 22 = 217 MiB of 1 GiB."""
    spec = spec or make_spec()
    tier = tier or make_tier(100 * MIB, 64 * MIB, 31 * MIB, 22 * MIB, GIB)
    return Plan(
        spec=spec,
        parameters=EngineParameters(
            paths=spec.paths,
            context=4096,
            parallel=1,
            kv_type="f16",
            micro_batch=512,
            threads=6,
            repack=False,
            load_mode="mmap",
        ),
        context=4096,
        tiers=(tier,),
        prediction=Prediction(
            prompt=Rate(value=200.0, low=140.0, high=260.0),
            generation=Rate(value=40.0, low=28.0, high=52.0),
            basis="calibrated",
        ),
        why=("because",),
        limit_bytes=tier.budget_bytes,
    )


def make_report(plan: Plan | None = None, *, peak_bytes: int = 220 * MIB, **changes: object) -> Report:
    plan = plan or make_plan_value()
    report = Report(
        plan=plan,
        tiers=(
            TierReport(
                name="ram",
                kind="ram",
                budget_bytes=plan.ram.budget_bytes,
                predicted_bytes=plan.ram.total_bytes,
                peak_bytes=peak_bytes,
            ),
        ),
        speed=Speed(prompt_tokens=300, prompt_seconds=2.0, generated_tokens=90, generation_seconds=2.0),
        load_seconds=0.25,
        disk_read_bytes=4096,
        swapped_bytes=0,
    )
    return replace(report, **changes)  # type: ignore[arg-type]
