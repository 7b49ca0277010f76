"""Chooses how to run a model inside its budgets: placement, KV type, ubatch, repacking, load mode.

In this order of worth: an f16 KV cache over q8_0 (it changes the answers), a large ubatch over a
small one (prompt speed), and between repacked and plain weights whatever the measured kernels say is
faster for the workload. The first choice that fits wins. Every byte comes from the oracle.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from memfit.errors import EngineError, WrongValueError
from memfit.memory.estimate import RAM, LlamaConfig, Oracle
from memfit.planner.llamacpp.candidates import Candidate, Candidates
from memfit.planner.llamacpp.inputs import ROOM_FOR_ERROR, PlanInputs, repack_modes, ubatch_sizes
from memfit.planner.llamacpp.llama_plan import LlamaPlan, reasons
from memfit.planner.llamacpp.placement import Placement, Problem
from memfit.planner.llamacpp.solver import solve
from memfit.planner.llamacpp.suggest import suggestions
from memfit.planner.llamacpp.tensor_devices import layer_count
from memfit.planner.request import KV_TYPES

__all__ = ["make_plan"]

_NEGLIGIBLE_GAIN = 0.02  # within the noise of measuring kernels


def make_plan(
    inputs: PlanInputs, oracle: Oracle, solver: Callable[[Problem], Placement | None] = solve
) -> LlamaPlan:
    """The best plan that fits, or the smallest one there is with suggestions of what would fit.

    Raises:
        UsageError: the budget is not a size, or a condition names what is not there.
        EngineError: the engine refuses the configuration that was asked for.
    """
    return _Planner(inputs, oracle, solver).plan()


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Configurations that differ in how weights are held: the fastest of those that fit is taken."""

    kv_type: str
    ubatch: int
    within: tuple[int, ...]  # the bytes that each device may need, RAM's first
    streams: bool = False  # a part of the weights stays on the disk


class _Planner:
    def __init__(
        self, inputs: PlanInputs, oracle: Oracle, solver: Callable[[Problem], Placement | None]
    ) -> None:
        self._inputs = inputs
        self._oracle = oracle
        # Devices that hold nothing make no difference.
        none = inputs.conditions.gpu_layers == 0 and not inputs.conditions.overrides
        self._used = () if none else inputs.used_devices
        self._candidates = Candidates(inputs, oracle, solver, self._used)
        self._found: dict[_Choice, list[Candidate]] = {}
        self._too_small: list[str] = []  # devices without room for anything but compute buffers
        if self._used:
            self._leave_out_small_devices()
            self._candidates = Candidates(inputs, oracle, solver, self._used)
        self._check_conditions()

    def plan(self) -> LlamaPlan:
        for choice in self._choices():
            if fitting := self._fitting(choice):
                fitting = [*fitting, *self._streaming_instead(choice, fitting)]
                return self._build(self._fastest(fitting), fitting, choice.within)
        smallest = self._smallest()
        return replace(
            self._build(smallest, [smallest], self._safe_limits), suggestions=self._suggestions(smallest)
        )

    # -- limits ----------------------------------------------------------------------------------

    @property
    def _safe_limits(self) -> tuple[int, ...]:
        """What reality adds to a prediction must not break the budget."""
        return (self._inputs.ram_limit - ROOM_FOR_ERROR, *(one.safe_bytes for one in self._used))

    def _leave_out_small_devices(self) -> None:
        """A device is opened for all or none of a model, so one without room for its compute buffers would
        keep the others from being used."""
        smallest = self._inputs.config(KV_TYPES[0], self._inputs.ubatches[-1], self._repack_modes()[0])
        base = self._oracle.ask(smallest)
        buffers = base.compute_bytes + base.scratch_bytes
        has_room = {
            one.device.name: one.device.overhead_bytes + buffers < one.safe_bytes for one in self._used
        }
        self._used = tuple(one for one in self._used if has_room[one.device.name])
        self._too_small = [name for name, room in has_room.items() if not room]

    def _check_conditions(self) -> None:
        """Raises UsageError where no plan can keep them."""
        _ = self._candidates.fixed
        if self._inputs.conditions.gpu_layers and not self._used:
            small = ", ".join(self._too_small)
            needed = f"more memory on {small}" if small else "a GPU or --rpc"
            raise WrongValueError(
                "gpu_layers",
                f": there is no device that could hold layers; it takes {needed}",
                got=self._inputs.conditions.gpu_layers,
                needed=needed,
            )

    # -- choices ---------------------------------------------------------------------------------

    def _choices(self) -> Iterator[_Choice]:
        """All of them, in order of preference.

        Only a plan that would otherwise not fit goes without the room for what reality adds; with a disk, it
        would rather stream.
        """
        inputs, safe, whole = self._inputs, self._safe_limits, self._candidates.limits
        for limits in ((safe,), (whole,)) if inputs.may_stream else ((safe, whole),):
            for kv_type, within in product(inputs.kv_types, limits):
                sizes = [_Choice(kv_type=kv_type, ubatch=size, within=within) for size in inputs.ubatches]
                # The largest mostly fits; where the smallest does not, none between them does.
                if self._fitting(sizes[0]) or self._fitting(sizes[-1]):
                    yield from sizes
            if inputs.may_stream:
                yield from self._streaming_choices(inputs.ubatches, limits[0])

    def _streaming_choices(self, ubatches: Sequence[int], within: tuple[int, ...]) -> Iterator[_Choice]:
        """Each ubatch of a prompt reads all that is streamed once, so the largest is the best."""
        for kv_type, size in product(self._inputs.kv_types, ubatches):
            yield _Choice(kv_type=kv_type, ubatch=size, within=within, streams=True)

    def _streaming_instead(self, choice: _Choice, fitting: Sequence[Candidate]) -> list[Candidate]:
        """Where only short ubatches fit, a part of the model on the disk may serve prompts better."""
        longest, *_ = self._inputs.ubatches_of(self._inputs.context)
        longest_fits = any(longest <= one.config.ubatch for one in fitting)
        if choice.streams or longest_fits or not self._inputs.may_stream:
            return []
        return self._fitting(replace(choice, ubatch=self._inputs.ubatches[0], streams=True))

    def _fitting(self, choice: _Choice) -> list[Candidate]:
        """Of one choice, the configurations that fit."""
        if choice not in self._found:
            try:
                self._found[choice] = [one for one in self._configured(choice) if one is not None]
            except EngineError:
                # A quantized KV cache needs heads of a multiple of 32; the first KV type always works.
                if choice.kv_type == self._inputs.kv_types[0] and not choice.streams:
                    raise
                self._found[choice] = []
        return self._found[choice]

    def _configured(self, choice: _Choice) -> Iterator[Candidate | None]:
        workload = self._inputs.workload
        plain = self._inputs.config(choice.kv_type, choice.ubatch, False)
        is_first = choice.ubatch == self._inputs.ubatches[0]
        # What is sent or read for each ubatch serves all its tokens: a longer one may be worth its buffers.
        longer = self._inputs.long_ubatches if is_first else ()
        # A shorter one leaves devices more room for the model, where that is worth more.
        shorter = self._inputs.short_ubatches if is_first and self._used else ()
        if choice.streams:
            for size in (choice.ubatch, *longer, *shorter):
                yield self._candidates.placed(replace(plain, ubatch=size), choice.within, streams=True)
            return
        for repack, size in product(self._repack_modes(), (choice.ubatch, *shorter)):
            yield self._candidates.placed(self._inputs.config(choice.kv_type, size, repack), choice.within)
        # Rewritten weights cannot be sent: only the CPU's kernels read them.
        if self._used and workload.repack != "on" and self._inputs.may_op_offload:
            for size in (choice.ubatch, *longer, *shorter):
                yield self._candidates.placed(replace(plain, op_offload=True, ubatch=size), choice.within)
        if workload.repack != "auto" or self._used:
            return
        if self._inputs.speeds is not None:
            yield self._candidates.twofold(plain, choice.within)
            rewritten = self._inputs.config(choice.kv_type, choice.ubatch, True)
            yield self._candidates.in_forms(rewritten, choice.within)
            yield self._candidates.dequantized(plain, choice.within, for_prompts=True)
        if workload.parallel > 1:
            yield self._candidates.dequantized(plain, choice.within)

    def _repack_modes(self) -> tuple[bool, ...]:
        """Repacked, plain or both. With devices only what is faster in RAM: each mode is a placement."""
        modes = repack_modes(self._inputs.workload)
        if len(modes) == 1 or not self._used:
            return modes
        if self._inputs.speeds is None:
            return (True,)
        ubatch = self._inputs.ubatches[-1]
        both = [self._candidates.evaluate(self._inputs.config("f16", ubatch, repack)) for repack in modes]
        return (self._fastest(both).config.repack,)

    def _fastest(self, options: Sequence[Candidate]) -> Candidate:
        if self._inputs.speeds is None:
            # llama.cpp's defaults
            return max(options, key=lambda one: (one.config.op_offload, one.config.repack))
        enough = (1 + _NEGLIGIBLE_GAIN) * min(one.seconds for one in options)
        # Those that hold more come later.
        return next(one for one in options if one.seconds <= enough)

    def _smallest(self) -> Candidate:
        """The configuration that misses the limits by least, and leaves fewest bytes in RAM."""
        inputs, options = self._inputs, []
        modes = (False,) if inputs.may_stream else self._repack_modes()
        for kv_type, repack in product(inputs.kv_types, modes):
            config = inputs.config(kv_type, inputs.ubatches[-1], repack)
            with contextlib.suppress(EngineError):
                options.append(self._candidates.smallest(config, self._safe_limits))
        limits = self._candidates.limits

        def over(one: Candidate) -> int:
            return sum(max(0, tier.needs_bytes - most) for tier, most in zip(one.tiers, limits, strict=True))

        return min(options, key=lambda one: (over(one), one.tiers[RAM].needs_bytes))

    # -- the plan --------------------------------------------------------------------------------

    def _alone(self, config: LlamaConfig) -> LlamaConfig:
        """The same without devices or disk."""
        return self._inputs.config(config.kv_type, config.ubatch, config.repack)

    def _build(self, chosen: Candidate, options: Sequence[Candidate], within: Sequence[int]) -> LlamaPlan:
        """`options` are what it was chosen from: they differ in how weights are held, and fit `within`."""
        inputs = self._inputs
        plan = LlamaPlan(
            spec=inputs.spec,
            config=chosen.config,
            context=chosen.answer.context,
            tiers=chosen.tiers,
            prediction=chosen.prediction,
            why=(),
            workload=inputs.workload,
        )
        others = [one for one in options if one.config.repack != chosen.config.repack]
        otherwise = [one for one in options if one.config.op_offload != chosen.config.op_offload]
        alone = chosen
        if chosen.config.devices:
            alone = self._candidates.evaluate(self._alone(chosen.config))
        why = reasons(
            plan,
            inputs,
            other=others[0].prediction if others else None,
            otherwise=min(otherwise, key=lambda one: one.seconds).prediction if otherwise else None,
            alone=alone.prediction if alone.fits(within) and alone.seconds < chosen.seconds else None,
            too_small=self._too_small,
        )
        return replace(plan, why=tuple(why))

    def _suggestions(self, smallest: Candidate) -> tuple[str, ...]:
        found = suggestions(
            self._alone(smallest.config),
            self._fits_in,
            needs_bytes=smallest.tiers[RAM].needs_bytes,
            room_bytes=ROOM_FOR_ERROR,
            limit_bytes=self._inputs.ram_limit,
            free_bytes=self._inputs.machine.ram.available_bytes,
        )
        # Where only the wish for rewritten weights keeps a part of them from staying on the disk.
        wish = self._inputs.budget.disk and not self._inputs.may_stream
        streaming = self._streaming_choices(self._inputs.ubatches[-1:], self._safe_limits)
        fewer = self._fewer_layers(smallest.config)
        return (
            *([f"--gpu-layers {fewer}"] if fewer is not None else []),
            *(["--repack auto"] if wish and any(map(self._fitting, streaming)) else []),
            *found,
        )

    def _fewer_layers(self, smallest: LlamaConfig) -> int | None:
        """Of the layers that were asked for on devices, as many as fit; None if that is no help."""
        asked = self._inputs.conditions.gpu_layers
        if asked is None:
            return None
        most, alone = min(asked, 1 + layer_count(self._inputs.spec)), self._alone(smallest)

        def fits(layers: int) -> bool:
            conditions = replace(self._inputs.conditions, gpu_layers=layers)
            other = replace(self._candidates, inputs=replace(self._inputs, conditions=conditions), found={})
            ways = {False, self._inputs.may_stream}
            return any(other.placed(alone, self._safe_limits, streams=one) for one in ways)

        counts = range(most - 1, -1, -1)
        found = bisect_left(counts, True, key=fits)
        return counts[found] if found < len(counts) else None

    def _smallest_ubatch(self, config: LlamaConfig) -> int:
        if config.embeds:
            return self._inputs.ubatches_of(config.context)[-1]
        return ubatch_sizes(config.context, config.parallel)[-1]

    def _fits_in(self, config: LlamaConfig, ram_limit: int) -> bool:
        """With the smallest ubatch that its context and sequences allow, and the room it needs."""
        within = (ram_limit - ROOM_FOR_ERROR, *self._safe_limits[1:])
        one = replace(config, ubatch=self._smallest_ubatch(config))
        with contextlib.suppress(EngineError):
            return self._candidates.placed(one, within, streams=self._inputs.may_stream) is not None
        return False
