"""How fast a configuration will run, mixture of experts included: the engine's own graph, priced with each
device's measured rates.

    seconds of a pass = sum over matrices of max(bytes / bytes per second, operations / operations per second)
                      + attention's operations over the cells in use / operations per second
                      + bytes of activations / bytes per second + nodes * seconds per node
                      + graph splits * seconds + bytes copied to the device / bytes per second
                      + bytes of weights sent to the device / bytes per second

The engine does not wait for another machine's part of a pass: where a prompt takes several passes and they
end there, it computes its own part of the next one meanwhile.

Counted: what one token, or one ubatch of a prompt, passes through; of a mixture of experts those it
is routed to; the KV cache as far as it is filled. Kernels run alone are faster than within a model, so
measured rates are taken times an efficiency; published ones are of whole models already. Ignored: sampling,
and caches that hold a share of the weights. benchmarks/prediction.py holds it to reality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from memfit.memory.estimate import Graph, MemoryEstimate, Operation
from memfit.strict_json import Between, Matching

__all__ = [
    "ASSUMED",
    "ASSUMED_DEVICE",
    "ASSUMED_GPU",
    "EXPERTS",
    "MANY_TOKENS",
    "OP_OFFLOAD_TOKENS",
    "AttentionSpeed",
    "DeviceSpeed",
    "Prediction",
    "Rate",
    "Term",
    "WeightSpeed",
    "attention_key",
    "cells_in_use",
    "needed_rates",
    "predict",
    "weight_key",
]

# Where the rates may lie, as factors; benchmarks/prediction.py records how often they do. A basis is
# the weakest one that it uses.
_SPREADS = {
    "calibrated": (0.7, 1.3),
    "profile": (0.65, 1.35),
    "provisional": (0.7, 2.5),
    "assumed": (0.25, 4.0),
}
_OF_KERNELS = ("calibrated", "provisional")
# Of what kernels reach by themselves: medians over benchmarks/prediction.py, resident in RAM. What is
# missing was looked for in node overhead, page sizes and graph building, and not found.
_EFFICIENCY = 0.95
_COLUMNS = 1536  # from here on the length of a matrix's rows makes no difference to speed
# A type with a smaller share of the bytes needs no measuring of its own; a device with one of the time has no
# say in how sure a prediction is.
_MINOR = 0.02
MANY_TOKENS = 64  # from here on kernels are as fast as with a ubatch
EXPERTS = "experts "  # how keys of routed experts begin
OP_OFFLOAD_TOKENS = 32  # from here on the engine lets a GPU multiply matrices that lie in RAM


@dataclass(frozen=True, kw_only=True)
class WeightSpeed:
    """Matrices of one quantization type."""

    bytes_per_second: float  # streamed past one token
    operations_per_second: float  # multiplications and additions with a ubatch of 512
    batch_operations_per_second: float = 0.0  # with 16 tokens, one of each of 16 sequences; 0: as with 512

    def operations(self, *, many: bool) -> float:
        """Per second, with one token of each of some sequences, or with `many`."""
        return (0.0 if many else self.batch_operations_per_second) or self.operations_per_second


@dataclass(frozen=True, kw_only=True)
class AttentionSpeed:
    """Over a KV cache of one type and head size."""

    generation: float  # operations per second
    prompt: float  # likewise
    bytes_per_second: float = 0.0  # of the cache read past one token; 0: as fast as weights


@dataclass(frozen=True, kw_only=True)
class DeviceSpeed:
    """What one device was measured at: RAM with its CPU, or a device."""

    weights: Mapping[str, WeightSpeed]  # by `weight_key`
    attention: Mapping[str, AttentionSpeed]  # by `attention_key`
    activation_bytes_per_second: float
    node_seconds: float  # a graph node that does next to nothing
    split_seconds: float  # handing over a little input and taking the result back; 0 for RAM
    split_bytes_per_second: float
    # "calibrated": measured there; "provisional": beside other programs; "profile": published; "assumed"
    basis: str
    # Of matrices in RAM that a local GPU has sent over, to multiply a prompt with; 0: it does not.
    sent_bytes_per_second: float = 0.0
    is_remote: bool = False

    def weight(self, type_name: str, columns: int = _COLUMNS, *, experts: bool = False) -> WeightSpeed:
        """A type that was not measured is as fast as the slowest that was. "" and EXPERTS are any type."""
        return (
            self.weights.get(weight_key(type_name, columns, experts=experts))
            or (self.weights.get(EXPERTS) if experts else None)
            or self.weights.get(weight_key(type_name, columns))
            or self.weights.get(type_name)
            or self.weights.get("")
            or min(self.weights.values(), key=lambda one: one.operations_per_second)
        )

    def attending(self, key: str) -> AttentionSpeed:
        return self.attention.get(key) or min(self.attention.values(), key=lambda one: one.generation)

    @property
    def streaming_bytes_per_second(self) -> float:
        """The fastest that anything was streamed: the memory's own bandwidth, nearly."""
        return max(one.bytes_per_second for one in self.weights.values())


# A desktop CPU of about 2020 with two memory channels, whatever the type: better than no figure at all.
ASSUMED = DeviceSpeed(
    weights={"": WeightSpeed(bytes_per_second=20e9, operations_per_second=150e9)},
    attention={"": AttentionSpeed(generation=10e9, prompt=50e9)},
    activation_bytes_per_second=20e9,
    node_seconds=2e-6,
    split_seconds=0.0,
    split_bytes_per_second=1e9,
    basis="assumed",
)
ASSUMED_DEVICE = replace(ASSUMED, split_seconds=200e-6)
ASSUMED_GPU = replace(ASSUMED_DEVICE, sent_bytes_per_second=ASSUMED.split_bytes_per_second)


_PerSecond = Annotated[float, Between(0, 1e18, above=True)]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens per second, with the range that reality should lie in."""

    value: _PerSecond
    low: _PerSecond
    high: _PerSecond

    @classmethod
    def between(cls, value: float, factors: tuple[float, float]) -> Rate:
        """`factors` give the ends of the range."""
        low, high = factors
        return cls(value=value, low=value * low, high=value * high)


@dataclass(frozen=True, kw_only=True)
class Term:
    """What one pass spends where."""

    device: int
    kind: str  # an Operation's kind with its type, "graph splits" or "weights sent"
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    prompt: Rate
    # None where nothing is generated: texts are embedded.
    generation: Rate | None  # of one sequence alone
    together: Rate | None  # of all sequences in parallel, their tokens added up
    basis: Annotated[str, Matching("|".join(_SPREADS), f"one of {', '.join(_SPREADS)}")]
    prompt_terms: tuple[Term, ...] = ()  # of one ubatch
    generation_terms: tuple[Term, ...] = ()  # of one token

    @property
    def main(self) -> Rate:
        """What a plan is judged by: what it generates; where it generates nothing, what it reads."""
        return self.generation or self.prompt

    @property
    def rates(self) -> dict[str, Rate]:
        """Of one sequence, by name."""
        found = {"prompt": self.prompt, "generation": self.generation}
        return {name: rate for name, rate in found.items() if rate}


def weight_key(type_name: str, columns: int, *, experts: bool = False) -> str:
    """Measured by themselves: short rows, which are slower, and routed experts, whose kernels are others."""
    key = type_name if columns >= _COLUMNS else f"{type_name}/{columns}"
    return f"{EXPERTS}{key}" if experts else key


def attention_key(type_name: str, head: int) -> str:
    return f"{type_name}/{head}"


def needed_rates(
    answer: MemoryEstimate, *, instead: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[str]]:
    """The weights' types, and the keys of attention, whose speeds decide this model's; those too that weights
    of a type may be held as `instead`."""
    sizes: dict[str, int] = {}
    attention = set()
    for one in answer.generation.operations:
        if one.kind == "attention":
            attention.add(attention_key(one.type, one.width))
        elif one.kind in ("matmul", "experts"):
            key = weight_key(one.type, one.width, experts=one.kind == "experts")
            sizes[key] = sizes.get(key, 0) + one.bytes
    least = _MINOR * sum(sizes.values())
    types = {name for name in sizes if sizes[name] >= least}
    for name in tuple(types):
        of_type, slash, row = name.partition("/")
        types |= {f"{other}{slash}{row}" for other in instead.get(of_type, ())}
    return sorted(types), sorted(attention)


def cells_in_use(prompt_tokens: int, generated_tokens: int, depth: int | None) -> tuple[float, float]:
    """Cells of the KV cache that a prompt's token and a generated one attend to, in the mean.

    `depth` tokens lie in the cache when the prompt and when the generation begins; None is a request,
    which begins empty and whose generation follows its prompt.
    """
    before_generation = prompt_tokens if depth is None else depth
    return (depth or 0) + prompt_tokens / 2, before_generation + generated_tokens / 2


def predict(
    answer: MemoryEstimate,
    speeds: Sequence[DeviceSpeed],
    *,
    prompt_tokens: int,
    generated_tokens: int,
    depth: int | None = None,
    sequences: int = 1,
    expert_share: float = 1.0,
    embeds: bool = False,
) -> Prediction:
    """Rates for a request of these lengths; `speeds` are those of RAM and then of each device. Where texts
    are embedded, there are only prompts.

    What `depth` means: `cells_in_use`. `sequences` such requests run in parallel; of routed experts one token
    is multiplied with `expert_share`.
    """
    passes = math.ceil(prompt_tokens / answer.prompt.tokens)
    filled = prompt_tokens / (passes * answer.prompt.tokens)
    prompt_cells, generation_cells = cells_in_use(prompt_tokens, generated_tokens, depth)
    prompt = _terms(answer.prompt, speeds, cells=prompt_cells, filled=filled, many=True)
    seconds = _passes_seconds(passes, prompt, answer.prompt, speeds)
    if embeds:
        basis = _basis(speeds, _deciding(prompt))
        return Prediction(
            prompt=Rate.between(prompt_tokens / seconds, _SPREADS[basis]),
            generation=None,
            together=None,
            basis=basis,
            prompt_terms=tuple(prompt),
        )
    generation = _terms(answer.generation, speeds, cells=generation_cells)
    if sequences >= OP_OFFLOAD_TOKENS and any(answer.prompt.sent_bytes):
        # Then a pass of theirs is computed where a prompt is.
        parallel, share = answer.prompt, min(1.0, sequences / answer.prompt.tokens)
    else:
        parallel, share = _repeated(answer.generation, sequences, expert_share), 1.0
    many = sequences >= MANY_TOKENS
    all_together = _terms(parallel, speeds, cells=generation_cells, filled=share, many=many)
    basis = _basis(speeds, _deciding(prompt) | _deciding(generation))
    return Prediction(
        prompt=Rate.between(prompt_tokens / seconds, _SPREADS[basis]),
        generation=Rate.between(1 / _sum(generation), _SPREADS[basis]),
        together=Rate.between(sequences / _sum(all_together), _SPREADS[basis]),
        basis=basis,
        prompt_terms=tuple(prompt),
        generation_terms=tuple(generation),
    )


def _basis(speeds: Sequence[DeviceSpeed], used: Iterable[int]) -> str:
    """The weakest of these devices'."""
    return max((speeds[device].basis for device in used), key=[*_SPREADS].index)


def _repeated(graph: Graph, sequences: int, expert_share: float) -> Graph:
    """A pass of one token for each sequence, from that of one token: weights are read once, experts as far as
    any token is routed to them, each by chance; caches and activations are each sequence's own."""

    def repeat(one: Operation) -> Operation:
        read = float(one.bytes)
        if one.kind not in ("matmul", "experts"):
            read *= sequences
        elif one.kind == "experts":
            read *= (1 - (1 - expert_share) ** sequences) / expert_share
        return replace(one, bytes=round(read), operations=one.operations * sequences)

    return replace(
        graph,
        tokens=sequences,
        operations=tuple(map(repeat, graph.operations)),
        split_bytes=tuple(size * sequences for size in graph.split_bytes),
    )


def _deciding(terms: Sequence[Term]) -> set[int]:
    """The devices that take more than a minor part of a pass."""
    whole = _sum(terms)
    seconds: dict[int, float] = {}
    for term in terms:
        seconds[term.device] = seconds.get(term.device, 0.0) + term.seconds
    return {device for device, taken in seconds.items() if taken >= _MINOR * whole}


def _passes_seconds(passes: int, terms: Sequence[Term], graph: Graph, speeds: Sequence[DeviceSpeed]) -> float:
    """Of `passes` in a row, each of these `terms`: the first as it is, each further one as the slower of both
    sides where they end on another machine."""
    whole = _sum(terms)
    last = graph.last_device
    if not speeds[last].is_remote:
        return passes * whole
    there = _sum([one for one in terms if one.device == last and one.kind != "graph splits"])
    # This side waits for all splits but the last.
    here = whole - there / graph.splits[last]
    return whole + (passes - 1) * max(here, there)


def _sum(terms: Sequence[Term]) -> float:
    return sum(term.seconds for term in terms)


def _terms(
    graph: Graph, speeds: Sequence[DeviceSpeed], *, cells: float, filled: float = 1.0, many: bool = False
) -> list[Term]:
    """One pass, of whose tokens the share `filled` is there, with so many `cells` in use; of `many` tokens,
    as a prompt is, or of one for each sequence."""
    terms = []

    def add(device: int, kind: str, seconds: float) -> None:
        if speeds[device].basis in _OF_KERNELS:
            seconds /= _EFFICIENCY
        terms.append(Term(device=device, kind=kind, seconds=seconds))

    for one in graph.operations:
        speed = speeds[one.device]
        if one.kind == "attention":
            attending = speed.attending(attention_key(one.type, one.width))
            rate = attending.prompt if many else attending.generation
            share = filled * min(1.0, cells / one.cells)
            reading = attending.bytes_per_second or speed.streaming_bytes_per_second
            seconds = max(one.operations * share / rate, one.bytes * share / reading)
        elif one.kind == "cache sent":
            share = min(1.0, cells / one.cells)
            add(one.device, one.kind, one.bytes * share / speed.split_bytes_per_second)
            continue
        elif one.kind == "other":
            seconds = one.bytes * filled / speed.activation_bytes_per_second
        else:
            rates = speed.weight(one.type, one.width, experts=one.kind == "experts")
            # An output matrix gives logits for one token whatever the pass: its operations tell.
            multiplying = one.operations * filled / rates.operations(many=many)
            seconds = max(one.bytes / rates.bytes_per_second, multiplying)
        seconds += one.count * speed.node_seconds
        add(one.device, f"{one.kind} {one.type}".strip(), seconds)
    for device, speed in enumerate(speeds[: len(graph.splits)]):
        copied = graph.split_bytes[device] * filled / speed.split_bytes_per_second if device else 0.0
        seconds = graph.splits[device] * speed.split_seconds + copied
        if seconds:
            add(device, "graph splits", seconds)
        if device and graph.sent_bytes[device]:
            add(device, "weights sent", graph.sent_bytes[device] / speed.sent_bytes_per_second)
    return terms
