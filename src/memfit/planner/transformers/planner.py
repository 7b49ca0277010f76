"""Plans a Hugging Face checkpoint in transformers: which precision, what in RAM and what on the disk.

Whole decoder layers are placed, since transformers computes them one after the other; what does not fit is
read again for every pass. Pure: what the libraries themselves take, and how fast they are, is given.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memfit.errors import WrongValueError
from memfit.hardware.machine import Machine
from memfit.headers.hf_shapes import HfModel
from memfit.headers.model_spec import ModelSpec
from memfit.memory.loaded_checkpoint import (
    TransformersConfig,
    layer_bytes,
    pass_bytes,
    refused_layer,
    ring_bytes,
)
from memfit.memory.precision import STORED, precision
from memfit.memory.precision_table import precision_row
from memfit.planner.request import UBATCHES, Budget, Workload, context_of
from memfit.planner.transformers.runtime import Runtime, predict_checkpoint
from memfit.planner.transformers.tiers import (
    LayerCosts,
    brought_bytes,
    checkpoint_bytes,
    counts_on_gpus,
    device_map,
    kv_of_layers,
)
from memfit.planner.transformers.transformers_plan import TransformersPlan, checkpoint_reasons
from memfit.units import MIB

__all__ = ["plan_checkpoint", "require_sense", "runs_in_parallel"]

_INT8_UBATCH = 128  # no faster above, and memory grows with it


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
    require_sense(config, workload, model)
    context = context_of(workload, model.hf_config.max_position_embeddings)
    # The roomiest GPU first: it has what is no layer, too.
    runtimes = [
        replace(one, gpus=tuple(sorted(one.gpus, key=lambda gpu: -gpu.room_bytes))) for one in runtimes
    ]
    searches = [_Search(spec, model, machine, budget, workload, runtime) for runtime in runtimes]
    wanted = replace(config, context=context, parallel=workload.parallel, outputs=workload.outputs)
    plans = [search.best(wanted) for search in searches]
    if fitting := [plan for plan in plans if plan.fits]:
        best = max(fitting, key=lambda plan: plan.prediction.main.value)
        _refuse_shapes(model, best.config, runtimes[plans.index(best)])
        return best
    _refuse_shapes(model, config, runtimes[0])
    return replace(plans[0], suggestions=tuple(searches[0].suggestions(plans[0])))


@dataclass(frozen=True)
class _Search:
    """Plans of one model within one budget."""

    spec: ModelSpec
    model: HfModel
    machine: Machine
    budget: Budget
    workload: Workload
    runtime: Runtime

    def best(self, config: TransformersConfig) -> TransformersPlan:
        """All in memory with the largest ubatch that fits; else with layers on the disk; else what is
        smallest. With GPUs as many layers there as they hold."""
        most = _INT8_UBATCH if config.precision.bits == 8 else config.context
        # Each sequence has a token of its own in a pass.
        sizes = [size for size in UBATCHES if config.parallel <= size <= max(most, UBATCHES[-1])]
        sizes = sizes or [next(size for size in reversed(UBATCHES) if size >= config.parallel)]
        for size in sizes:
            plan = self._plan(replace(config, ubatch=size), 0)
            if plan.fits:
                return plan
        if self.budget.disk and not config.precision.is_quantized:
            for size in sizes:
                plan = self._streaming(replace(config, ubatch=size))
                if plan.fits:
                    return plan
        return plan

    def suggestions(self, plan: TransformersPlan) -> Iterator[str]:
        """Options that do fit."""
        wanted = plan.config
        smaller_ones = [("bf16", False), ("int8", False), ("nf4", False), ("nf4", True)]
        if any(one.stored for one in self.model.parameters):
            smaller_ones.insert(0, (STORED, False))
        for load_in, double_quant in smaller_ones:
            other = replace(wanted, load_in=load_in, double_quant=double_quant)
            smaller = precision_row(self.model, other.precision, 1).resident_bytes < plan.row.resident_bytes
            runs = other.precision.bits != 4 or not (self.runtime.packs_4bit and refused_layer(self.model))
            if smaller and runs and self.best(other).fits:
                yield f"--load-in {load_in}{' --double-quant' * double_quant}"
                break
        context = wanted.context // 2 // 256 * 256
        while context and not (found := self.best(replace(wanted, context=context)).fits):
            context = context // 2 // 256 * 256
        if context and found:
            yield f"--ctx {context}"
        yield f"--ram {-(-plan.ram.needs_bytes // (16 * MIB)) * 16}MiB"

    def _streaming(self, config: TransformersConfig) -> TransformersPlan:
        """As few layers on the disk as will do."""
        fewer = range(1, self.model.hf_config.num_hidden_layers)
        count = 1 + bisect_left(fewer, True, key=lambda count: self._plan(config, count).fits)
        return self._plan(config, count)

    def _with_streamed(self, config: TransformersConfig, count: int) -> TransformersConfig:
        """As many layers on GPUs as they hold, of the others `count` on the disk: evenly, so that reading one
        hides behind computing with those between."""
        gpus = self.runtime.gpus
        layers = list(layer_bytes(self.model, config.precision))
        counts = self._counts_on_gpus(config)
        # The first has what is no layer; another one without layers is not touched.
        used = [gpu for gpu, layers_on in zip(gpus, counts, strict=True) if layers_on or gpu is gpus[0]]
        rest = len(layers) - sum(counts)
        on_disk = min(count, rest)
        names = [gpu.name for gpu in gpus]
        elsewhere = [
            ("disk" if (index + 1) * on_disk // rest > index * on_disk // rest else "cpu", 1)
            for index in range(rest)
        ]
        config = replace(
            config,
            device_map=device_map(self.model, layers, [*zip(names, counts, strict=True), *elsewhere]),
        )
        return replace(
            config,
            ring_bytes=ring_bytes(self.model, config.precision, config.streamed_layers),
            gpus=tuple(gpu.number for gpu in used),
            gpu_limits=tuple(gpu.limit_bytes - gpu.process_bytes for gpu in used),
        )

    def _counts_on_gpus(self, config: TransformersConfig) -> list[int]:
        model, gpus = self.model, self.runtime.gpus
        if not gpus:
            return []
        layers = list(layer_bytes(model, config.precision).values())
        row = precision_row(model, config.precision, 1)
        costs = LayerCosts(
            layers=layers,
            kv=kv_of_layers(model, config),
            shared=row.resident_bytes - sum(layers),
            passes=pass_bytes(model, config, packs=self.runtime.packs_4bit),
            loading=row.loading_extra_bytes["cuda"],
            brought=brought_bytes(model, config, whole_layers=self.budget.disk),
        )
        counts = counts_on_gpus(costs, [gpu.room_bytes for gpu in gpus])
        if config.precision.is_quantized:  # all of it on GPUs, or nothing
            counts[-1] += len(layers) - sum(counts)
        return counts

    def _plan(self, config: TransformersConfig, streamed: int) -> TransformersPlan:
        """With the last `streamed` layers on the disk."""
        config = self._with_streamed(config, streamed)
        budget, free = self.budget.ram_bytes(self.machine.ram), self.machine.ram.available_bytes
        held = checkpoint_bytes(self.model, config, self.runtime)
        prediction = predict_checkpoint(
            self.spec,
            self.model,
            config,
            self.runtime,
            prompt_tokens=self.workload.prompt_tokens,
            streamed_bytes=held.weights["disk"],
            sent_bytes=held.sent,
        )
        plan = TransformersPlan(
            spec=self.spec,
            config=config,
            context=config.context,
            tiers=(*held.gpus(config.gpus), held.ram(budget, min(budget, free))),
            prediction=prediction,
            why=(),
            workload=self.workload,
            row=held.row,
            steady_bytes=held.steady,
            loading_bytes=held.loading,
            offloaded_bytes=held.weights["disk"],
        )
        return replace(plan, why=tuple(checkpoint_reasons(plan, self.model, self.runtime)))


def runs_in_parallel(model: HfModel) -> bool:
    """Whether several sequences can share a pass: the model's attention is known to be plain, full or in a
    window, as it is of the types whose modules are."""
    return model.buffers is not None and model.hf_config.vision is None


def require_sense(config: TransformersConfig, workload: Workload, model: HfModel) -> None:
    """Raises UsageError where the workload asks for what this engine does not do."""
    if workload.parallel != 1 and not runs_in_parallel(model):
        kind = model.hf_config.model_type
        raise WrongValueError("parallel", f": transformers answers one sequence at a time of a {kind} here")
    if workload.context is not None and workload.context < workload.parallel:
        raise WrongValueError("parallel", ": a sequence has a token at least; --ctx counts all of theirs")
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
