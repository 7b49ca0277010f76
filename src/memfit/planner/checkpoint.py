"""Plans a Hugging Face checkpoint in transformers: which precision, what in RAM and what on the disk.

Whole decoder layers are placed, since transformers computes them one after the other; what does not fit is
read again for every pass. Pure: what the libraries themselves take, and how fast they are, is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memfit.errors import UsageError
from memfit.hardware.machine import Machine
from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec
from memfit.memory.checkpoint import (
    TransformersParameters,
    layer_bytes,
    layer_kv_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    pass_bytes,
    refused_layer,
)
from memfit.memory.precision import PrecisionRow, loaded_bytes, precision_row
from memfit.planner.layers import LayerCosts, counts_on_gpus, device_map, place_of
from memfit.planner.plan import Plan, TierUse
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import Prediction, Rate
from memfit.units import MIB, format_bytes

__all__ = ["LOAD_IN", "GpuRuntime", "Runtime", "TransformersPlan", "plan_checkpoint", "require_sense"]

LOAD_IN = ("fp32", "bf16", "fp16", "int8", "nf4", "fp4")
_QUANTIZED = ("int8", "nf4", "fp4")
_MICRO_BATCHES = (512, 256, 128, 64, 32)
_INT8_MICRO_BATCH = 128  # no faster above, and memory grows with it
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

    parameters: TransformersParameters
    row: PrecisionRow
    steady_bytes: int  # in RAM between two passes
    loading_bytes: int  # in RAM at most while loading
    offloaded_bytes: int  # weights that are read for every pass

    @property
    def engine(self) -> str:
        return "transformers"

    @property
    def micro_batch(self) -> int:
        return self.parameters.micro_batch

    @property
    def streamed_bytes(self) -> int:
        return self.offloaded_bytes

    @property
    def facts(self) -> Mapping[str, Any]:
        parameters = self.parameters
        return {
            "load_in": parameters.load_in,
            "double_quant": parameters.double_quant,
            "threads": parameters.threads,
            "device_map": dict(parameters.device_map),
            "steady_bytes": self.steady_bytes,
            "loading_bytes": self.loading_bytes,
            "precision": self.row.to_json(),
        }

    @property
    def settings(self) -> str:
        parameters = self.parameters
        precision = parameters.load_in + ", double quantization" * parameters.double_quant
        return (
            f"transformers, {precision} · micro-batch {parameters.micro_batch} · {parameters.threads} threads"
        )


def plan_checkpoint(
    spec: ModelSpec,
    model: HfModel,
    parameters: TransformersParameters,
    machine: Machine,
    budget: Budget,
    workload: Workload,
    runtimes: Sequence[Runtime],
) -> TransformersPlan:
    """The plan; its context, micro-batch and device map are chosen here, and whether GPUs are used: the
    fastest of `runtimes` that fits, or the first.

    Raises:
        UsageError: the workload asks for what this engine does not do, or this CPU cannot run it.
    """
    require_sense(parameters, workload)
    longest = model.config.max_position_embeddings or _DEFAULT_CONTEXT
    context = workload.context or min(_DEFAULT_CONTEXT, longest)
    searches = [_Search(spec, model, machine, budget, workload, runtime) for runtime in runtimes]
    plans = [search.best(replace(parameters, context=context)) for search in searches]
    if fitting := [plan for plan in plans if plan.fits]:
        best = max(fitting, key=lambda plan: plan.prediction.generation.value)
        _refuse_shapes(model, best.parameters, runtimes[plans.index(best)])
        return best
    _refuse_shapes(model, parameters, runtimes[0])
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

    def best(self, parameters: TransformersParameters) -> TransformersPlan:
        """All in memory with the largest micro-batch that fits; else with layers on the disk; else what is
        smallest. With GPUs as many layers there as they hold."""
        most = _INT8_MICRO_BATCH if parameters.load_in == "int8" else parameters.context
        sizes = [size for size in _MICRO_BATCHES if size <= max(most, _MICRO_BATCHES[-1])]
        for size in sizes:
            plan = self._plan(self._with_streamed(replace(parameters, micro_batch=size), 0))
            if plan.fits:
                return plan
        if self._may_stream and parameters.load_in not in _QUANTIZED:
            for size in sizes:
                plan = self._streaming(replace(parameters, micro_batch=size))
                if plan.fits:
                    return plan
        return plan

    def suggestions(self, plan: TransformersPlan) -> Iterator[str]:
        """Options that do fit."""
        wanted = plan.parameters
        for load_in, double_quant in (("bf16", False), ("int8", False), ("nf4", False), ("nf4", True)):
            other = replace(wanted, load_in=load_in, double_quant=double_quant)
            smaller = precision_row(self._model, other.precision, 1).resident_bytes < plan.row.resident_bytes
            runs = load_in == "int8" or load_in == "bf16" or not self._refused()
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

    def _streaming(self, parameters: TransformersParameters) -> TransformersPlan:
        """The last layers on the disk, as few as will do."""
        low, high = 1, self._model.config.num_hidden_layers  # how many are streamed
        while low < high:
            middle = (low + high) // 2
            if self._plan(self._with_streamed(parameters, middle)).fits:
                high = middle
            else:
                low = middle + 1
        return self._plan(self._with_streamed(parameters, low))

    def _with_streamed(self, parameters: TransformersParameters, count: int) -> TransformersParameters:
        """As many layers on GPUs as they hold, of the others the last `count` on the disk."""
        model, gpus = self._model, self._runtime.gpus
        layers = layer_bytes(model, parameters.precision)
        counts: list[int] = []
        if gpus:
            row = precision_row(model, parameters.precision, 1)
            costs = LayerCosts(
                layers=list(layers.values()),
                kv=self._kv_of_layers(parameters),
                shared=row.resident_bytes - sum(layers.values()),
                passes=self._pass_bytes(parameters),
                loading=row.loading_extra_bytes["cuda"],
                ring=self._largest_module(parameters),
            )
            counts = counts_on_gpus(costs, [gpu.room_bytes for gpu in gpus])
            if parameters.load_in in _QUANTIZED:  # all of it on GPUs, or nothing
                counts[-1] += len(layers) - sum(counts)
        names = [gpu.name for gpu in gpus]
        # The first has what is no layer; another one without layers is not touched.
        used = [gpu for gpu, layers_on in zip(gpus, counts, strict=True) if layers_on or gpu is gpus[0]]
        rest = len(layers) - sum(counts)
        on_disk = min(count, rest)
        places = [*zip(names, counts, strict=True), ("cpu", rest - on_disk), ("disk", on_disk)]
        return replace(
            parameters,
            device_map=device_map(model, list(layers), places),
            gpus=tuple(gpu.number for gpu in used),
            gpu_limits=tuple(gpu.limit_bytes - gpu.process_bytes for gpu in used),
        )

    def _kv_of_layers(self, parameters: TransformersParameters) -> list[int]:
        return layer_kv_bytes(
            self._model.config, parameters.context, parameters.micro_batch, _element_bytes(parameters)
        )

    def _pass_bytes(self, parameters: TransformersParameters) -> int:
        return pass_bytes(
            self._model,
            parameters.load_in,
            context=parameters.context,
            micro_batch=parameters.micro_batch,
            packs=self._runtime.packs_4bit,
        )

    def _largest_module(self, parameters: TransformersParameters) -> int:
        """Bytes of the matrices that are computed with at once: one, or all that merged experts have."""
        modules: Counter[str] = Counter()
        for one in self._model.parameters:
            if one.kind in ("linear", "experts"):
                modules[one.name.rpartition(".")[0]] += one.elements * _element_bytes(parameters)
        return max(modules.values(), default=0)

    def _plan(self, parameters: TransformersParameters) -> TransformersPlan:
        model, runtime = self._model, self._runtime
        row = precision_row(model, parameters.precision, parameters.context)
        main = runtime.gpus[0].name if runtime.gpus else "cpu"
        modules = dict(parameters.device_map)
        weights = Counter({main: row.buffers_bytes or 0})
        for one in model.parameters:
            weights[place_of(one.name, modules)] += loaded_bytes(one, parameters.precision)
        if parameters.load_in in ("nf4", "fp4") and runtime.packs_4bit:
            weights[main] += packed_state_bytes(model, double_quant=parameters.double_quant) - row.state_bytes
        kv_cache: Counter[str] = Counter()
        layers = layer_bytes(model, parameters.precision)
        for name, size in zip(layers, self._kv_of_layers(parameters), strict=True):
            place = place_of(name, modules)
            kv_cache[place if place.startswith("gpu") else main] += size
        disk = weights["disk"]
        streamed = [module for module, place in parameters.device_map if place == "disk"]
        # A matrix that is computed with, and what is read ahead of it.
        largest = self._largest_module(parameters)
        ring = 2 * largest if streamed else 0
        passes = self._pass_bytes(parameters)
        needed = loading_peak_bytes(model, parameters.precision, streamed)
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
            weights_bytes=weights["cpu"],
            kv_cache_bytes=kv_cache["cpu"],
            compute_bytes=compute,
            overhead_bytes=runtime.process_bytes + max(0, loading - steady - compute),
        )
        sent = weights["cpu"] + disk if runtime.gpus else 0  # to the first GPU, for every pass
        on_gpus = [
            TierUse(
                name=gpu.name,
                kind="vram",
                budget_bytes=gpu.budget_bytes,
                limit_bytes=gpu.limit_bytes,
                weights_bytes=weights[gpu.name],
                kv_cache_bytes=kv_cache[gpu.name],
                compute_bytes=max(
                    passes + (largest if sent and gpu.name == main else 0),
                    row.loading_extra_bytes["cuda"],
                ),
                overhead_bytes=gpu.process_bytes + _UNUSED_BYTES,
            )
            for gpu in runtime.gpus
            if gpu.number in parameters.gpus
        ]
        plan = TransformersPlan(
            spec=self._spec,
            parameters=parameters,
            context=parameters.context,
            tiers=(*on_gpus, ram),
            prediction=self._predict(parameters, disk, sent),
            why=(),
            workload=self._workload,
            row=row,
            steady_bytes=steady,
            loading_bytes=loading,
            offloaded_bytes=disk,
        )
        return replace(plan, why=tuple(_reasons(plan, model, runtime)))

    def _predict(
        self, parameters: TransformersParameters, streamed_bytes: int, sent_bytes: int
    ) -> Prediction:
        """Seconds of a pass: each matrix at its precision's rate, each layer's own time, the disk's, and what
        is sent to a GPU."""
        runtime, model = self._runtime, self._model
        plain = parameters.plain_type
        one = many = 0.0
        tokens = min(parameters.micro_batch, self._workload.prompt_tokens)
        for each in model.parameters:
            if each.kind not in ("linear", "head", "experts") and not (
                each.kind == "embedding" and model.config.tie_word_embeddings
            ):
                continue
            rate = parameters.load_in if each.kind == "linear" else plain
            elements = each.elements
            if each.kind == "experts":
                elements = elements * min(8, each.shape[0]) // each.shape[0]
            one += elements / _of(runtime.elements_per_second, rate)
            # Of a prompt only the last token's logits are computed.
            rows = 1 if each.kind in ("head", "embedding") else tokens
            many += 2 * elements * rows / _of(runtime.operations_per_second, rate)
        layers = model.config.num_hidden_layers * runtime.layer_seconds
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


def _element_bytes(parameters: TransformersParameters) -> int:
    return 4 if parameters.load_in == "fp32" else 2


def require_sense(parameters: TransformersParameters, workload: Workload) -> None:
    """Raises UsageError where the workload asks for what this engine does not do."""
    if workload.parallel != 1:
        raise UsageError("--parallel: transformers answers one sequence at a time here")
    if workload.kv_type not in ("auto", "f16"):
        raise UsageError("--kv-type: transformers keeps the cache in the model's own type")
    if workload.repack != "auto":
        raise UsageError("--repack: transformers holds weights as --load-in says")
    if parameters.double_quant and parameters.load_in not in ("nf4", "fp4"):
        raise UsageError("--double-quant goes with --load-in nf4 or fp4")


def _refuse_shapes(model: HfModel, parameters: TransformersParameters, runtime: Runtime) -> None:
    if parameters.load_in in ("nf4", "fp4") and runtime.packs_4bit and (layer := refused_layer(model)):
        shape = " x ".join(map(str, layer.shape))
        raise UsageError(
            f"--load-in {parameters.load_in}: {layer.name} is {shape}, and bitsandbytes packs rows by 32 and "
            "columns by 64 on this CPU; try --load-in int8 or bf16"
        )


def _reasons(plan: TransformersPlan, model: HfModel, runtime: Runtime) -> Iterator[str]:
    row, parameters = plan.row, plan.parameters
    for kept in row.unquantized if row.quantized_layers else ():
        yield f"not quantized: {kept.kind}, {format_bytes(kept.size_bytes)}: {kept.why}"
    if row.quantized_layers:
        yield (
            f"{row.quantized_layers} layers quantized to {format_bytes(row.quantized_bytes)}, with "
            f"{format_bytes(row.state_bytes)} of scales that transformers' own footprint leaves out"
        )
    if parameters.load_in in ("nf4", "fp4") and runtime.packs_4bit:
        yield "bitsandbytes packs the weights anew at the first pass: this CPU has AVX512-BF16"
    if parameters.gguf:
        yield (
            f"transformers dequantizes the file to {parameters.plain_type}: at its first run it becomes a "
            f"checkpoint of {format_bytes(sum(path.stat().st_size for path in parameters.paths))} in "
            f"{parameters.folder.parent}, and that takes {format_bytes(runtime.converting_bytes)} of RAM"
        )
    in_ram = sum(place == "cpu" for module, place in parameters.device_map if module) if runtime.gpus else 0
    if in_ram:
        yield (
            f"{in_ram} layers lie in RAM: {format_bytes(plan.ram.weights_bytes)} are sent to "
            f"{runtime.gpus[0].name} for every pass"
        )
    loading, steady = format_bytes(plan.loading_bytes), format_bytes(plan.steady_bytes)
    yield f"loading takes {loading} at most, then {steady} stay"
    if plan.offloaded_bytes:
        count = sum(place == "disk" for _, place in parameters.device_map)
        yield f"{count} layers stay on the disk: {format_bytes(plan.offloaded_bytes)} are read for every pass"
    longest = model.config.max_position_embeddings
    if longest and plan.context > longest:
        yield f"the model was trained for {longest} tokens, a context of {plan.context} is beyond that"
    yield from model.notes
