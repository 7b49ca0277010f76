"""Which tensors lie on which device: the engine's numbers made into a placement problem, and back.

Attention, norms, routers and shared experts of a layer stay together with its KV cache at the layer's
home; its large feed-forward or expert tensors are free to lie elsewhere. placement.py solves that; the
result becomes layer counts and name patterns, as the engine takes them, and the oracle says what they
really hold. What it holds more or less than assumed goes back into the rooms, and the problem is solved
once more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memfit.hardware.machine import Device
from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.oracle import RAM, Answer, EngineParameters, Operation
from memfit.planner.placement import Layer, Piece, Place, Placement, Problem, cost, layer_split
from memfit.planner.plan import TierUse
from memfit.planner.request import Workload
from memfit.planner.speed import OFFLOADED_TOKENS, DeviceSpeed, attention_key

__all__ = ["Offloader", "exceptions_of", "places_of", "sent_bytes", "taken_over_bytes"]

_BLOCK = re.compile(r"blk\.(\d+)\.(ffn_(?:gate|up|gate_up|down)(?:_exps|_chexps)?)\.")
_LAYER = re.compile(r"blk\.(\d+)\.")
_OUTPUT = re.compile(r"output|token_embd\.")
_OUTPUT_PATTERN = r"^(output|token_embd)"
_ORDER = ("gate", "up", "gate_up", "down")  # of execution
_ATTEMPTS = 6
_CLOSE = 0.004  # of a device's budget: less room found than this is not worth another attempt
_FULL = 0.97  # of a device's budget: whole layers are good enough from here
_ASKED = 0.972  # of the budget of a device that was asked for by name
_FEWER = (1.0, 0.95, 0.8, 0.0)  # of that, where large tensors do not come out even
_CLEAR_GAIN = 0.10  # over whole layers; below it the simpler plan is taken, if it fills the devices


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a problem is made of, whatever the rooms."""

    layers: tuple[Layer, ...]
    output: Piece | None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A placement, and what it really holds."""

    parameters: EngineParameters
    problem: Problem
    placement: Placement
    needs: tuple[int, ...]  # bytes per place
    fits: bool
    filled: float  # how much of its budget the emptiest device holds that was asked for

    def score(self) -> tuple[float, float]:
        """Filled devices first, as far as they were asked for; then seconds."""
        return min(self.filled, _FULL), -self.placement.seconds


class Offloader:
    """Finds the placement for one configuration after another."""

    def __init__(
        self,
        spec: ModelSpec,
        workload: Workload,
        devices: Sequence[Device],
        limits: Sequence[int],
        asked: Sequence[bool],
        speeds: Sequence[DeviceSpeed],
        tiers: Callable[[EngineParameters], Sequence[TierUse]],
        solver: Callable[[Problem], Placement | None],
    ) -> None:
        """`limits` and `speeds` are each place's, RAM's first; devices that were `asked` for are filled
        even where RAM would be faster; `tiers` says what a placement
        really holds in each place, by the oracle; `solver` is placement.solve, here or in another process."""
        self._spec = spec
        self._workload = workload
        self._devices = devices
        self._limits = limits
        self._asked = (False, *asked)
        self._speeds = speeds
        self._tiers = tiers
        self._solve = solver

    def place(self, parameters: EngineParameters, base: Answer) -> EngineParameters | None:
        """`parameters` with its placement filled in; None where no placement fits.

        `base` is the answer with everything in RAM.
        """
        facts = self._facts(parameters, base)
        found = self._search(parameters, base, facts)
        if facts.output and (found is None or found.filled < _FULL):
            # The output is the largest matrix of many models: it may keep a worker from being filled.
            without = self._search(parameters, base, replace(facts, output=None))
            found = max((one for one in (found, without) if one), key=_Found.score, default=None)
        if found:
            return found.parameters
        return parameters if self._fits(parameters) else None

    def _search(self, parameters: EngineParameters, base: Answer, facts: _Facts) -> _Found | None:
        passes = self._workload.generated_tokens + -(-self._workload.prompt_tokens // parameters.micro_batch)
        layers_bytes = sum(map(_bytes, facts.layers))
        whole = layers_bytes + (facts.output.size_bytes if facts.output else 0)
        beside = self._beside(base)
        best: _Found | None = None
        too_low = [0] * len(beside)
        for _ in range(_ATTEMPTS):
            rooms = [max(0, limit - size) for limit, size in zip(self._limits, beside, strict=True)]
            if layers_bytes > sum(rooms):
                break
            problem = Problem(
                places=tuple(
                    Place(name=str(place), room_bytes=room, enter_seconds=passes * speed.entering_seconds)
                    for place, (room, speed) in enumerate(zip(rooms, self._speeds, strict=True))
                ),
                layers=facts.layers,
                output=facts.output,
            )
            placement = self._choose(problem, whole)
            if placement is None:
                break
            found = self._look(parameters, problem, placement)
            learned = [size - known for size, known in zip(found.needs, placement.used_bytes, strict=True)]
            if found.fits:
                best = max((one for one in (best, found) if one), key=_Found.score)
            else:  # never again as little beside as here
                too_low = [max(pair) for pair in zip(too_low, learned, strict=True)]
            spare = [assumed - now for assumed, now in zip(beside, learned, strict=True)]
            if (
                best
                and best.filled >= _FULL
                and all(
                    gain <= _CLOSE * limit for gain, limit in zip(spare[1:], self._limits[1:], strict=True)
                )
            ):
                break
            beside = [max(pair) for pair in zip(learned, too_low, strict=True)]
        return self._top_up(parameters, best) if best and best.filled < _FULL else best

    def _look(self, parameters: EngineParameters, problem: Problem, placement: Placement) -> _Found:
        """What a placement really holds."""
        placed = self._parameters(parameters, placement)
        tiers = self._tiers(placed)
        shares = [
            tier.total_bytes / limit
            for tier, limit, asked in zip(tiers, self._limits, self._asked, strict=True)
            if asked
        ]
        needs = tuple(tier.needs_bytes for tier in tiers)
        return _Found(
            parameters=placed,
            problem=problem,
            placement=placement,
            needs=needs,
            fits=all(size <= limit for size, limit in zip(needs, self._limits, strict=True)),
            filled=min(shares, default=1.0),
        )

    def _top_up(self, parameters: EngineParameters, found: _Found) -> _Found:
        """Single tensors from RAM into what a device that was asked for has left."""
        for share in _FEWER[:-1]:
            left = [
                int(share * (limit - size)) for limit, size in zip(self._limits, found.needs, strict=True)
            ]
            blocks = [list(places) for places in found.placement.blocks]
            pieces = [
                (block.size_bytes, layer, index)
                for layer, one in enumerate(found.problem.layers)
                for index, block in enumerate(one.blocks)
                if blocks[layer][index] == RAM
            ]
            for size, layer, index in sorted(pieces, reverse=True):
                place = max(range(len(left)), key=lambda one: left[one] if self._asked[one] else -1)
                if size <= left[place] and self._asked[place]:
                    blocks[layer][index] = place
                    left[place] -= size
            placement = found.placement
            seconds, used = cost(found.problem, placement.homes, blocks, placement.output)
            fuller = replace(
                placement, blocks=tuple(map(tuple, blocks)), seconds=seconds, used_bytes=used, exact=False
            )
            looked = self._look(parameters, found.problem, fuller)
            if looked.fits and looked.filled > found.filled:
                return looked
        return found

    def _fits(self, parameters: EngineParameters) -> bool:
        return all(
            tier.needs_bytes <= limit
            for tier, limit in zip(self._tiers(parameters), self._limits, strict=True)
        )

    def least_ram(self, parameters: EngineParameters, base: Answer) -> EngineParameters:
        """The placement that leaves least in RAM, fit or not: what an error can say about shortness."""
        facts = self._facts(parameters, base)

        def by_size(piece: Piece) -> Piece:
            return replace(piece, seconds=(float(piece.size_bytes), *[0.0] * (len(self._limits) - 1)))

        rooms = [max(0, one - two) for one, two in zip(self._limits, self._beside(base), strict=True)]
        whole = sum(tensor.size_bytes for tensor in self._spec.tensors) + base.kv_cache_bytes
        problem = Problem(
            places=tuple(
                Place(name=str(place), room_bytes=room if place else 2 * whole, enter_seconds=0.0)
                for place, room in enumerate(rooms)
            ),
            layers=tuple(
                Layer(
                    core=replace(
                        by_size(layer.core),
                        seconds=(
                            float(layer.core.size_bytes + layer.kv_bytes),
                            *[0.0] * (len(rooms) - 1),
                        ),
                    ),
                    kv_bytes=layer.kv_bytes,
                    blocks=tuple(by_size(block) for block in layer.blocks),
                )
                for layer in facts.layers
            ),
            output=facts.output and by_size(facts.output),
        )
        placement = self._solve(problem)
        assert placement is not None, "RAM without end holds any model"
        return self._parameters(parameters, placement)

    def _beside(self, base: Answer) -> list[int]:
        """What weights and KV cache do not take, were it as much as with everything in RAM."""
        buffers = base.compute_bytes + base.scratch_bytes
        return [
            buffers + fixed
            for fixed in (base.process_bytes, *(device.overhead_bytes for device in self._devices))
        ]

    def _choose(self, problem: Problem, whole: int) -> Placement | None:
        """The best placement; whole layers where that is not clearly better and they fill the devices."""
        for share in _FEWER:
            filled = replace(
                problem,
                places=tuple(
                    replace(one, least_bytes=int(share * self._least(problem, place, whole)))
                    for place, one in enumerate(problem.places)
                ),
            )
            if placement := self._solve(filled):
                break
        else:
            return None
        for partial in (False, True):
            simple = layer_split(filled, partial=partial)
            if simple and simple.seconds <= placement.seconds * (1 + _CLEAR_GAIN):
                full = all(
                    used >= _FULL * place.room_bytes
                    for used, place in zip(simple.used_bytes[1:], problem.places[1:], strict=True)
                )
                if full or simple.seconds <= placement.seconds:
                    return simple
        return placement

    def _least(self, problem: Problem, place: int, whole: int) -> int:
        """What a device must hold: nearly its budget, or its share of a model that the devices could hold."""
        if not self._asked[place]:
            return 0
        room = problem.places[place].room_bytes
        beside = self._limits[place] - room
        devices = sum(one.room_bytes for one in problem.places[1:])
        return max(
            0, min(int(_ASKED * self._limits[place]) - beside, int(_FULL * whole * room / (devices or 1)))
        )

    # -- into a problem --------------------------------------------------------------------------

    def _facts(self, parameters: EngineParameters, base: Answer) -> _Facts:
        cores: dict[int, list[TensorSpec]] = {}
        blocks: dict[int, dict[str, list[TensorSpec]]] = {}
        output: list[TensorSpec] = []
        tied = all(tensor.name != "output.weight" for tensor in self._spec.tensors)
        for tensor in self._spec.tensors:
            if match := _BLOCK.match(tensor.name):
                blocks.setdefault(int(match[1]), {}).setdefault(match[2], []).append(tensor)
            elif match := _LAYER.match(tensor.name):
                cores.setdefault(int(match[1]), []).append(tensor)
            elif _OUTPUT.match(tensor.name) and (tied or tensor.name != "token_embd.weight"):
                output.append(tensor)
        count = 1 + max([*cores, *blocks, -1])
        attention = {
            layer: self._attention_seconds(size, base) for layer, size in enumerate(base.layer_kv_bytes)
        }
        others = self._other_seconds(base, max(1, count))
        layers = []
        for layer in range(count):
            core = self._piece(f"blk.{layer}.core", cores.get(layer, []), parameters)
            extra = attention.get(layer, (0.0,) * len(self._speeds))
            layers.append(
                Layer(
                    core=replace(
                        core,
                        seconds=tuple(sum(parts) for parts in zip(core.seconds, extra, others, strict=True)),
                    ),
                    kv_bytes=base.layer_kv_bytes[layer] if layer < len(base.layer_kv_bytes) else 0,
                    blocks=tuple(
                        self._piece(f"blk.{layer}.{kind}", tensors, parameters)
                        for kind, tensors in sorted(
                            blocks.get(layer, {}).items(), key=lambda item: _execution(item[0])
                        )
                    ),
                )
            )
        return _Facts(
            layers=tuple(layers),
            output=self._piece("output", output, parameters, is_output=True) if output else None,
        )

    def _piece(
        self,
        name: str,
        tensors: Sequence[TensorSpec],
        parameters: EngineParameters,
        *,
        is_output: bool = False,
    ) -> Piece:
        prompt = 1 if is_output else self._workload.prompt_tokens  # logits of the last token only
        passes = 1 if is_output else -(-prompt // parameters.micro_batch)
        generated = self._workload.generated_tokens
        seconds = []
        for place, speed in enumerate(self._speeds):
            total = 0.0
            for tensor in tensors:
                if len(tensor.shape) < 2:
                    continue
                share = self._share(tensor)
                rates = speed.weight(tensor.type, tensor.shape[0])
                total += generated * tensor.size_bytes * share / rates.bytes_per_second
                operations = 2 * tensor.elements * share * prompt
                taking = next((one for one in self._speeds[1:] if one.takes_over_prompts), None)
                if place == RAM and taking and min(prompt, parameters.micro_batch) >= OFFLOADED_TOKENS:
                    total += passes * tensor.size_bytes / taking.entering_bytes_per_second
                    total += operations / taking.weight(tensor.type, tensor.shape[0]).operations_per_second
                else:
                    total += operations / rates.operations_per_second
            seconds.append(total)
        size = sum(tensor.size_bytes for tensor in tensors)
        return Piece(name=name, size_bytes=size, seconds=tuple(seconds))

    def _share(self, tensor: TensorSpec) -> float:
        """Of a routed expert tensor, the share of its experts that a token uses."""
        if "_exps." not in tensor.name and "_chexps." not in tensor.name:
            return 1.0
        experts, used = (self._spec.architecture_value(key) for key in ("expert_count", "expert_used_count"))
        return used / experts if isinstance(experts, int) and isinstance(used, int) and experts else 1.0

    def _attention_seconds(self, kv_bytes: int, base: Answer) -> tuple[float, ...]:
        """A layer's attention over a request, by the nodes of the graph that read as many bytes."""
        prompt_tokens, generated = self._workload.prompt_tokens, self._workload.generated_tokens
        begin = self._workload.depth
        generation_cells = (prompt_tokens if begin is None else begin) + generated / 2
        prompt_cells = (begin or 0) + prompt_tokens / 2
        one_token = _nearest(base.generation.operations, kv_bytes)
        batch = _nearest(base.prompt.operations, kv_bytes)
        if one_token is None or batch is None:
            return (0.0,) * len(self._speeds)
        found = []
        for speed in self._speeds:
            rates = speed.attending(attention_key(one_token.type, one_token.width))
            per_token = one_token.operations / one_token.count * min(1.0, generation_cells / one_token.cells)
            per_batch = batch.operations / batch.count * min(1.0, prompt_cells / batch.cells)
            streamed = kv_bytes * min(1.0, generation_cells / one_token.cells)
            found.append(
                generated * max(per_token / rates.generation, streamed / speed.streaming_bytes_per_second)
                + prompt_tokens / base.prompt.tokens * per_batch / rates.prompt
            )
        return tuple(found)

    def _other_seconds(self, base: Answer, layers: int) -> tuple[float, ...]:
        """Norms, activations and the nodes themselves, the same for every layer."""
        passes = self._workload.prompt_tokens / base.prompt.tokens
        nodes = sum(one.count for one in base.generation.operations) / layers
        moved = passes * sum(one.bytes for one in base.prompt.operations if one.kind == "other") / layers
        return tuple(
            (self._workload.generated_tokens + passes) * nodes * speed.node_seconds
            + moved / speed.activation_bytes_per_second
            for speed in self._speeds
        )

    # -- out of a placement ----------------------------------------------------------------------

    def _parameters(self, parameters: EngineParameters, placement: Placement) -> EngineParameters:
        if not any(placement.homes) and not placement.output and not any(map(any, placement.blocks)):
            return parameters  # nothing lies on a device, so none is opened
        kinds: dict[tuple[int, str], list[int]] = {}
        for layer, (home, blocks, places) in enumerate(
            zip(placement.homes, self._block_kinds(), placement.blocks, strict=True)
        ):
            for kind, place in zip(blocks, places, strict=True):
                if place != home:
                    kinds.setdefault((place, kind), []).append(layer)
        together: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        for (place, kind), where in kinds.items():
            together.setdefault((place, tuple(where)), []).append(kind)
        # Few patterns: the engine compiles each of them anew for every tensor.
        overrides = [
            (rf"^blk\.({'|'.join(map(str, where))})\.({'|'.join(names)})\.", place)
            for (place, where), names in together.items()
        ]
        devices = len(self._devices)
        last = max((home for home in placement.homes), default=RAM)
        if placement.output != (last or devices):  # the engine puts it on the last device in use
            overrides.append((_OUTPUT_PATTERN, placement.output))
        return replace(
            parameters,
            load_mode="read",  # mapping would keep what lies on devices in RAM too
            layers=tuple(placement.homes.count(place) for place in range(1, devices + 1)),
            overrides=tuple(overrides),
            devices=tuple(device.engine_name for device in self._devices),
        )

    def _block_kinds(self) -> list[list[str]]:
        """Per layer, its large tensors in order of execution."""
        kinds: dict[int, set[str]] = {}
        for tensor in self._spec.tensors:
            if match := _LAYER.match(tensor.name):
                kinds.setdefault(int(match[1]), set())
            if match := _BLOCK.match(tensor.name):
                kinds[int(match[1])].add(match[2])
        return [sorted(kinds.get(layer, ()), key=_execution) for layer in range(1 + max(kinds, default=-1))]


def _bytes(layer: Layer) -> int:
    return layer.core.size_bytes + layer.kv_bytes + sum(block.size_bytes for block in layer.blocks)


def _execution(kind: str) -> tuple[int, str]:
    """Where in a layer's execution a block comes."""
    return _ORDER.index(kind.removeprefix("ffn_").removesuffix("_exps").removesuffix("_chexps")), kind


def _nearest(operations: Sequence[Operation], kv_bytes: int) -> Operation | None:
    """The attention nodes that read this much each: layers with a window read less."""
    found = [one for one in operations if one.kind == "attention"]
    return min(found, key=lambda one: abs(one.bytes / one.count - kv_bytes), default=None)


def places_of(spec: ModelSpec, parameters: EngineParameters) -> dict[str, int]:
    """Where each tensor lies, by its name: the engine's own rules applied to `parameters`.

    A tied token table lies in RAM and, being the output matrix too, where the output is: it is listed
    there.
    """
    if not parameters.devices:
        return {tensor.name: RAM for tensor in spec.tensors}
    homes = _homes(spec, parameters)
    patterns = [(re.compile(pattern), place) for pattern, place in parameters.overrides]
    tied = all(tensor.name != "output.weight" for tensor in spec.tensors)
    used = [index for index, count in enumerate(parameters.layers) if count]
    last = 1 + (used[-1] if used else len(parameters.devices) - 1)
    found = {}
    for tensor in spec.tensors:
        place = next((place for pattern, place in patterns if pattern.search(tensor.name)), None)
        if place is None:
            layer = _LAYER.match(tensor.name)
            is_output = _OUTPUT.match(tensor.name) and (tied or tensor.name != "token_embd.weight")
            place = homes[int(layer[1])] if layer else last if is_output else RAM
        found[tensor.name] = place
    return found


def _homes(spec: ModelSpec, parameters: EngineParameters) -> list[int]:
    count = 1 + max((int(match[1]) for one in spec.tensors if (match := _LAYER.match(one.name))), default=-1)
    homes = [RAM] * (count - sum(parameters.layers))
    for index, layers in enumerate(parameters.layers):
        homes += [index + 1] * layers
    return homes


def exceptions_of(spec: ModelSpec, parameters: EngineParameters) -> dict[tuple[int, str], list[int]]:
    """(place, kind of tensor) → the layers whose tensors of that kind lie there and not at home."""
    homes = _homes(spec, parameters)
    found: dict[tuple[int, str], list[int]] = {}
    for name, place in places_of(spec, parameters).items():
        match = _BLOCK.match(name)
        if match and place != homes[int(match[1])]:
            layers = found.setdefault((place, match[2]), [])
            if int(match[1]) not in layers:
                layers.append(int(match[1]))
    return found


def sent_bytes(spec: ModelSpec, parameters: EngineParameters) -> dict[int, list[int]]:
    """Per place beyond RAM, the sizes of the tensors that are sent there, largest first, as they are sent."""
    places = places_of(spec, parameters)
    found: dict[int, list[int]] = {}
    for tensor in sorted(spec.tensors, key=lambda one: -one.size_bytes):
        if places[tensor.name] != RAM:
            found.setdefault(places[tensor.name], []).append(tensor.size_bytes)
    return found


def taken_over_bytes(spec: ModelSpec, parameters: EngineParameters) -> int:
    """What a GPU needs to multiply a prompt with matrices that lie in RAM: a copy of the largest."""
    places = places_of(spec, parameters)
    kept = [one for one in spec.tensors if _LAYER.match(one.name) and places[one.name] == RAM]
    return max((tensor.size_bytes for tensor in kept), default=0)
