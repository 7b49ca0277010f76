"""Plans for embeddings, on a machine and with an oracle that can be counted by hand."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from fakes import FakeOracle, make_machine, make_spec, make_speeds, make_tensor

from memfit.engines.embedding import Embedding
from memfit.engines.requests import Request
from memfit.errors import UsageError
from memfit.headers.model_spec import MetadataValue, ModelSpec
from memfit.planner.llamacpp.embedding import for_model
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.llamacpp.tensor_devices import output_tensors
from memfit.planner.request import Budget, Workload
from memfit.units import MIB


def _spec(architecture: str = "bert", context_length: int = 2048, **metadata: MetadataValue) -> ModelSpec:
    keys = {f"{architecture}.{name.replace('__', '.')}": value for name, value in metadata.items()}
    return make_spec(architecture=architecture, context_length=context_length, metadata=keys)


def _plan(spec: ModelSpec, workload: Workload, ram: str = "4GiB") -> LlamaPlan:
    inputs = PlanInputs(
        spec=spec,
        machine=make_machine(),
        budget=Budget(ram=ram, disk=False),
        workload=for_model(workload, spec),
        speeds=make_speeds(),
    )
    return make_plan(inputs, FakeOracle())


def test_an_encoder_reads_a_text_in_one_pass_and_generates_nothing() -> None:
    plan = _plan(_spec(), Workload(context=1000))
    assert plan.fits and plan.embeds
    assert (plan.config.ubatch, plan.sequence_context, plan.config.parallel) == (1000, 1000, 50)
    assert plan.prediction.generation is None and plan.prediction.together is None
    document = plan.to_json()["predicted"]
    assert document["generation_tokens_per_second"] is document["together_tokens_per_second"] is None
    assert document["prompt_tokens_per_second"]["value"] > 0


def test_no_text_is_longer_than_the_model_was_trained_for() -> None:
    plan = _plan(_spec(context_length=128), Workload(context=1000))
    assert (plan.config.context, plan.config.ubatch, plan.sequence_context) == (128, 128, 128)
    assert "texts of up to 128 tokens: the model was trained for no more" in plan.why


@pytest.mark.parametrize(
    ("pooling", "causal", "longest", "ubatch"),
    [
        ("last", True, 2048, 512),  # through the KV cache, in parts
        ("none", True, 2048, 512),
        ("mean", True, 512, 512),
        ("cls", True, 512, 512),
        ("last", False, 512, 512),
    ],
)
def test_a_text_in_parts(pooling: str, causal: bool, longest: int, ubatch: int) -> None:
    spec = _spec("llama", attention__causal=causal)
    plan = _plan(spec, Workload(embeds=True, pooling=pooling))
    assert (plan.sequence_context, plan.config.ubatch) == (longest, ubatch)
    assert plan.config.pooling == pooling


def test_the_models_own_pooling_tells_too() -> None:
    assert _plan(_spec("qwen3", pooling_type=3), Workload()).sequence_context == 2048
    assert _plan(_spec("qwen3", pooling_type=1), Workload()).sequence_context == 512


def test_what_is_not_generated_takes_no_memory() -> None:
    spec = _spec()
    workload = for_model(Workload(grammars=True, outputs=32, depth=7), spec)
    assert workload == Workload(embeds=True, generated_tokens=0)


def test_a_shorter_text_is_suggested_where_the_budget_is_short() -> None:
    # 100 + 2 for each of 64 texts + 20 + 1 MiB, 16 KiB of KV cache and 60 KiB of buffers a token.
    spec = _spec("llama", attention__causal=False)
    full = _plan(spec, Workload(context=1024))
    short = _plan(spec, Workload(context=1024), ram=f"{full.ram.total_bytes // MIB - 20}MiB")
    assert not short.fits
    (longest,) = (int(one.split()[1]) for one in short.suggestions if one.startswith("--ctx"))
    assert _plan(spec, Workload(context=longest), ram=f"{full.ram.total_bytes // MIB - 20}MiB").fits
    assert not any("--parallel" in one for one in short.suggestions)


def test_pooling_needs_embeddings_and_a_score_a_head() -> None:
    with pytest.raises(UsageError, match="goes with --embeddings"):
        for_model(Workload(pooling="mean"), _spec("llama"))
    with pytest.raises(UsageError, match="no head that scores"):
        for_model(Workload(pooling="rank"), _spec())
    head = make_tensor("cls.output.weight", (10, 1), "F32", 40)
    spec = replace(_spec(), tensors=(*_spec().tensors, head))
    assert for_model(Workload(pooling="rank"), spec).embeds
    with pytest.raises(UsageError, match="must be none, mean"):
        Workload(pooling="average")


def test_an_encoders_token_table_is_no_output() -> None:
    table = make_tensor("token_embd.weight", (10, 10), "F16", 200)
    head = make_tensor("cls.output.weight", (10, 1), "F32", 40)
    tensors = (table, head)
    assert output_tensors(replace(_spec(), tensors=tensors)) == [head]
    assert output_tensors(replace(_spec("llama"), tensors=tensors)) == [table, head]


def test_a_plan_says_what_it_is_not_for() -> None:
    embedding, writing = _plan(_spec(), Workload()), _plan(_spec("llama"), Workload())
    with pytest.raises(UsageError, match="generates nothing; memfit serve"):
        embedding.require_writes()
    with pytest.raises(UsageError, match="makes no embeddings"):
        writing.require_embeds()
    embedding.require_embeds()
    writing.require_writes()


def test_an_embedding_is_read_by_rows() -> None:
    rows = Embedding.of(array("f", range(6)).tobytes(), 3, 2)
    assert rows.values.shape == (2, 3) and rows.width == 3
    assert rows.vector == [0.0, 1.0, 2.0] and rows.score == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"embed": True},
        {"embed": True, "messages": ({"role": "user", "content": "x"},)},
        {"pair": ("q", "d")},
        {"pair": ("q", "d"), "prompt": "x", "embed": True},
    ],
)
def test_a_request_to_embed_has_a_prompt_or_a_pair(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Request(**wrong)  # type: ignore[arg-type]
    good = Request(pair=("q", "d"), embed=True, number=3)
    assert Request.from_json(good.to_json()) == good
