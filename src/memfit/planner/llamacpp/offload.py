"""Searches the best placement on devices: solves, asks the oracle what it really holds, and solves again
with that.

cost_model.py says what the pieces of a model cost where, solver.py places them in rooms, tensor_devices.py
puts the result into the engine's words, and the oracle says what it really holds. What that is more or less
than assumed goes back into the rooms, and the problem is solved once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memfit.hardware.machine import Device
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import RAM, LlamaConfig, MemoryEstimate
from memfit.planner.llamacpp.conditions import layers_per_device
from memfit.planner.llamacpp.cost_model import CostModel, Pieces
from memfit.planner.llamacpp.placement import DeviceRoom, Piece, Placement, Problem, cost, layer_split
from memfit.planner.llamacpp.tensor_devices import config_with, last_device, layer_count, placed_config
from memfit.planner.plan import TierUse
from memfit.planner.request import Workload
from memfit.planner.speed import DeviceSpeed

__all__ = ["Offloader"]

_ATTEMPTS = 6
_CLOSE = 0.004  # of a device's budget: less room found than this is not worth another attempt
_FULL = 0.97  # of a device's budget: whole layers are good enough from here
_ASKED = 0.972  # of the budget of a device that was asked for by name
_FEWER = (1.0, 0.95, 0.8, 0.0)  # of that, where large tensors do not come out even
_CLEAR_GAIN = 0.10  # over whole layers; below it the simpler plan is taken, if it fills the devices


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A placement, and what it really holds."""

    needs: tuple[int, ...]  # bytes per device
    fits: bool
    config: LlamaConfig
    problem: Problem
    placement: Placement
    filled: float  # how much of its budget the emptiest device holds that was asked for

    def score(self) -> tuple[float, float]:
        """Filled devices first, as far as they were asked for; then seconds."""
        return min(self.filled, _FULL), -self.placement.seconds


@dataclass
class Offloader:
    """Finds the placement for one configuration after another. What is given by device has RAM's first."""

    spec: ModelSpec
    workload: Workload
    devices: Sequence[Device]  # without RAM
    limits: Sequence[int]  # bytes
    asked: Sequence[int]  # bytes: so much of a device is filled even where RAM would be faster
    speeds: Sequence[DeviceSpeed]
    tiers: Callable[[LlamaConfig], Sequence[TierUse]]  # what a placement really holds, by the oracle
    solve: Callable[[Problem], Placement | None]  # solver.solve, here or in another process
    gpu_layers: int | None = None  # so many are on devices, the output counting as one: nothing is searched
    fixed: Mapping[str, int] = field(default_factory=dict)  # tensors' devices that are no question

    def _pieces(self, config: LlamaConfig, base: MemoryEstimate) -> Pieces:
        return CostModel(self.spec, self.workload, self.speeds, self.fixed).pieces(config, base)

    def place(self, config: LlamaConfig, base: MemoryEstimate) -> LlamaConfig | None:
        """`config` with its placement filled in; None where no placement fits.

        `base` is the answer with everything in RAM.
        """
        if self.gpu_layers is not None:
            given = self._given(config, self.gpu_layers)
            return given if self._fit(self.tiers(given)) else None
        pieces = self._pieces(config, base)
        found = self._search(config, base, pieces)
        if pieces.output and (found is None or found.filled < _FULL):
            # The output is the largest matrix of many models: it may keep a device from being filled.
            without = self._search(config, base, replace(pieces, output=None))
            found = max((one for one in (found, without) if one), key=_Found.score, default=None)
        if found:
            return found.config
        return config if not any(self.fixed.values()) and self._fit(self.tiers(config)) else None

    def _given(self, config: LlamaConfig, gpu_layers: int) -> LlamaConfig:
        """The placement that `gpu_layers` and `fixed` say, fit or not."""
        layers = layers_per_device(layer_count(self.spec), gpu_layers, self.limits[1:])
        output = last_device(layers) if gpu_layers else RAM
        return config_with(self.spec, config, layers, self.devices, self.fixed, output=output)

    def least_ram(self, config: LlamaConfig, base: MemoryEstimate) -> LlamaConfig:
        """The placement that leaves least in RAM, fit or not: what an error can say about shortness."""
        if self.gpu_layers is not None:
            return self._given(config, self.gpu_layers)
        pieces = self._pieces(config, base)

        def by_size(piece: Piece, kv_bytes: int = 0) -> Piece:
            """A byte in RAM costs a second."""
            return replace(piece, seconds=(float(piece.size_bytes + kv_bytes), *[0.0] * len(self.devices)))

        sized = Pieces(
            layers=tuple(
                replace(
                    layer,
                    core=by_size(layer.core, layer.kv_bytes),
                    ffn_tensors=tuple(map(by_size, layer.ffn_tensors)),
                )
                for layer in pieces.layers
            ),
            output=pieces.output and by_size(pieces.output),
        )
        rooms = self._rooms(self._beside(base))
        whole = sum(tensor.size_bytes for tensor in self.spec.tensors) + base.kv_cache_bytes
        rooms[RAM] = 2 * whole  # without end
        placement = self.solve(_problem(sized, rooms, [0.0] * len(rooms)))
        assert placement is not None, "RAM without end holds any model"
        return placed_config(self.spec, config, placement, self.devices, self.fixed)

    # -- attempts --------------------------------------------------------------------------------

    def _search(self, config: LlamaConfig, base: MemoryEstimate, pieces: Pieces) -> _Found | None:
        """The best that is found; where that does not fill the devices, rather as many whole layers as they
        hold: what is needed beside those hardly changes from one placement to the next."""
        best = self._approach(config, base, pieces, lambda one: self._choose(one, pieces.size_bytes))
        if best is None or best.filled < _FULL:
            simple = self._approach(config, base, pieces, lambda one: layer_split(one, partial=True))
            best = max((one for one in (best, simple) if one), key=_Found.score, default=None)
        return best

    def _approach(
        self,
        config: LlamaConfig,
        base: MemoryEstimate,
        pieces: Pieces,
        choose: Callable[[Problem], Placement | None],
    ) -> _Found | None:
        """Chosen again and again, each time with the rooms that the placement before turned out to leave."""
        passes = self.workload.generated_tokens + -(-self.workload.prompt_tokens // config.ubatch)
        split_seconds = [passes * speed.split_seconds for speed in self.speeds]
        beside = self._beside(base)
        too_low = [0] * len(beside)
        best: _Found | None = None
        missed: _Found | None = None
        for _ in range(_ATTEMPTS):
            rooms = self._rooms(beside)
            if pieces.layers_bytes > sum(rooms):
                break
            problem = _problem(pieces, rooms, split_seconds)
            placement = choose(problem)
            if placement is None:
                break
            found = self._look(config, problem, placement)
            learned = [size - known for size, known in zip(found.needs, placement.used_bytes, strict=True)]
            if found.fits:
                best = max(best, found, key=_Found.score) if best else found
            else:  # never again as little beside as here
                missed = found
                too_low = [max(pair) for pair in zip(too_low, learned, strict=True)]
            if best and best.filled >= _FULL and not self._has_gained(beside, learned):
                break
            beside, before = [max(pair) for pair in zip(learned, too_low, strict=True)], beside
            if beside == before:  # the same would be found again
                break
        for near in (best, missed):
            while near and (best is None or best.filled < _FULL):
                near = self._adjust(config, near)
                best = max((one for one in (best, near) if one), key=_Found.score, default=None)
        return best

    def _beside(self, base: MemoryEstimate) -> list[int]:
        """What weights and KV cache do not take, were it as much as with everything in RAM."""
        buffers = base.compute_bytes + base.scratch_bytes
        fixed = (base.process_bytes, *(device.overhead_bytes for device in self.devices))
        return [buffers + one for one in fixed]

    def _rooms(self, beside: Sequence[int]) -> list[int]:
        """What is left for weights and KV cache."""
        return [max(0, limit - size) for limit, size in zip(self.limits, beside, strict=True)]

    def _has_gained(self, beside: Sequence[int], learned: Sequence[int]) -> bool:
        """Whether a device takes clearly less beside weights and KV cache than was assumed."""
        rows = list(zip(beside, learned, self.limits, strict=True))
        return any(assumed - now > _CLOSE * limit for assumed, now, limit in rows[1:])

    def _look(self, config: LlamaConfig, problem: Problem, placement: Placement) -> _Found:
        placed = placed_config(self.spec, config, placement, self.devices, self.fixed)
        tiers = self.tiers(placed)
        shares = [tier.total_bytes / asked for tier, asked in zip(tiers, self.asked, strict=True) if asked]
        return _Found(
            config=placed,
            problem=problem,
            placement=placement,
            needs=tuple(tier.needs_bytes for tier in tiers),
            fits=self._fit(tiers),
            filled=min(shares, default=1.0),
        )

    def _fit(self, tiers: Sequence[TierUse]) -> bool:
        return all(tier.needs_bytes <= limit for tier, limit in zip(tiers, self.limits, strict=True))

    def _adjust(self, config: LlamaConfig, found: _Found) -> _Found | None:
        """With single tensors moved out of devices that hold too much, and into what one that was asked for
        has left; None where that gains nothing."""
        rooms = [limit - size for limit, size in zip(self.limits, found.needs, strict=True)]
        tried = [found.placement]
        for _ in range(_ATTEMPTS):
            left = list(rooms)
            fuller = self._moved(found, left)
            if fuller in tried:
                break
            tried.append(fuller)
            looked = self._look(config, found.problem, fuller)
            if looked.fits and (looked.filled > found.filled or not found.fits):
                return looked
            # One more graph split may take more than the tensor itself.
            over = [max(0, need - most) for need, most in zip(looked.needs, self.limits, strict=True)]
            rooms = [room - size - more for room, size, more in zip(rooms, left, over, strict=True)]
        return None

    def _moved(self, found: _Found, left: list[int]) -> Placement:
        """What fits into the bytes that are `left` in devices, or is too much for them; `left` follows."""
        layer_devices, output = found.placement.layer_devices, found.placement.output
        ffn_devices = [list(devices) for devices in found.placement.ffn_devices]
        sizes = {
            (layer, index): block.size_bytes
            for layer, one in enumerate(found.problem.layers)
            for index, block in enumerate(one.ffn_tensors)
        }

        def move(layer: int, index: int, device: int) -> None:
            left[ffn_devices[layer][index]] += sizes[layer, index]
            left[device] -= sizes[layer, index]
            ffn_devices[layer][index] = device

        for device in range(1, len(left)):
            while left[device] < 0 and (
                here := [one for one in sizes if ffn_devices[one[0]][one[1]] == device]
            ):
                enough = [one for one in here if sizes[one] >= -left[device]] or here
                # Rather one away from its layer's device: it frees what its graph split takes, too.
                move(*min(enough, key=lambda one: (layer_devices[one[0]] == device, sizes[one])), RAM)
        for layer, index in sorted(sizes, key=lambda one: -sizes[one]):
            device = max(range(len(left)), key=lambda one: left[one] if self.asked[one] else -1)
            if (
                ffn_devices[layer][index] == RAM
                and self.asked[device]
                and sizes[layer, index] <= left[device]
            ):
                move(layer, index, device)
        if [tuple(devices) for devices in ffn_devices] == list(found.placement.ffn_devices):
            return found.placement
        seconds, used = cost(found.problem, layer_devices, ffn_devices, output)
        return replace(
            found.placement,
            ffn_devices=tuple(map(tuple, ffn_devices)),
            seconds=seconds,
            used_bytes=used,
            exact=False,
        )

    def _choose(self, problem: Problem, whole: int) -> Placement | None:
        """The best placement; whole layers where that is not clearly better and they fill the devices."""
        for share in _FEWER:
            filled = replace(
                problem,
                devices=tuple(
                    replace(one, least_bytes=int(share * self._least(problem, device, whole)))
                    for device, one in enumerate(problem.devices)
                ),
            )
            if placement := self.solve(filled):
                break
        else:
            return None
        for partial in (False, True):
            simple = layer_split(filled, partial=partial)
            if simple and simple.seconds <= placement.seconds * (1 + _CLEAR_GAIN):
                full = all(
                    used >= _FULL * device.room_bytes
                    for used, device in zip(simple.used_bytes[1:], problem.devices[1:], strict=True)
                )
                if full or simple.seconds <= placement.seconds:
                    return simple
        return placement

    def _least(self, problem: Problem, device: int, whole: int) -> int:
        """What a device must hold: nearly its budget, or its share of a model that the devices could hold."""
        if not self.asked[device]:
            return 0
        room = problem.devices[device].room_bytes
        beside = self.limits[device] - room
        devices = sum(one.room_bytes for one in problem.devices[1:])
        wanted = min(int(_ASKED * self.asked[device]), self.limits[device]) - beside
        return max(0, min(wanted, int(_FULL * whole * room / (devices or 1))))


def _problem(pieces: Pieces, rooms: Sequence[int], split_seconds: Sequence[float]) -> Problem:
    return Problem(
        devices=tuple(
            DeviceRoom(room_bytes=room, split_seconds=seconds)
            for room, seconds in zip(rooms, split_seconds, strict=True)
        ),
        layers=pieces.layers,
        output=pieces.output,
    )
