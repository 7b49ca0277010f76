"""The speed formula, term by term, against sums worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from fakes import make_device_bytes, make_graph, make_operation, make_speed
from hypothesis import given
from hypothesis import strategies as st

from memfit.memory.estimate import Graph, MemoryEstimate, Operation
from memfit.planner.speed import (
    _EFFICIENCY,
    ASSUMED,
    ASSUMED_DEVICE,
    OP_OFFLOAD_TOKENS,
    AttentionSpeed,
    DeviceSpeed,
    Prediction,
    WeightSpeed,
    attention_key,
    needed_rates,
    predict,
    weight_key,
)

# Q8_0 streams 2,000 bytes a second and F16 1,000; a node takes 1 ms.
_RAM = DeviceSpeed(
    weights={
        "Q8_0": WeightSpeed(bytes_per_second=2000, operations_per_second=4000),
        "F16": WeightSpeed(bytes_per_second=1000, operations_per_second=500),
    },
    attention={
        "F16/64": AttentionSpeed(generation=100, prompt=1000),
        "Q8_0/64": AttentionSpeed(generation=50, prompt=2000),
    },
    activation_bytes_per_second=500,
    node_seconds=0.001,
    split_seconds=0.0,
    split_bytes_per_second=1e12,
    basis="calibrated",
)
# Ten times as fast; handing over to it takes 0.1 s, and 100 bytes a second pass.
_DEVICE = replace(
    _RAM,
    weights={name: WeightSpeed(bytes_per_second=20_000, operations_per_second=40_000) for name in ("Q8_0",)},
    activation_bytes_per_second=5000,
    node_seconds=0.0,
    split_seconds=0.1,
    split_bytes_per_second=100,
)


def _answer(generation: Graph, prompt: Graph | None = None, *, devices: int = 0) -> MemoryEstimate:
    return MemoryEstimate(
        context=4096,
        weights_bytes=0,
        kv_cache_bytes=0,
        compute_bytes=0,
        scratch_bytes=0,
        process_bytes=0,
        generation=generation,
        prompt=prompt or make_graph(make_operation(operations=4000), tokens=10),
        devices=make_device_bytes(devices),
    )


def _predict(
    *generation: Operation,
    prompt: Graph | None = None,
    speeds: tuple[DeviceSpeed, ...] = (_RAM,),
    splits: tuple[int, ...] = (0,),
    prompt_tokens: int = 10,
    generated_tokens: int = 20,
    depth: int | None = None,
) -> Prediction:
    """All devices whose speeds are given are open."""
    graph = make_graph(*(generation or (make_operation(bytes=2000),)), splits=splits)
    return predict(
        _answer(graph, prompt, devices=len(speeds) - 1),
        speeds,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        depth=depth,
    )


def _seconds(prediction: Prediction) -> float:
    """Of one generated token, by what the kernels reach by themselves."""
    return _EFFICIENCY / prediction.generation.value


# --- matrices ---


@pytest.mark.parametrize(
    ("size", "operations", "seconds"),
    [
        (1000, 0, 0.5),  # 1,000 / 2,000
        (1000, 1999, 0.5),
        (1000, 2000, 0.5),  # both take as long
        (1000, 6000, 1.5),  # 6,000 / 4,000
        (0, 400, 0.1),
    ],
)
@pytest.mark.parametrize("kind", ["matmul", "experts"])
def test_a_matrix_takes_the_longer_of_reading_and_multiplying(
    kind: str, size: int, operations: int, seconds: float
) -> None:
    prediction = _predict(make_operation(kind, bytes=size, operations=operations))
    assert _seconds(prediction) == pytest.approx(seconds + 0.001)


def test_each_matrix_is_bounded_by_itself() -> None:
    """One is bound by its bytes and one by its operations: 1 s each, not the larger of the sums."""
    both = (make_operation(bytes=2000), make_operation("experts", bytes=2, operations=4000))
    assert _seconds(_predict(*both)) == pytest.approx(1.0 + 1.0 + 0.002)


def test_a_type_has_its_own_rates() -> None:
    assert _seconds(_predict(make_operation(type_name="F16", bytes=1000))) == pytest.approx(1.001)
    assert _seconds(_predict(make_operation(type_name="F16", operations=1000))) == pytest.approx(2.001)


def test_an_unknown_type_is_as_fast_as_the_slowest() -> None:
    """F16 multiplies slowest, so its bandwidth counts too, although Q8_0's would be another."""
    unknown = make_operation(type_name="IQ1_S", bytes=3000, operations=100)
    assert _seconds(_predict(unknown)) == pytest.approx(3.001)


def test_short_rows_have_their_own_rates_or_their_types() -> None:
    assert [weight_key("Q8_0", columns) for columns in (576, 1535, 1536, 4096)] == [
        *("Q8_0/576", "Q8_0/1535"),
        *("Q8_0", "Q8_0"),
    ]
    short = WeightSpeed(bytes_per_second=400, operations_per_second=800)
    speed = replace(_RAM, weights={**_RAM.weights, "Q8_0/576": short})
    assert speed.weight("Q8_0", 576) == short
    for columns in (512, 577, 1536, 4096):
        assert speed.weight("Q8_0", columns) == speed.weight("Q8_0") == _RAM.weights["Q8_0"]
    # Another type's short rows are not this one's, and an unknown type is as fast as the slowest key.
    assert speed.weight("F16", 576) == _RAM.weights["F16"]
    assert speed.weight("IQ1_S", 576) == speed.weight("IQ1_S") == _RAM.weights["F16"]
    # A pass of either kind looks them up by the width of its matrices.
    prompt = make_graph(make_operation(operations=4000, width=576), tokens=10)
    prediction = _predict(make_operation(bytes=2000, width=576), prompt=prompt, speeds=(speed,))
    assert _seconds(prediction) == pytest.approx(5.001)  # at 400 a second
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * 10 / 5.001)  # at 800
    other = _predict(make_operation(bytes=2000, width=640), speeds=(speed,))
    assert _seconds(other) == pytest.approx(1.001)


def test_every_node_costs() -> None:
    prediction = _predict(make_operation(bytes=2000, count=30), make_operation("other", "", count=70))
    assert _seconds(prediction) == pytest.approx(1.0 + 0.1)


def test_activations_are_moved() -> None:
    assert _seconds(_predict(make_operation("other", "", bytes=250))) == pytest.approx(0.501)


# --- attention ---


def _attention(type_name: str = "F16", **values: int) -> Operation:
    return make_operation("attention", type_name, **{"cells": 100, "width": 64, **values})


@pytest.mark.parametrize(
    ("prompt_tokens", "generated_tokens", "depth", "cells"),
    [
        (10, 20, None, 20),  # an answer follows its prompt: 10, and half of 20
        (10, 20, 0, 10),
        (10, 20, 30, 40),
        (70, 60, None, 100),  # the whole cache, exactly
        (70, 600, None, 100),  # no more than there is
        (1, 1, 5000, 100),
    ],
)
def test_attention_is_scaled_by_the_cells_in_use(
    prompt_tokens: int, generated_tokens: int, depth: int | None, cells: int
) -> None:
    """1,000 operations over 100 cells at 100 a second: 0.1 s a cell."""
    prediction = _predict(
        _attention(operations=1000),
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        depth=depth,
    )
    assert _seconds(prediction) == pytest.approx(0.1 * cells + 0.001)


@pytest.mark.parametrize(("depth", "cells"), [(None, 5), (0, 5), (40, 45), (90, 95), (96, 100)])
def test_a_prompts_attention_sees_half_of_it_and_what_lies_before(depth: int | None, cells: int) -> None:
    """1,000 operations over 100 cells at 1,000 a second, for a pass of 10 tokens."""
    prompt = make_graph(_attention(operations=1000), tokens=10)
    prediction = _predict(prompt=prompt, depth=depth)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * 10 / (0.01 * cells + 0.001))


def test_attention_is_bounded_by_streaming() -> None:
    """10,000 bytes at the fastest type's 2,000 a second are 5 s, 20 of 100 cells 1 s; operations 0.2 s."""
    assert _seconds(_predict(_attention(operations=100, bytes=10_000))) == pytest.approx(1.001)
    assert _seconds(_predict(_attention(operations=1000, bytes=10_000))) == pytest.approx(2.001)


def test_attention_has_its_own_rates_by_type_and_head() -> None:
    assert _seconds(_predict(_attention("Q8_0", operations=1000))) == pytest.approx(4.001)  # at 50 a second
    unknown = _attention("Q4_0", operations=1000)
    assert _seconds(_predict(unknown)) == pytest.approx(4.001)  # the slowest generation
    prompt = make_graph(_attention("F16", operations=1000, width=128), tokens=10)
    # Slowest where generating is Q8_0/64, so its 2,000 a second count: 50 operations, 0.025 s.
    assert _predict(prompt=prompt).prompt.value == pytest.approx(_EFFICIENCY * 10 / 0.026)


def test_attention_key() -> None:
    assert attention_key("F16", 128) == "F16/128"


# --- prompts ---


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [
        (10, 1.001),  # one whole pass: 4,000 operations at 4,000 a second
        (20, 2.002),
        (5, 0.501),  # half full: half of the operations, all of the node
        (15, 1.502),  # two passes of three quarters
        (1, 0.101),
    ],
)
def test_a_prompt_is_passes_of_a_ubatch(tokens: int, seconds: float) -> None:
    assert _predict(prompt_tokens=tokens).prompt.value == pytest.approx(_EFFICIENCY * tokens / seconds)


def test_a_pass_that_is_not_full_still_reads_the_weights() -> None:
    prompt = make_graph(make_operation(bytes=1000, operations=40), tokens=10)
    assert _predict(prompt=prompt, prompt_tokens=1).prompt.value == pytest.approx(_EFFICIENCY * 1 / 0.501)


def test_moved_activations_shrink_with_a_pass_that_is_not_full() -> None:
    prompt = make_graph(make_operation("other", "", bytes=500), tokens=10)
    assert _predict(prompt=prompt, prompt_tokens=5).prompt.value == pytest.approx(_EFFICIENCY * 5 / 0.501)


# --- several devices ---


def test_each_place_has_its_own_rates() -> None:
    here, there = make_operation(bytes=2000), make_operation(bytes=2000, device=1)
    assert _seconds(_predict(here, there, speeds=(_RAM, _DEVICE))) == pytest.approx(1.001 + 0.1)


def test_entering_a_place_costs_time_and_what_is_copied() -> None:
    """Twice into the device: 2 * 0.1 s, and 30 bytes at 100 a second; the way back is free."""
    graph = Graph(
        tokens=1,
        operations=(make_operation(bytes=2000),),
        splits=(2, 2),
        split_bytes=(5_000_000, 30),
        sent_bytes=(0, 0),
    )
    lengths = {"prompt_tokens": 10, "generated_tokens": 20}
    prediction = predict(_answer(graph, devices=1), (_RAM, _DEVICE), **lengths)
    assert _seconds(prediction) == pytest.approx(1.001 + 0.2 + 0.3)
    waiting = replace(_RAM, split_seconds=0.25)  # but its bytes are the other device's
    slower = predict(_answer(graph, devices=1), (waiting, _DEVICE), **lengths)
    assert _seconds(slower) == pytest.approx(1.001 + 0.2 + 0.3 + 0.5)


def test_the_copies_of_a_half_full_pass_are_half() -> None:
    prompt = Graph(tokens=10, operations=(), splits=(1, 1), split_bytes=(0, 40), sent_bytes=(0, 0))
    prediction = _predict(prompt=prompt, speeds=(_RAM, _DEVICE), prompt_tokens=5)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * 5 / (0.1 + 0.2))


@pytest.mark.parametrize(
    ("last", "remote", "splits", "seconds"),
    [
        (1, True, 1, 8.0 + 2 * 5.0),  # 3 s here, 5 s there: the slower side sets the pace
        (1, True, 5, 8.0 + 2 * 7.0),  # only the last of five visits there is not waited for
        (1, False, 1, 3 * 8.0),
        (0, True, 1, 3 * 8.0),  # a pass that ends here waits for all
    ],
)
def test_passes_overlap_where_they_end_on_another_machine(
    last: int, remote: bool, splits: int, seconds: float
) -> None:
    """Three passes, each 12,000 operations here at 4,000 a second, and 20,000 there at as many."""
    here, there = (make_operation(operations=size, device=one) for one, size in enumerate((12_000, 20_000)))
    graph = make_graph(here, there, tokens=10, splits=(0, splits))
    speed = replace(_RAM, node_seconds=0.0)
    speeds = (speed, replace(speed, is_remote=remote))
    prediction = _predict(prompt=replace(graph, last_device=last), speeds=speeds, prompt_tokens=30)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * 30 / seconds)


@pytest.mark.parametrize("tokens", [64, 32])
def test_weights_are_sent_whole_whatever_a_pass_is_filled_with(tokens: int) -> None:
    """1,000 bytes at 100 a second, and 4,000 operations of a full pass at 40,000."""
    multiplied = make_operation(bytes=1000, operations=4000, device=1)
    prompt = replace(make_graph(multiplied, tokens=64, splits=(0, 0)), sent_bytes=(0, 1000))
    taking = replace(_DEVICE, sent_bytes_per_second=100.0)
    prediction = _predict(prompt=prompt, speeds=(_RAM, taking), prompt_tokens=tokens)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * tokens / (10 + 0.1 * tokens / 64))
    (sent,) = (one for one in prediction.prompt_terms if one.kind == "weights sent")
    assert (sent.device, sent.seconds * _EFFICIENCY) == (1, pytest.approx(10))


@pytest.mark.parametrize(("tokens", "cells"), [(64, 32), (1000, 500), (5000, 1000)])
def test_a_cache_is_sent_as_far_as_it_is_filled(tokens: int, cells: int) -> None:
    """2,000 bytes of 1,000 cells at 100 a second, in each of the passes; a prompt sees half of itself."""
    sent = make_operation("cache sent", bytes=2000, cells=1000, device=1)
    prompt = make_graph(sent, tokens=tokens, splits=(0, 0))
    prediction = _predict(prompt=prompt, speeds=(_RAM, _DEVICE), prompt_tokens=tokens)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY * tokens / (20 * cells / 1000))


@pytest.mark.parametrize(("sequences", "seconds"), [(16, 1000 * 16 / 40_000), (32, 10 + 4000 * 0.5 / 40_000)])
def test_many_sequences_generate_where_a_prompt_is_computed(sequences: int, seconds: float) -> None:
    """From 32 on the GPU is sent 1,000 bytes at 100 a second; below, each token's 1,000 operations count."""
    one = make_operation(bytes=1, operations=1000, device=1)
    full = make_operation(bytes=1, operations=4000, device=1)
    prompt = replace(make_graph(full, tokens=64, splits=(0, 0)), sent_bytes=(0, 1000))
    taking = replace(_DEVICE, sent_bytes_per_second=100.0)
    answer = _answer(make_graph(one, splits=(0, 0)), prompt)
    speeds, lengths = (_RAM, taking), {"prompt_tokens": 64, "generated_tokens": 20}
    prediction = predict(answer, speeds, sequences=sequences, **lengths)
    assert prediction.together.value == pytest.approx(_EFFICIENCY * sequences / seconds)


def test_a_gpu_that_is_not_opened_changes_nothing() -> None:
    """Its speed is known, and yet the prediction is RAM's alone."""
    prompt = make_graph(make_operation(bytes=1000, operations=4000), tokens=64)
    answer = _answer(make_graph(make_operation(bytes=2000)), prompt)
    lengths = {"prompt_tokens": 64, "generated_tokens": 20}
    closed = replace(_DEVICE, basis="assumed")
    assert predict(answer, (_RAM, closed), **lengths) == predict(answer, (_RAM,), **lengths)


# --- what it is worth ---


@pytest.mark.parametrize(
    ("basis", "low", "high"),
    [("calibrated", 0.7, 1.3), ("profile", 0.65, 1.35), ("provisional", 0.7, 2.5), ("assumed", 0.25, 4.0)],
)
def test_ranges_lie_either_side(basis: str, low: float, high: float) -> None:
    prediction = _predict(speeds=(replace(_RAM, basis=basis),))
    for rate in (prediction.prompt, prediction.generation):
        assert (rate.low, rate.high) == pytest.approx((low * rate.value, high * rate.value))
    assert prediction.basis == basis


@pytest.mark.parametrize(
    ("ram", "device", "basis"),
    [
        ("calibrated", "calibrated", "calibrated"),
        ("calibrated", "profile", "profile"),
        ("profile", "calibrated", "profile"),
        ("profile", "assumed", "assumed"),
        ("assumed", "calibrated", "assumed"),
    ],
)
def test_the_weakest_basis_counts(ram: str, device: str, basis: str) -> None:
    speeds = (replace(_RAM, basis=ram), replace(_DEVICE, basis=device))
    assert _predict(make_operation(bytes=1, device=1), speeds=speeds).basis == basis


def test_a_place_that_nothing_lies_in_does_not_weaken_the_basis() -> None:
    assert _predict(speeds=(_RAM, replace(_DEVICE, basis="assumed"))).basis == "calibrated"
    prompt = make_graph(make_operation(operations=1, device=1), tokens=10)
    speeds = (_RAM, replace(_DEVICE, basis="assumed"))
    assert _predict(prompt=prompt, speeds=speeds).basis == "assumed"


def test_the_terms_sum_up_and_say_what_they_are() -> None:
    prediction = _predict(
        make_operation(bytes=2000),
        make_operation("other", "", bytes=10, device=1),
        _attention(operations=10),
        speeds=(_RAM, _DEVICE),
        splits=(1, 1),
    )
    assert [(term.device, term.kind) for term in prediction.generation_terms] == [
        (0, "matmul Q8_0"),
        (1, "other"),
        (0, "attention F16"),
        (1, "graph splits"),
    ]
    generating = sum(term.seconds for term in prediction.generation_terms)
    assert generating == pytest.approx(1 / prediction.generation.value)
    assert sum(term.seconds for term in prediction.prompt_terms) == pytest.approx(1.001 / _EFFICIENCY)


def _scaled(speed: DeviceSpeed, factor: float) -> DeviceSpeed:
    return replace(
        speed,
        weights={
            name: WeightSpeed(
                bytes_per_second=one.bytes_per_second * factor,
                operations_per_second=one.operations_per_second * factor,
            )
            for name, one in speed.weights.items()
        },
        attention={
            name: AttentionSpeed(generation=one.generation * factor, prompt=one.prompt * factor)
            for name, one in speed.attention.items()
        },
        activation_bytes_per_second=speed.activation_bytes_per_second * factor,
        node_seconds=speed.node_seconds / factor,
        split_seconds=speed.split_seconds / factor,
        split_bytes_per_second=speed.split_bytes_per_second * factor,
    )


@given(
    factor=st.floats(0.1, 10),
    prompt_tokens=st.integers(1, 10_000),
    generated_tokens=st.integers(1, 10_000),
    depth=st.none() | st.integers(0, 10_000),
    values=st.fixed_dictionaries({name: st.integers(0, 10**6) for name in ("count", "bytes", "operations")}),
)
def test_a_machine_so_much_faster_takes_so_much_less_time(
    factor: float,
    prompt_tokens: int,
    generated_tokens: int,
    depth: int | None,
    values: Mapping[str, int],
) -> None:
    kinds = [
        make_operation(kind, device=device, **values) for kind in ("matmul", "other") for device in (0, 1)
    ]
    operations = (*kinds, _attention(operations=7, bytes=3), make_operation(bytes=1))
    prompt = make_graph(*operations, tokens=512, splits=(2, 2))
    speeds = (_RAM, _DEVICE)
    before, after = (
        _predict(
            *operations,
            prompt=prompt,
            speeds=used,
            splits=(1, 1),
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            depth=depth,
        )
        for used in (speeds, tuple(_scaled(speed, factor) for speed in speeds))
    )
    assert after.generation.value == pytest.approx(factor * before.generation.value)
    assert after.prompt.value == pytest.approx(factor * before.prompt.value)


# --- what has to be measured ---


def test_the_types_and_heads_that_decide() -> None:
    def needed(*operations: Operation) -> tuple[list[str], list[str]]:
        return needed_rates(_answer(make_graph(*operations)), instead={})

    main = (
        make_operation(type_name="Q8_0", bytes=600),
        make_operation(type_name="Q8_0", bytes=390),
        make_operation(type_name="Q4_K", bytes=300),
        make_operation("other", "", bytes=10**9),
        _attention("F16", bytes=10**9),
        _attention("F16", bytes=10**9, width=128),
        _attention("F16", bytes=1),
    )
    both = ["Q4_K", "Q8_0"]
    assert needed(*main) == (both, ["F16/128", "F16/64"])
    # Below 2 % of the matrices' bytes a type needs no measuring; 26 of 1,316 are below, 27 of 1,317 above.
    assert needed(*main, make_operation(type_name="F32", bytes=26))[0] == both
    assert needed(*main, make_operation(type_name="F32", bytes=27))[0] == ["F32", *both]
    # Small ones of one type count together,
    small = (make_operation(type_name="F32", bytes=13), make_operation(type_name="F32", bytes=14))
    assert needed(*main, *small)[0] == ["F32", *both]
    # but not those of experts or with short rows, which are measured by themselves.
    assert needed(*main, make_operation("experts", bytes=300))[0] == [*both, "experts Q8_0"]
    short = (make_operation(bytes=26, width=576), make_operation(bytes=1, width=1535))
    assert needed(*main, *short)[0] == both
    assert needed(*main, *short, make_operation(bytes=1, width=576))[0] == [*both, "Q8_0/576"]


def test_experts_have_rates_of_their_own() -> None:
    dense, routed = (WeightSpeed(bytes_per_second=rate, operations_per_second=rate) for rate in (2e9, 1e9))
    speed = make_speed(weights={"Q4_K": dense, "experts Q4_K": routed})
    assert (speed.weight("Q4_K"), speed.weight("Q4_K", experts=True)) == (dense, routed)
    assert make_speed(weights={"Q4_K": dense}).weight("Q4_K", experts=True) == dense


def test_the_types_that_weights_may_be_held_as() -> None:
    short = make_operation(type_name="Q5_0", bytes=9, width=896)
    answer = _answer(make_graph(short, make_operation(type_name="Q6_K", bytes=9)))
    instead = {"Q5_0": ["Q8_0", "BF16"], "Q6_K": ["BF16"], "Q4_K": ["F32"]}
    types, _ = needed_rates(answer, instead=instead)
    assert types == ["BF16", "BF16/896", "Q5_0/896", "Q6_K", "Q8_0/896"]


def test_only_a_device_is_assumed_to_be_entered_for_a_price() -> None:
    assert ASSUMED.split_seconds == 0.0 < ASSUMED_DEVICE.split_seconds
    assert replace(ASSUMED, split_seconds=ASSUMED_DEVICE.split_seconds) == ASSUMED_DEVICE
    assert OP_OFFLOAD_TOKENS == 32  # min_batch_size in ggml-cuda.cu


def test_the_assumed_machine_knows_every_type() -> None:
    prediction = _predict(
        make_operation(type_name="Q4_K", bytes=20_000_000_000), _attention(bytes=1), speeds=(ASSUMED,)
    )
    assert prediction.generation.value == pytest.approx(1.0, rel=1e-4)  # 20 GB/s, of a model and no kernel
    assert prediction.basis == "assumed"


# --- in parallel ---


def _together(sequences: int, *operations: Operation, expert_share: float = 1.0, **rates: float) -> float:
    """Seconds of a pass for all sequences, by what the kernels reach by themselves."""
    speed = replace(_RAM, weights={"Q8_0": replace(_RAM.weights["Q8_0"], **rates)}, node_seconds=0.0)
    prediction = predict(
        _answer(make_graph(*operations)),
        (speed,),
        prompt_tokens=10,
        generated_tokens=20,
        sequences=sequences,
        expert_share=expert_share,
    )
    return _EFFICIENCY * sequences / prediction.together.value


def test_weights_are_read_once_for_all_sequences() -> None:
    """4,000 bytes take 2 s; each token's 1,000 operations 0.25 s more, so that from 8 on they decide."""
    one = make_operation(bytes=4000, operations=1000)
    assert [_together(n, one) for n in (1, 4, 8, 16)] == pytest.approx([2, 2, 2, 4])


def test_kernels_have_a_rate_of_their_own_for_few_tokens() -> None:
    one = make_operation(bytes=4000, operations=1000)
    assert _together(16, one, batch_operations_per_second=2000.0) == pytest.approx(8)
    # 64 tokens are a prompt's, whose efficiency counts too.
    assert _together(64, one, batch_operations_per_second=2000.0) == pytest.approx(64 * 1000 / 4000)


def test_caches_and_activations_are_each_sequences_own() -> None:
    """100 cells of 1,000 are in use: 20 operations of 200 at 100 a second; 500 bytes at 500 a second."""
    attention = make_operation("attention", type_name="F16", operations=200, cells=200, width=64)
    other = make_operation("other", bytes=500)
    assert _together(4, other) == pytest.approx(4)
    assert _together(4, attention) == pytest.approx(4 * _together(1, attention))


def test_experts_are_read_as_far_as_any_token_is_routed_to_them() -> None:
    """A token takes a quarter of 8,000 bytes; two take a quarter and a quarter of the rest."""
    one = make_operation("experts", bytes=2000)
    assert _together(1, one, expert_share=0.25) == pytest.approx(1)
    assert _together(2, one, expert_share=0.25) == pytest.approx(3500 / 2000)
    assert _together(60, one, expert_share=0.25) == pytest.approx(4)
