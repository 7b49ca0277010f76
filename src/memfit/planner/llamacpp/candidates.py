"""Candidates for a plan: configurations with tensors placed, each with its bytes (the oracle's) and its
speed (speed.py's).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memfit.memory.estimate import RAM, LlamaConfig, MemoryEstimate, Oracle
from memfit.memory.streaming import streamed_bytes
from memfit.planner.llamacpp.conditions import fixed_tensors
from memfit.planner.llamacpp.dequantizing import dequantize
from memfit.planner.llamacpp.forms import choose_forms, forms_speed
from memfit.planner.llamacpp.inputs import PlanInputs, UsedDevice
from memfit.planner.llamacpp.offload import Offloader
from memfit.planner.llamacpp.placement import Placement, Problem
from memfit.planner.llamacpp.streaming import held_bytes, resident, stream_out
from memfit.planner.llamacpp.tiers import tiers_of
from memfit.planner.llamacpp.twofold import hold_twofold, twofold_speed
from memfit.planner.plan import TierUse
from memfit.planner.speed import DeviceSpeed, Prediction, predict
from memfit.planner.streaming import slowed

__all__ = ["Candidate", "Candidates"]

_ATTEMPTS = 4  # to find out what a device really holds


@dataclass(frozen=True, kw_only=True)
class Candidate:
    config: LlamaConfig
    answer: MemoryEstimate
    tiers: tuple[TierUse, ...]
    prediction: Prediction
    seconds: float  # for one request of the workload

    def fits(self, within: Sequence[int]) -> bool:
        """`within`: the bytes that each device may need."""
        return all(tier.needs_bytes <= most for tier, most in zip(self.tiers, within, strict=True))


@dataclass(frozen=True)
class Candidates:
    """Makes them, each once."""

    inputs: PlanInputs
    oracle: Oracle
    solve: Callable[[Problem], Placement | None]
    used: Sequence[UsedDevice]  # the devices that tensors may lie on
    found: dict[tuple[LlamaConfig, tuple[int, ...], bool], Candidate | None] = field(default_factory=dict)

    @property
    def limits(self) -> tuple[int, ...]:
        """The bytes that may be used, RAM's first."""
        return (self.inputs.ram_limit, *(one.limit_bytes for one in self.used))

    @functools.cached_property
    def fixed(self) -> Mapping[str, int]:
        """Tensors' devices that conditions fix. Raises UsageError where they name what is not there."""
        devices = [one.device for one in self.used]
        return fixed_tensors(self.inputs.spec, self.inputs.conditions, devices)

    def placed(
        self, config: LlamaConfig, within: tuple[int, ...], *, streams: bool = False
    ) -> Candidate | None:
        """A configuration with its tensors placed, a part of them on the disk if it `streams`; None where it
        does not fit. `config` have everything in RAM."""
        key = (config, within, streams)
        if key not in self.found:
            placed: LlamaConfig | None = config
            if streams:
                placed = self._streaming(config, within)
            elif self.used:
                base = self.oracle.ask(replace(config, op_offload=False))
                placed = self._offloader(config, within).place(config, base)
                if placed and config.op_offload and not placed.devices:
                    placed = None  # the same as without
            one = placed and self.evaluate(placed)
            self.found[key] = one if one and one.fits(within) else None
        return self.found[key]

    def dequantized(
        self, config: LlamaConfig, within: tuple[int, ...], *, for_prompts: bool = False
    ) -> Candidate | None:
        """With as many matrices as memory has room for held as BF16, or as well, which many tokens at once
        multiply faster; None where that gains nothing."""
        own = replace(config, load_mode="own")
        room = self._room_for_weights(own, within)
        for _ in range(_ATTEMPTS):
            speed = self.inputs.ram_speed(False)
            larger = dequantize(
                self.inputs.spec, own, speed, self.inputs.workload, room, for_prompts=for_prompts
            )
            if larger is None:
                return None
            one = self.evaluate(larger)
            if one.fits(within):
                return one
            room -= one.tiers[RAM].needs_bytes - within[RAM]  # its kernels' work buffer is another
        return None

    def twofold(self, config: LlamaConfig, within: tuple[int, ...]) -> Candidate | None:
        """With matrices held in two forms, as far as memory has room; None where that gains nothing."""
        own = replace(config, load_mode="own")
        room = self._room_for_weights(own, within) - held_bytes(self.inputs.spec, own)
        plain, rewritten = (self.inputs.ram_speed(repack) for repack in (False, True))
        larger = hold_twofold(self.inputs.spec, own, plain, rewritten, self.inputs.workload, room)
        one = larger and self.evaluate(larger)
        return one if one and one.fits(within) else None

    def in_forms(self, config: LlamaConfig, within: tuple[int, ...]) -> Candidate | None:
        """With each kind of matrix in its fastest form; None where that is the engine's, or has no room."""
        plain, rewritten = (self.inputs.ram_speed(repack) for repack in (False, True))
        chosen = choose_forms(self.inputs.spec, config, plain, rewritten, self.inputs.workload)
        one = chosen and self.evaluate(chosen)
        return one if one and one.fits(within) else None

    def smallest(self, config: LlamaConfig, within: tuple[int, ...]) -> Candidate:
        """The placement that leaves fewest bytes in RAM, fit or not."""
        if self.used:
            config = self._least_ram(config, within)
        held = self.evaluate(config)
        if self.inputs.may_stream and held.tiers[RAM].needs_bytes > within[RAM]:
            return self.evaluate(stream_out(self.inputs.spec, config, None) or config)
        return held

    def evaluate(self, config: LlamaConfig) -> Candidate:
        spec, workload = self.inputs.spec, self.inputs.workload
        answer = self._answer(config)
        prompt_tokens = min(workload.prompt_tokens, answer.context)
        prediction = predict(
            answer,
            self._speeds_of(config),
            prompt_tokens=prompt_tokens,
            generated_tokens=workload.generated_tokens,
            depth=workload.depth,
            sequences=workload.parallel,
            expert_share=spec.expert_share,
            embeds=workload.embeds,
        )
        if read := streamed_bytes(spec.tensors, config.streamed):
            tensors, disk = len(config.streamed), self.inputs.disk_speed()
            sequences = workload.parallel
            prediction = slowed(prediction, read, tensors, disk, prompt_tokens, config.ubatch, sequences)
        return Candidate(
            config=config,
            answer=answer,
            tiers=tiers_of(self.inputs, self.used, config, answer),
            prediction=prediction,
            seconds=workload.prompt_tokens / prediction.prompt.value
            + (workload.generated_tokens / prediction.together.value if prediction.together else 0.0),
        )

    def _streaming(self, config: LlamaConfig, within: tuple[int, ...]) -> LlamaConfig | None:
        placed = self._least_ram(config, within) if self.used else config
        own = replace(placed, load_mode="own")
        return stream_out(self.inputs.spec, own, self._room_for_weights(own, within))

    def _room_for_weights(self, config: LlamaConfig, within: Sequence[int]) -> int:
        """What all else leaves of RAM."""
        (ram, *_) = self._tiers(config)
        return within[RAM] - (ram.total_bytes - ram.weights_bytes)

    def _least_ram(self, config: LlamaConfig, within: Sequence[int]) -> LlamaConfig:
        """As much on the devices as they really hold: what else a placement needs, only the oracle knows."""
        answer, limits = self.oracle.ask(config), list(within)
        for _ in range(_ATTEMPTS):
            placed = self._offloader(config, limits).least_ram(config, answer)
            tiers = self._tiers(placed)
            over = [max(0, tier.needs_bytes - most) for tier, most in zip(tiers, within, strict=True)]
            if not any(over[1:]):
                break
            limits = [limits[RAM], *(limit - more for limit, more in zip(limits[1:], over[1:], strict=True))]
        return placed

    def _offloader(self, config: LlamaConfig, within: Sequence[int]) -> Offloader:
        return Offloader(
            self.inputs.spec,
            self.inputs.workload,
            [one.device for one in self.used],
            within,
            [0, *(one.limit_bytes * one.is_asked_for for one in self.used)],
            [self.inputs.ram_speed(config.repack), *(one.speed for one in self.used)],
            self._tiers,
            self.solve,
            gpu_layers=self.inputs.conditions.gpu_layers,
            fixed=self.fixed,
        )

    def _speeds_of(self, config: LlamaConfig) -> list[DeviceSpeed]:
        ram = self.inputs.ram_speed(config.repack)
        if config.twofold:
            ram = twofold_speed(self.inputs.spec, config, ram, self.inputs.ram_speed(True))
        if config.plain:
            ram = forms_speed(self.inputs.spec, config, self.inputs.ram_speed(False), ram)
        return [ram, *(one.speed for one in self.used)]

    def _tiers(self, config: LlamaConfig) -> tuple[TierUse, ...]:
        return tiers_of(self.inputs, self.used, config, self._answer(config))

    def _answer(self, config: LlamaConfig) -> MemoryEstimate:
        """With everything in memory. Prompts take the larger buffers, so theirs are the bytes."""
        answer = self.oracle.ask(resident(config))
        if not config.prompt_dequantized:
            return answer
        prompts = self.oracle.ask(replace(resident(config), dequantized=config.prompt_dequantized))
        return replace(prompts, generation=answer.generation)
