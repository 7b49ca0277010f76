"""Plans a Hugging Face checkpoint in transformers: which precision, what in RAM and what on the disk.

Whole decoder layers are placed, since transformers computes them one after the other; what does not fit is
read again for every pass. Pure: what the libraries themselves take, and how fast they are, is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memfit.errors import WrongValueError
from memfit.hardware.machine import Machine
from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec
from memfit.memory.loaded_checkpoint import (
    TransformersConfig,
    layer_bytes,
    layer_kv_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    pass_bytes,
    refused_layer,
)
from memfit.memory.precision import precision
from memfit.memory.precision_table import PrecisionRow, loaded_bytes, precision_row
from memfit.planner.plan import Plan, TierUse
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import Prediction, Rate
from memfit.planner.transformers.layers import LayerCosts, counts_on_gpus, device_map, place_of
from memfit.units import MIB, format_bytes

__all__ = ["GpuRuntime", "Runtime", "TransformersPlan", "plan_checkpoint", "require_sense"]

_UBATCHES = (512, 256, 128, 64, 32)
_INT8_UBATCH = 128  # no faster above, and memory grows with it
_DEFAULT_CONTEXT = 4096
# On a GPU: what torch's allocator rounds up, and the work space of cuBLAS, which may be 32 MiB. Assumed.
_UNUSED_BYTES = 64 * MIB
_SPREAD = 0.5  # of predicted speeds, either side


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
        return self.limit_bytes - self.process_bytes - _UNUSED_BYTES


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What was measured of this machine's torch, transformers and bitsandbytes, on its CPU or its GPUs."""

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


@dataclass(frozen=True, kw_only=True)
class TransformersPlan(Plan):
    """For transformers."""

    config: TransformersConfig
    row: PrecisionRow
    steady_bytes: int  # in RAM between two passes
    loading_bytes: int  # in RAM at most while loading
    offloaded_bytes: int  # weights that are read for every pass

    @property
    def engine(self) -> str:
        return "transformers"

    @property
    def ubatch(self) -> int:
        return self.config.ubatch

    @property
    def streamed_bytes(self) -> int:
        return self.offloaded_bytes

    @property
    def facts(self) -> Mapping[str, Any]:
        config = self.config
        return {
            "load_in": config.load_in,
            "double_quant": config.double_quant,
            "threads": config.threads,
            "device_map": dict(config.device_map),
            "steady_bytes": self.steady_bytes,
            "loading_bytes": self.loading_bytes,
            "precision": self.row.to_json(),
        }

    @property
    def settings(self) -> str:
        config = self.config
        kind = config.load_in + ", double quantization" * config.double_quant
        return f"transformers, {kind} · ubatch {config.ubatch} · {config.threads} threads"


def plan_checkpoint(
    spec: ModelSpec,
    model: HfModel,
    config: TransformersConfig,
    machine: Machine,
    budget: Budget,
    workload: Workload,
    runtimes: Sequence[Runtime],
) -> TransformersPlan:
    """The plan; its context, ubatch and device map are chosen here, and whether GPUs are used: the
    fastest of `runtimes` that fits, or the first.

    Raises:
        UsageError: the workload asks for what this engine does not do, or this CPU cannot run it.
    """
    require_sense(config, workload)
    longest = model.hf_config.max_position_embeddings or _DEFAULT_CONTEXT
    context = workload.context or min(_DEFAULT_CONTEXT, longest)
    searches = [_Search(spec, model, machine, budget, workload, runtime) for runtime in runtimes]
    plans = [search.best(replace(config, context=context)) for search in searches]
    if fitting := [plan for plan in plans if plan.fits]:
        best = max(fitting, key=lambda plan: plan.prediction.generation.value)
        _refuse_shapes(model, best.config, runtimes[plans.index(best)])
        return best
    _refuse_shapes(model, config, runtimes[0])
    return replace(plans[0], suggestions=tuple(searches[0].suggestions(plans[0])))


class _Search:
    """Plans of one model within one budget."""

    def __init__(
        self,
        spec: ModelSpec,
        model: HfModel,
        machine: Machine,
        budget: Budget,
        workload: Workload,
        runtime: Runtime,
    ) -> None:
        # The roomiest GPU first: it has what is no layer, too.
        gpus = tuple(sorted(runtime.gpus, key=lambda gpu: -gpu.room_bytes))
        self._spec, self._model, self._workload = spec, model, workload
        self._runtime = replace(runtime, gpus=gpus)
        self._budget_bytes = budget.ram_bytes(machine.ram)
        self._limit_bytes = min(self._budget_bytes, machine.ram.available_bytes)
        self._may_stream = budget.disk

    def best(self, config: TransformersConfig) -> TransformersPlan:
        """All in memory with the largest ubatch that fits; else with layers on the disk; else what is
        smallest. With GPUs as many layers there as they hold."""
        most = _INT8_UBATCH if config.precision.bits == 8 else config.context
        sizes = [size for size in _UBATCHES if size <= max(most, _UBATCHES[-1])]
        for size in sizes:
            plan = self._plan(self._with_streamed(replace(config, ubatch=size), 0))
            if plan.fits:
                return plan
        if self._may_stream and not config.precision.is_quantized:
            for size in sizes:
                plan = self._streaming(replace(config, ubatch=size))
                if plan.fits:
                    return plan
        return plan

    def suggestions(self, plan: TransformersPlan) -> Iterator[str]:
        """Options that do fit."""
        wanted = plan.config
        for load_in, double_quant in (("bf16", False), ("int8", False), ("nf4", False), ("nf4", True)):
            other = replace(wanted, load_in=load_in, double_quant=double_quant)
            smaller = precision_row(self._model, other.precision, 1).resident_bytes < plan.row.resident_bytes
            runs = other.precision.bits != 4 or not self._refused()
            if smaller and runs and self.best(other).fits:
                yield f"--load-in {load_in}{' --double-quant' * double_quant}"
                break
        context = wanted.context // 2 // 256 * 256
        while context and not (found := self.best(replace(wanted, context=context)).fits):
            context = context // 2 // 256 * 256
        if context and found:
            yield f"--ctx {context}"
        yield f"--ram {-(-plan.ram.needs_bytes // (16 * MIB)) * 16}MiB"

    def _refused(self) -> bool:
        return self._runtime.packs_4bit and refused_layer(self._model) is not None

    def _streaming(self, config: TransformersConfig) -> TransformersPlan:
        """The last layers on the disk, as few as will do."""
        low, high = 1, self._model.hf_config.num_hidden_layers  # how many are streamed
        while low < high:
            middle = (low + high) // 2
            if self._plan(self._with_streamed(config, middle)).fits:
                high = middle
            else:
                low = middle + 1
        return self._plan(self._with_streamed(config, low))

    def _with_streamed(self, config: TransformersConfig, count: int) -> TransformersConfig:
        """As many layers on GPUs as they hold, of the others the last `count` on the disk."""
        model, gpus = self._model, self._runtime.gpus
        layers = layer_bytes(model, config.precision)
        counts: list[int] = []
        if gpus:
            row = precision_row(model, config.precision, 1)
            costs = LayerCosts(
                layers=list(layers.values()),
                kv=self._kv_of_layers(config),
                shared=row.resident_bytes - sum(layers.values()),
                passes=self._pass_bytes(config),
                loading=row.loading_extra_bytes["cuda"],
                ring=self._largest_module(config),
            )
            counts = counts_on_gpus(costs, [gpu.room_bytes for gpu in gpus])
            if config.precision.is_quantized:  # all of it on GPUs, or nothing
                counts[-1] += len(layers) - sum(counts)
        names = [gpu.name for gpu in gpus]
        # The first has what is no layer; another one without layers is not touched.
        used = [gpu for gpu, layers_on in zip(gpus, counts, strict=True) if layers_on or gpu is gpus[0]]
        rest = len(layers) - sum(counts)
        on_disk = min(count, rest)
        places = [*zip(names, counts, strict=True), ("cpu", rest - on_disk), ("disk", on_disk)]
        return replace(
            config,
            device_map=device_map(model, list(layers), places),
            gpus=tuple(gpu.number for gpu in used),
            gpu_limits=tuple(gpu.limit_bytes - gpu.process_bytes for gpu in used),
        )

    def _kv_of_layers(self, config: TransformersConfig) -> list[int]:
        return layer_kv_bytes(
            self._model.hf_config, config.context, config.ubatch, config.precision.element_bytes
        )

    def _pass_bytes(self, config: TransformersConfig) -> int:
        return pass_bytes(
            self._model,
            config.precision,
            context=config.context,
            ubatch=config.ubatch,
            packs=self._runtime.packs_4bit,
        )

    def _largest_module(self, config: TransformersConfig) -> int:
        """Bytes of the matrices that are computed with at once: one, or all that merged experts have."""
        modules: Counter[str] = Counter()
        for one in self._model.parameters:
            if one.kind in ("linear", "experts"):
                modules[one.name.rpartition(".")[0]] += one.elements * config.precision.element_bytes
        return max(modules.values(), default=0)

    def _plan(self, config: TransformersConfig) -> TransformersPlan:
        model, runtime = self._model, self._runtime
        row = precision_row(model, config.precision, config.context)
        main = runtime.gpus[0].name if runtime.gpus else "cpu"
        modules = dict(config.device_map)
        weights = Counter({main: row.buffers_bytes or 0})
        for one in model.parameters:
            weights[place_of(one.name, modules)] += loaded_bytes(one, config.precision)
        if config.precision.bits == 4 and runtime.packs_4bit:
            weights[main] += packed_state_bytes(model, double_quant=config.double_quant) - row.state_bytes
        kv_cache: Counter[str] = Counter()
        layers = layer_bytes(model, config.precision)
        for name, size in zip(layers, self._kv_of_layers(config), strict=True):
            place = place_of(name, modules)
            kv_cache[place if place.startswith("gpu") else main] += size
        disk = weights["disk"]
        streamed = [module for module, place in config.device_map if place == "disk"]
        # A matrix that is computed with, and what is read ahead of it.
        largest = self._largest_module(config)
        ring = 2 * largest if streamed else 0
        passes = self._pass_bytes(config)
        needed = loading_peak_bytes(model, config.precision, streamed)
        if runtime.gpus:  # what goes there is in RAM only on its way
            needed = weights["cpu"] + 2 * 4 * max(one.elements for one in model.parameters)
        loading = max(
            runtime.starting_bytes, runtime.converting_bytes, runtime.loading_process_bytes + needed
        )
        steady = runtime.process_bytes + weights["cpu"] + kv_cache["cpu"]
        compute = ring if runtime.gpus else passes + ring
        ram = TierUse(
            name="ram",
            kind="ram",
            budget_bytes=self._budget_bytes,
            limit_bytes=self._limit_bytes,
            parts={
                "weights": weights["cpu"],
                "kv_cache": kv_cache["cpu"],
                "compute": compute,
                "overhead": runtime.process_bytes + max(0, loading - steady - compute),
            },
        )
        sent = weights["cpu"] + disk if runtime.gpus else 0  # to the first GPU, for every pass
        on_gpus = [
            TierUse(
                name=gpu.name,
                kind="vram",
                budget_bytes=gpu.budget_bytes,
                limit_bytes=gpu.limit_bytes,
                parts={
                    "weights": weights[gpu.name],
                    "kv_cache": kv_cache[gpu.name],
                    "compute": max(
                        passes + (largest if sent and gpu.name == main else 0),
                        row.loading_extra_bytes["cuda"],
                    ),
                    "overhead": gpu.process_bytes + _UNUSED_BYTES,
                },
            )
            for gpu in runtime.gpus
            if gpu.number in config.gpus
        ]
        plan = TransformersPlan(
            spec=self._spec,
            config=config,
            context=config.context,
            tiers=(*on_gpus, ram),
            prediction=self._predict(config, disk, sent),
            why=(),
            workload=self._workload,
            row=row,
            steady_bytes=steady,
            loading_bytes=loading,
            offloaded_bytes=disk,
        )
        return replace(plan, why=tuple(_reasons(plan, model, runtime)))

    def _predict(self, config: TransformersConfig, streamed_bytes: int, sent_bytes: int) -> Prediction:
        """Seconds of a pass: each matrix at its precision's rate, each layer's own time, the disk's, and what
        is sent to a GPU."""
        runtime, model = self._runtime, self._model
        plain = config.precision.plain_type
        one = many = 0.0
        tokens = min(config.ubatch, self._workload.prompt_tokens)
        for each in model.parameters:
            if each.kind not in ("linear", "head", "experts") and not (
                each.kind == "embedding" and model.hf_config.tie_word_embeddings
            ):
                continue
            rate = config.load_in if each.kind == "linear" else plain
            elements = each.elements * self._spec.active_share(each.name)
            one += elements / _of(runtime.elements_per_second, rate)
            # Of a prompt only the last token's logits are computed.
            rows = 1 if each.kind in ("head", "embedding") else tokens
            many += 2 * elements * rows / _of(runtime.operations_per_second, rate)
        layers = model.hf_config.num_hidden_layers * runtime.layer_seconds
        if sent_bytes:
            layers += sent_bytes / runtime.link_bytes_per_second
        disk = streamed_bytes / runtime.disk_bytes_per_second
        generation = _rate(1 / (layers + max(one, disk) + min(one, disk) * 0.5 * bool(streamed_bytes)))
        prompt = _rate(tokens / (layers + max(many, disk)))
        return Prediction(prompt=prompt, generation=generation, together=generation, basis=runtime.basis)


def _of(rates: Mapping[str, float], precision: str) -> float:
    """What was not measured, as for a mere suggestion, is as fast as the slowest."""
    return rates.get(precision) or min(rates.values())


def _rate(value: float) -> Rate:
    return Rate(value=value, low=value * (1 - _SPREAD), high=value * (1 + _SPREAD))


def require_sense(config: TransformersConfig, workload: Workload) -> None:
    """Raises UsageError where the workload asks for what this engine does not do."""
    if workload.parallel != 1:
        raise WrongValueError("parallel", ": transformers answers one sequence at a time here")
    if workload.kv_type not in ("auto", "f16"):
        raise WrongValueError("kv_type", ": transformers keeps the cache in the model's own type")
    if workload.repack != "auto":
        raise WrongValueError("repack", ": transformers holds weights as --load-in says")
    if config.double_quant and precision(config.load_in).bits != 4:
        raise WrongValueError("double_quant", " goes with --load-in nf4 or fp4")


def _refuse_shapes(model: HfModel, config: TransformersConfig, runtime: Runtime) -> None:
    if config.precision.bits == 4 and runtime.packs_4bit and (layer := refused_layer(model)):
        shape = " x ".join(map(str, layer.shape))
        raise WrongValueError(
            "load_in",
            f" {config.load_in}: {layer.name} is {shape}, and bitsandbytes packs rows by 32 and "
            "columns by 64 on this CPU; try --load-in int8 or bf16",
        )


def _reasons(plan: TransformersPlan, model: HfModel, runtime: Runtime) -> Iterator[str]:
    row, config = plan.row, plan.config
    for kept in row.unquantized if row.quantized_layers else ():
        yield f"not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"
    if row.quantized_layers:
        yield (
            f"{row.quantized_layers} layers quantized to {format_bytes(row.quantized_bytes)}, with "
            f"{format_bytes(row.state_bytes)} of scales that transformers' own footprint leaves out"
        )
    if config.precision.bits == 4 and runtime.packs_4bit:
        yield "bitsandbytes packs the weights anew at the first pass: this CPU has AVX512-BF16"
    if config.gguf:
        yield (
            f"transformers dequantizes the file to {config.precision.plain_type}: at its first run it "
            f"becomes a checkpoint of {format_bytes(sum(path.stat().st_size for path in config.paths))} in "
            f"{config.folder.parent}, and that takes {format_bytes(runtime.converting_bytes)} of RAM"
        )
    in_ram = sum(place == "cpu" for module, place in config.device_map if module) if runtime.gpus else 0
    if in_ram:
        yield (
            f"{in_ram} layers lie in RAM: {format_bytes(plan.ram.weights_bytes)} are sent to "
            f"{runtime.gpus[0].name} for every pass"
        )
    loading, steady = format_bytes(plan.loading_bytes), format_bytes(plan.steady_bytes)
    yield f"loading takes {loading} at most, then {steady} stay"
    if plan.offloaded_bytes:
        count = sum(place == "disk" for _, place in config.device_map)
        yield f"{count} layers stay on the disk: {format_bytes(plan.offloaded_bytes)} are read for every pass"
    longest = model.hf_config.max_position_embeddings
    if longest and plan.context > longest:
        yield f"the model was trained for {longest} tokens, a context of {plan.context} is beyond that"
    yield from model.notes
