"""The speed formula, against examples worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import make_spec, make_tensor
from hypothesis import given
from hypothesis import strategies as st

from memfit.headers.model_spec import ModelSpec
from memfit.planner.speed import KernelSpeed, Prediction, measured_types, predict

# 1 ns a node; F16 moves 1,000 bytes a second and Q8_0 2,000, so that seconds are whole numbers.
_SPEEDS = {
    "F16": KernelSpeed(bytes_per_second=1000, operations_per_second=500, node_seconds=0.001),
    "Q8_0": KernelSpeed(bytes_per_second=2000, operations_per_second=4000, node_seconds=0.001),
}
_EMBEDDING = make_tensor("token_embd.weight", (10, 100), "F16", 2000)
_MATRIX = make_tensor("blk.0.attn_q.weight", (10, 60), "Q8_0", 640)
_EFFICIENCY = 0.75  # what the formula says the kernels reach inside a model
_VECTOR = make_tensor("blk.0.attn_norm.weight", (10,), "F32", 40)
_OUTPUT = make_tensor("output.weight", (10, 100), "Q8_0", 1060)


def _predict(spec: ModelSpec, *, prompt: int = 10, generated: int = 20, nodes: int = 50) -> Prediction:
    return predict(
        spec,
        _SPEEDS,
        nodes=nodes,
        kv_bytes_per_token=2.5,
        prompt_tokens=prompt,
        generated_tokens=generated,
    )


def test_a_dense_model_by_hand() -> None:
    """A token: (640 + 1,060) / 2,000 + 50 * 0.001 + 20 * 2.5 / 1,000 = 0.85 + 0.05 + 0.05 = 0.95 s.
    The embedding is read by the row and the vector is small. A prompt token: 2 * 600 / 4,000 = 0.3 s."""
    prediction = _predict(make_spec(_EMBEDDING, _MATRIX, _VECTOR, _OUTPUT))
    assert prediction.generation.value == pytest.approx(_EFFICIENCY / 0.95)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY / 0.3)
    assert prediction.basis == "calibrated"


def test_tied_embeddings_are_the_output_matrix_by_hand() -> None:
    """A token: 640 / 2,000 + 2,000 / 1,000 + 0.05 + 0.05 = 2.42 s; the prompt does not change."""
    prediction = _predict(make_spec(_EMBEDDING, _MATRIX, _VECTOR))
    assert prediction.generation.value == pytest.approx(_EFFICIENCY / 2.42)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY / 0.3)


def test_a_mixture_of_experts_by_hand() -> None:
    """2 of 8 experts: a quarter of 3,200 bytes and 3,000 weights; shared matrices are used whole.
    A token: (640 + 1,060 + 800) / 2,000 + 0.1 = 1.35 s; a prompt token: 2 * (600 + 750) / 4,000."""
    experts = make_tensor("blk.0.ffn_up_exps.weight", (10, 60, 5), "Q8_0", 3200)
    facts = {"qwen3moe.expert_count": 8, "qwen3moe.expert_used_count": 2}
    spec = make_spec(_EMBEDDING, _MATRIX, experts, _OUTPUT, architecture="qwen3moe", metadata=dict(facts))
    prediction = _predict(spec)
    assert prediction.generation.value == pytest.approx(_EFFICIENCY / 1.35)
    assert prediction.prompt.value == pytest.approx(_EFFICIENCY / 0.675)


def test_the_output_matrix_does_not_count_for_prompts() -> None:
    huge = replace(_OUTPUT, shape=(10, 10**9), size_bytes=10**10)
    spec, other = (make_spec(_EMBEDDING, _MATRIX, output) for output in (_OUTPUT, huge))
    assert _predict(spec).prompt == _predict(other).prompt
    assert _predict(spec).generation.value > 1000 * _predict(other).generation.value


def test_the_depth_is_the_prompt_and_half_of_the_answer() -> None:
    spec = make_spec(_EMBEDDING, _MATRIX, _OUTPUT)
    shallow, deep = _predict(spec, prompt=0, generated=200), _predict(spec, prompt=100, generated=400)
    # 100 against 300 tokens of 2.5 bytes at 1,000 bytes a second
    assert 1 / deep.generation.value - 1 / shallow.generation.value == pytest.approx(0.5 / _EFFICIENCY)


def test_ranges_lie_either_side() -> None:
    rate = _predict(make_spec(_EMBEDDING, _MATRIX, _OUTPUT)).generation
    assert (rate.low, rate.high) == pytest.approx((0.65 * rate.value, 1.35 * rate.value))


@given(
    factor=st.floats(0.1, 10),
    prompt=st.integers(1, 10_000),
    generated=st.integers(1, 10_000),
    nodes=st.integers(0, 5_000),
)
def test_a_machine_twice_as_fast_takes_half_the_time(
    factor: float, prompt: int, generated: int, nodes: int
) -> None:
    spec = make_spec(_EMBEDDING, _MATRIX, _OUTPUT)
    faster = {
        kind: KernelSpeed(
            bytes_per_second=speed.bytes_per_second * factor,
            operations_per_second=speed.operations_per_second * factor,
            node_seconds=speed.node_seconds / factor,
        )
        for kind, speed in _SPEEDS.items()
    }
    lengths = {"prompt_tokens": prompt, "generated_tokens": generated}
    before = predict(spec, _SPEEDS, nodes=nodes, kv_bytes_per_token=7.0, **lengths)
    after = predict(spec, faster, nodes=nodes, kv_bytes_per_token=7.0, **lengths)
    assert after.generation.value == pytest.approx(factor * before.generation.value)
    assert after.prompt.value == pytest.approx(factor * before.prompt.value)


def test_the_types_that_decide() -> None:
    minor = make_tensor("blk.0.ffn_gate_inp.weight", (2, 2), "F32", 16)  # 16 of 1,716 bytes: below 1 %
    assert measured_types(make_spec(_EMBEDDING, _MATRIX, minor, _OUTPUT)) == ["Q8_0", "F16"]
    larger = make_tensor("blk.0.ffn_gate_inp.weight", (2, 3), "F32", 24)
    assert measured_types(make_spec(_EMBEDDING, _MATRIX, larger, _OUTPUT)) == ["Q8_0", "F32", "F16"]


def test_a_minor_type_runs_at_the_main_types_speed() -> None:
    """16 bytes of an unmeasured type at Q8_0's 2,000 bytes a second: 0.008 s more."""
    minor = make_tensor("blk.0.ffn_gate_inp.weight", (2, 2), "F32", 16)
    plain, more = (
        _predict(make_spec(_EMBEDDING, _MATRIX, *extra, _OUTPUT)).generation.value for extra in ((), (minor,))
    )
    assert 1 / more - 1 / plain == pytest.approx(0.008 / _EFFICIENCY)


def test_the_main_type_is_the_one_with_most_bytes() -> None:
    speeds = {
        "F16": _SPEEDS["F16"],
        "F32": KernelSpeed(bytes_per_second=10, operations_per_second=10, node_seconds=0.5),
        "Q8_0": _SPEEDS["Q8_0"],
    }
    minor = make_tensor("blk.0.odd.weight", (4, 4), "Q5_K", 11)
    router = make_tensor("blk.0.ffn_gate_inp.weight", (2, 3), "F32", 24)
    spec = make_spec(_MATRIX, router, minor, _OUTPUT)
    prediction = predict(spec, speeds, nodes=0, kv_bytes_per_token=0.0, prompt_tokens=1, generated_tokens=1)
    # (640 + 1,060 + 11) / 2,000 for all but the router's 24 bytes at 10 a second
    assert prediction.generation.value == pytest.approx(_EFFICIENCY / (0.8555 + 2.4))
