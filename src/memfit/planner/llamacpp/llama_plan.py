"""A plan for llama.cpp: what the engine is told, what the plan was made for, and why in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from memfit.errors import UsageError
from memfit.headers.purpose import has_cache
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.memory.streaming import DEQUANTIZED, WIDENED, dequantized_bytes, streamed_bytes, widened_bytes
from memfit.planner.llamacpp.embedding import reads_whole
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.tensor_devices import exceptions_of
from memfit.planner.plan import Plan
from memfit.planner.speed import Prediction
from memfit.units import format_bytes, format_rate

__all__ = ["LlamaPlan", "reasons"]


@dataclass(frozen=True, kw_only=True)
class LlamaPlan(Plan):
    """For llama.cpp. saved.py makes an equal one of its JSON."""

    engine: ClassVar[str] = "llamacpp"
    config: LlamaConfig

    @property
    def parallel(self) -> int:
        return self.config.parallel

    @property
    def embeds(self) -> bool:
        return self.config.embeds

    @property
    def sequence_context(self) -> int:
        if self.embeds:
            most = self.ubatch if reads_whole(self.workload, self.spec) else self.context
            return min(most, self.spec.context_length)
        return self.context if self.config.kv_unified else self.context // self.config.parallel

    @property
    def streamed_bytes(self) -> int:
        return streamed_bytes(self.spec.tensors, self.config.streamed)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "kv_type": self.config.kv_type,
            "threads": self.config.threads,
            "repack": self.config.repack,
            "load_mode": self.config.load_mode,
            "devices": list(self.config.devices),
            "layers": list(self.config.layers),
            "overrides": [list(one) for one in self.config.overrides],
            "op_offload": self.config.op_offload,
        }

    def require_extras(self, names: Sequence[str]) -> None:
        """All that a request has is llama.cpp's."""

    def require_schemas(self) -> None:
        if not self.config.grammar_bytes:
            raise UsageError(
                "this plan has no memory for JSON schemas; make one with --schema FILE, or in Python with "
                "Workload(grammars=True)"
            )

    @property
    def settings(self) -> str:
        config = self.config
        repack = "repack on" if config.repack else "repack off"
        if config.dequantized:
            repack = f"{len(config.dequantized)} matrices as BF16"
        if config.twofold:
            repack = "repack both ways"
        if config.prompt_dequantized:
            repack = f"{len(config.prompt_dequantized)} matrices as {DEQUANTIZED}, too"
        if config.widened:
            repack += f", {len(config.widened)} matrices as {WIDENED}"
        if config.plain:
            repack += f", {len(config.plain)} stay plain"
        cache = f"KV {config.kv_type} · " if has_cache(self.spec) else ""
        return f"{cache}ubatch {config.ubatch} · {config.threads} threads · {repack} · {config.load_mode}"


def reasons(
    plan: LlamaPlan,
    inputs: PlanInputs,
    *,
    other: Prediction | None,
    otherwise: Prediction | None,
    alone: Prediction | None,
    too_small: Sequence[str],
) -> Iterator[str]:
    """What neither the plan nor its `inputs` say: the prediction with the `other` way of holding weights, if
    that fits too, with prompts' matrices in RAM multiplied `otherwise`, and with RAM `alone`, if that fits
    and is faster; devices that are `too_small`."""
    if inputs.conditions:
        yield f"as asked: {inputs.conditions}"
    yield from _budget_reasons(plan, inputs)
    yield from _context_reasons(plan)
    yield f"repack {'on' if plan.config.repack else 'off'}: {_repack_reason(plan, inputs, other)}"
    yield from _form_reasons(plan)
    yield f"load mode {plan.config.load_mode}: {_load_reason(plan)}"
    yield from _device_reasons(plan, inputs, alone, too_small)
    yield from _op_offload_reasons(plan, otherwise)
    size, threads = plan.config.ubatch, plan.config.threads
    yield f"ubatch {size}: {_ubatch_reason(plan, inputs)}"
    yield f"{threads} threads: " + ("as asked" if plan.workload.threads else "one per physical core")


def _budget_reasons(plan: LlamaPlan, inputs: PlanInputs) -> Iterator[str]:
    free_bytes = inputs.machine.ram.available_bytes
    if inputs.budget.ram is None:
        yield (
            f"budget: {format_bytes(free_bytes)} free "
            f"less {format_bytes(free_bytes - plan.ram.budget_bytes)} reserve; --ram sets it"
        )
    elif plan.ram.budget_bytes > free_bytes:
        yield f"only {format_bytes(free_bytes)} of the budget is free now"


def _context_reasons(plan: LlamaPlan) -> Iterator[str]:
    context, kv_type = plan.config.context, plan.config.kv_type
    if plan.embeds:
        yield f"texts of up to {plan.sequence_context} tokens: {_text_reason(plan)}"
    elif plan.workload.context is None:
        yield f"context {context}: the default; --ctx sets it"
    if context > plan.spec.context_length and plan.config.parallel == 1:
        yield f"the model was trained for {plan.spec.context_length} tokens; beyond that it degrades"
    if not plan.config.kv_unified:
        yield f"each sequence has its own {plan.context // plan.config.parallel} tokens of it"
    if plan.context != context and not plan.embeds:
        yield f"context {context} becomes {plan.context}: the engine rounds up"
    fits = plan.ram.needs_bytes <= plan.ram.limit_bytes
    if plan.workload.kv_type == "auto" and has_cache(plan.spec) and fits:
        yield f"KV cache {kv_type}: " + (
            "it fits unquantized" if kv_type == "f16" else "f16 does not fit the budget"
        )


def _text_reason(plan: LlamaPlan) -> str:
    if plan.sequence_context == plan.spec.context_length:
        return "the model was trained for no more"
    return "as asked" if plan.workload.context else "the default; --ctx sets it"


def _repack_reason(plan: LlamaPlan, inputs: PlanInputs, other: Prediction | None) -> str:
    if plan.workload.repack != "auto":
        return "as asked"
    if inputs.speeds is None:
        return "llama.cpp's default; this machine is too busy to be measured"
    if len(plan.tiers) > 1:
        return "what was measured faster for what lies in RAM"
    if other is None:
        return "the other way does not fit"
    rates = [("prompt", plan.prediction.prompt, other.prompt)]
    if plan.prediction.together and other.together:
        rates.append(("generation", plan.prediction.together, other.together))
    against = (f"{what} {format_rate(it.value)} against {format_rate(its.value)}" for what, it, its in rates)
    return f"{', '.join(against)}, by this CPU's kernels"


def _form_reasons(plan: LlamaPlan) -> Iterator[str]:
    """Of matrices in another form than the file's or the engine's: what it takes, and what for."""
    config, tensors = plan.config, plan.spec.tensors
    types = " and ".join(sorted({one.type for one in tensors if one.name in set(config.widened)}))
    for names, held, more, why in (
        (
            config.dequantized,
            f"held as {DEQUANTIZED}",
            lambda one: dequantized_bytes(one) - one.size_bytes,
            "many sequences at once are computed faster so, by this CPU's kernels",
        ),
        (
            config.prompt_dequantized,
            f"held as {DEQUANTIZED} as well",
            dequantized_bytes,
            "faster for prompts. It rounds weights to 8 bits; SmolLM2-135M was nearer to F32 so than by "
            "its own type's kernels (KL 0.0002 against 0.005); --repack off does without",
        ),
        (
            config.twofold,
            "held rewritten as well",
            lambda one: one.size_bytes,
            "the plain ones are faster for prompts, the rewritten ones for single tokens",
        ),
        (
            config.widened,
            f"of {types} rewritten as {WIDENED}, which has every value of theirs",
            lambda one: widened_bytes(one) - one.size_bytes,
            "this CPU's kernels are faster with it",
        ),
    ):
        if chosen := set(names):
            added = sum(more(one) for one in tensors if one.name in chosen)
            yield f"{len(chosen)} matrices {held}, for {format_bytes(added)} more: {why}"
    if config.plain:
        yield f"{len(config.plain)} matrices stay plain: this CPU's kernels are faster with them"


def _ubatch_reason(plan: LlamaPlan, inputs: PlanInputs) -> str:
    size, full = plan.config.ubatch, inputs.ubatches[0]
    if inputs.reads_whole and not inputs.conditions.ubatch:
        return "a pass reads a text as a whole"
    if inputs.conditions.ubatch:
        if size == inputs.conditions.ubatch:
            return "as asked"
        return (
            "a token of each sequence" if size == plan.config.parallel else f"the context is {inputs.context}"
        )
    if size > full:
        return "weights that are sent or read for each one serve so many tokens of a prompt"
    if size == full:
        return "full speed on prompts"
    beside = ", or leaves devices less room" if plan.config.devices else ""
    return f"a larger one does not fit{beside}"


def _load_reason(plan: LlamaPlan) -> str:
    if plan.streamed_bytes:
        return "more than memory holds, so a part is read from the disk for every pass"
    if plan.config.dequantized or plan.config.prompt_dequantized or plan.config.twofold:
        return "past the page cache, so that only what was made of the file is held"
    return {
        "mmap": "the file's own pages, no copy",
        "read": "tensor by tensor, so the file is not kept in memory",
        "own": "past the page cache, and to devices in pieces, which takes little beside the weights",
    }[plan.config.load_mode]


def _device_reasons(
    plan: LlamaPlan, inputs: PlanInputs, alone: Prediction | None, too_small: Sequence[str]
) -> Iterator[str]:
    for name in too_small:
        yield f"{name} is not used: its budget holds little more than compute buffers"
    devices = [tier.name for tier in plan.tiers if tier.kind == "vram"]
    if not plan.config.devices:
        for name in devices:
            yield f"{name} is not used: with it the model would be slower, and RAM suffices"
        return
    for name, count in zip(devices, plan.config.layers, strict=True):
        yield f"{name}: {count} layers, with their KV cache"
    for one in inputs.used_devices:
        if one.device.is_integrated and one.device.name in devices:
            yield f"{one.device.name} is integrated: its memory is RAM, where what lies there counts too"
    if alone:
        yield (
            "devices are used because they were asked for: RAM alone would do, at "
            f"{format_rate(alone.main.value)} {'generation' if alone.generation else 'prompt'}"
        )
    for (device, kind), layers in exceptions_of(plan.spec, plan.config).items():
        yield f"{kind} of {_ranges(layers)} in {'RAM' if device == RAM else devices[device - 1]}"


def _op_offload_reasons(plan: LlamaPlan, otherwise: Prediction | None) -> Iterator[str]:
    """Who multiplies a prompt with the matrices in RAM, where there is a choice that makes a difference."""
    if not otherwise or not plan.config.devices or plan.prediction.prompt == otherwise.prompt:
        return
    name = plan.tiers[1].name
    takes_over, by_cpu = (
        f"{name} multiplies prompts with what lies in RAM",
        "this CPU computes what lies in RAM",
    )
    doing, instead = (takes_over, by_cpu) if plan.config.op_offload else (by_cpu, takes_over)
    yield (
        f"{doing}: prompt {format_rate(plan.prediction.prompt.value)}, against "
        f"{format_rate(otherwise.prompt.value)} if {instead}"
    )


def _ranges(layers: Sequence[int]) -> str:
    """ "layers 3, 7-9"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return f"layer{'s' * (len(layers) > 1)} " + ", ".join("-".join(map(str, run)) for run in runs)
