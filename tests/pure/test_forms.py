"""In which form matrices are held where weights are rewritten; that as Q8_0 every value stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeOracle, make_machine, make_spec, make_speed, make_tensor
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from memfit.engines.llamacpp.forms import widen
from memfit.errors import EngineError
from memfit.memory.estimate import Graph, LlamaConfig
from memfit.memory.streaming import WIDENS, widened_bytes
from memfit.planner.llamacpp.forms import choose_forms, forms_speed, may_widen
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import WeightSpeed, weight_key
from memfit.units import MIB

_BLOCK_BYTES = {"Q5_0": 22, "IQ4_NL": 18}


@pytest.mark.parametrize("type_name", WIDENS)
@pytest.mark.parametrize("count", [1, 8191, 8192, 20_001])
def test_every_value_stays(type_name: str, count: int) -> None:
    """Against the reader of the `gguf` package: all numbers of bits, scales of every size and sign."""
    generator = np.random.default_rng(7)
    blocks = generator.integers(0, 256, (count, _BLOCK_BYTES[type_name]), np.uint8)
    scales = generator.normal(0, 1, count) * 10.0 ** generator.integers(-7, 4, count)
    blocks[:, :2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    wide = np.empty((count, 34), np.uint8)
    widen(type_name, memoryview(blocks.reshape(-1)), memoryview(wide.reshape(-1)))
    before = dequantize(blocks, GGMLQuantizationType[type_name])
    assert np.array_equal(dequantize(wide, GGMLQuantizationType.Q8_0), before)


def test_other_types_would_be_rounded() -> None:
    with pytest.raises(EngineError, match="every value of Q5_1"):
        widen("Q5_1", memoryview(bytes(24)), memoryview(bytearray(34)))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "may"),
    [
        ("blk.0.attn_q", (896, 896), "Q5_0", True),
        ("output", (896, 1000), "IQ4_NL", True),
        ("token_embd", (896, 1000), "Q5_0", False),
        ("blk.0.ffn_up_exps", (896, 896, 4), "Q5_0", False),
        ("blk.0.attn_q", (896, 896), "Q4_K", False),
    ],
)
def test_which_may_be(name: str, shape: tuple[int, ...], kind: str, may: bool) -> None:
    assert may_widen(make_tensor(f"{name}.weight", shape, kind, MIB)) is may


# --- the planner ---


def _speed(generation: float, prompt: float) -> WeightSpeed:
    return WeightSpeed(bytes_per_second=generation, operations_per_second=prompt)


_PLAIN = {"Q5_0": _speed(1e10, 1e11), "Q8_0": _speed(1e10, 1e11), "Q4_K": _speed(1e10, 1e11)}
_AMX = {**_PLAIN, "Q8_0": _speed(1e10, 5e11), "Q4_K": _speed(1e10, 3e11)}


class _Oracle(FakeOracle):
    """Its graph has the one matrix in the type that it is held in."""

    def ask(self, config: Any) -> Any:
        answer = super().ask(config)
        kind, size = ("Q8_0", 34) if config.widened else ("Q5_0", 22)

        def held(graph: Graph) -> Graph:
            operations = (
                replace(one, type=kind, bytes=one.bytes * size // 34) if one.type == "Q8_0" else one
                for one in graph.operations
            )
            return replace(graph, operations=tuple(operations))

        return replace(answer, prompt=held(answer.prompt), generation=held(answer.generation))


def _plan(ram_mib: float, rewritten: Any = None, **workload: Any) -> LlamaPlan:
    tensor = make_tensor("blk.0.ffn_up.weight", (2048, 50 * 1024), "Q5_0", 70 * MIB)
    inputs = PlanInputs(
        spec=make_spec(tensor),
        machine=make_machine(),
        budget=Budget(ram=f"{ram_mib}MiB"),
        workload=Workload(context=1024, **{"prompt_tokens": 256, "generated_tokens": 16, **workload}),
        speeds={False: make_speed(weights=_PLAIN), True: make_speed(weights=rewritten or _AMX)},
    )
    return make_plan(inputs, _Oracle())


def test_a_type_without_kernels_of_that_kind_is_widened() -> None:
    config = _plan(900).config
    assert config.widened == ("blk.0.ffn_up.weight",)
    assert (config.repack, config.load_mode) == (True, "read")


def test_a_plan_says_what_it_takes() -> None:
    plan = _plan(900)
    added = widened_bytes(plan.spec.tensors[0]) - 70 * MIB
    said = f"1 matrices of Q5_0 rewritten as Q8_0, which has every value of theirs, for {added / MIB:.2f} MiB"
    assert any(said in one for one in plan.why)
    assert "1 matrices as Q8_0" in plan.settings


def test_nothing_is_where_nothing_is_gained() -> None:
    assert not _plan(900, _PLAIN).config.widened  # this CPU rewrites no Q8_0
    assert not _plan(900, {**_AMX, "Q5_0": _speed(1e10, 5e11)}).config.widened  # it rewrites Q5_0 itself
    assert not _plan(900, generated_tokens=10_000, prompt_tokens=1).config.widened  # bytes decide


def _chosen(**workload: Any) -> tuple[list[str], list[str]]:
    """Of the fast kinds: the matrices that stay plain, and those that are widened."""
    spec = make_spec(
        make_tensor("blk.0.attn_q.weight", (2048, 512), "Q6_K", MIB),
        make_tensor("blk.0.attn_k.weight", (2048, 512), "Q5_0", MIB),
        make_tensor("blk.0.ffn_up.weight", (2048, 512), "Q4_K", MIB),
        make_tensor("blk.0.ffn_up_exps.weight", (2048, 512, 4), "Q6_K", MIB),
        make_tensor("output.weight", (2048, 512), "Q6_K", MIB),
    )
    plain = make_speed(weights={**_PLAIN, "Q6_K": _speed(1.6e10, 2e11)})
    rewritten = make_speed(weights={**_AMX, "Q6_K": _speed(1e10, 3e11)})
    config = replace(_plan(900).config, plain=(), widened=())
    settings = Workload(**{"prompt_tokens": 64, "generated_tokens": 64, **workload})
    found = choose_forms(spec, config, plain, rewritten, settings)
    assert found is not None and found == replace(config, plain=found.plain, widened=found.widened)
    kinds = forms_speed(spec, found, plain, rewritten).weights
    assert kinds == {**rewritten.weights, **({"Q6_K": plain.weights["Q6_K"]} if found.plain else {})}
    short = ([name.removesuffix(".weight") for name in names] for names in (found.plain, found.widened))
    return tuple(short)  # type: ignore[return-value]


def test_each_kind_gets_its_fastest_form() -> None:
    assert _chosen() == (["blk.0.attn_q", "output"], ["blk.0.attn_k"])


def test_what_is_fastest_depends_on_the_workload() -> None:
    assert _chosen(prompt_tokens=8000, generated_tokens=1) == ([], ["blk.0.attn_k"])


def test_experts_have_kernels_of_their_own() -> None:
    experts = make_tensor("blk.0.ffn_up_exps.weight", (2048, 512, 4), "Q4_K", MIB)
    dense = make_tensor("blk.0.attn_q.weight", (2048, 512), "Q4_K", MIB)
    key = weight_key("Q4_K", 2048, experts=True)
    plain = make_speed(weights={**_PLAIN, key: _speed(1e10, 2e11)})
    rewritten = make_speed(weights={**_AMX, key: _speed(1.2e10, 1e11)})
    spec, config = make_spec(experts, dense), _plan(900).config

    def chosen(prompt: int, generated: int) -> LlamaConfig | None:
        workload = Workload(prompt_tokens=prompt, generated_tokens=generated)
        return choose_forms(spec, config, plain, rewritten, workload)

    for_prompts = chosen(1000, 1)
    assert for_prompts is not None and for_prompts.plain == (experts.name,)
    speed = forms_speed(spec, for_prompts, plain, rewritten)
    assert speed.weight("Q4_K", experts=True) == plain.weights[key]
    assert speed.weight("Q4_K") == rewritten.weights["Q4_K"]
    assert chosen(1, 1000) is None


@pytest.mark.parametrize("repack", ["on", "off"])
def test_who_asks_for_a_form_gets_it(repack: str) -> None:
    assert not _plan(900, repack=repack).config.widened
