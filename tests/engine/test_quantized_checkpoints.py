"""Quantized checkpoints: logits are those of what codes stand for, bytes as planned, bad files refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quantized_files import quantize, random_model

from memfit import Budget, Sampling, Workload, load, plan
from memfit.errors import ModelError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint
from memfit.headers.safetensors import find_weights
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.packed_weights import why_unpacked
from memfit.memory.precision import precision
from memfit.memory.precision_table import PrecisionRow, precision_row
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.units import MIB

pytestmark = pytest.mark.engine

_TOKENS = [(7 * place * place + 3 * place) % 500 for place in range(48)]  # beyond what one kernel call takes
_PACKED: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "gptq", {}),
    ("llama", "gptq", {"group": 128, "ordered": True}),
    ("llama", "gptq", {"group": -1, "zeros": True, "format": "gptq_v2"}),
    ("llama", "gptq", {"group": 32, "zeros": True, "ordered": True}),
    ("llama", "gptq", {"bits": 8, "group": 128}),
    ("llama", "gptq", {"bits": 8, "zeros": True, "ordered": True}),
    ("llama", "awq", {"group": 128}),
    ("llama", "packed", {}),
    ("llama", "packed", {"zeros": True, "ordered": True}),
    ("llama", "packed", {"bits": 8, "strategy": "channel"}),
    ("llama", "packed", {"bits": 8, "zeros": True}),
    ("llama", "int8", {"strategy": "channel"}),
    ("llama", "float8", {"strategy": "tensor"}),
    ("llama", "float8", {"strategy": "channel"}),
    ("llama", "fp8", {}),
    ("llama", "bnb4", {"kind": "nf4", "double": True}),
    ("llama", "bnb4", {"kind": "fp4", "double": False}),
    ("llama", "bnb8", {}),
    ("odd", "fp8", {}),
    ("odd", "gptq", {"bits": 8, "group": 48}),
    ("qwen3_moe", "gptq", {"ordered": True}),
    ("qwen3_moe", "fp8", {}),
    ("mixtral", "awq", {}),
    ("mixtral", "gptq", {"bits": 8}),
]
_UNPACKED: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "gptq", {"bits": 3}),
    ("llama", "gptq", {"bits": 2, "zeros": True, "ordered": True}),
    ("odd", "awq", {"group": 48}),
    ("odd", "bnb4", {"kind": "nf4", "double": True}),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def source(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            if kind == "odd":  # widths that blocks of 128 do not divide
                sizes = {"hidden_size": 192, "intermediate_size": 336, "head_dim": 48}
                made[kind] = random_model(folder, **sizes)
            else:
                made[kind] = random_model(folder, kind)
        return made[kind]

    return source


def _load(folder: Path, load_in: str) -> Any:
    weights = find_weights(folder / "config.json")
    assert weights
    config = TransformersConfig(
        folder=folder,
        paths=weights.paths,
        load_in=load_in,
        double_quant=False,
        context=256,
        ubatch=64,
        threads=1,
    )
    model = importlib.import_module("memfit.engines.transformers.model")
    return model.CheckpointModel(config, limit_bytes=None, on_progress=lambda _: None, offload_folder=None)


def _model(folder: Path) -> HfModel:
    weights = find_weights(folder / "config.json")
    assert weights
    return model_from_checkpoint(read_config(folder / "config.json"), weights)


def _row(folder: Path, load_in: str) -> PrecisionRow:
    return precision_row(_model(folder), precision(load_in), 256)


def _relative(found: Any, wanted: Any) -> float:
    return float(((found - wanted) ** 2).sum() ** 0.5 / (wanted**2).sum() ** 0.5)


def _differences(quantized: Any, plain: Path) -> tuple[float, float]:
    """Of the logits of a prompt, and of one token behind it."""
    wanted = _load(plain, "fp32").logits(_TOKENS)
    many = _relative(quantized.logits(_TOKENS), wanted)
    quantized.forget()
    quantized.decode(_TOKENS[:-1])
    return many, _relative(quantized.logits(_TOKENS[-1:]), wanted[-1:])


@pytest.mark.parametrize(("kind", "form", "settings"), [*_PACKED, *_UNPACKED])
def test_logits_are_those_of_what_codes_stand_for(
    sources: Callable[[str], Path], tmp_path: Path, kind: str, form: str, settings: dict[str, Any]
) -> None:
    folder, plain = quantize(sources(kind), tmp_path, form, **settings)
    model, row = _load(folder, "stored"), _row(folder, "stored")
    assert max(_differences(model, plain)) < 1e-2
    assert sum(model.bytes_by_dtype().values()) == row.resident_bytes == model.reported_bytes()
    if (kind, form, settings) in _PACKED:
        weights = find_weights(folder / "config.json")
        assert weights
        assert row.quantized_layers
        assert row.resident_bytes <= 1.15 * sum(one.size_bytes for one in weights.tensors)
    else:
        assert any(why_unpacked(one.stored[0]) for one in _model(folder).parameters if one.stored)


@pytest.mark.parametrize(("form", "settings"), [("gptq", {"ordered": True}), ("awq", {}), ("fp8", {})])
def test_unpacked_in_float32_nothing_is_lost(
    sources: Callable[[str], Path], tmp_path: Path, form: str, settings: dict[str, Any]
) -> None:
    folder, plain = quantize(sources("llama"), tmp_path, form, **settings)
    assert max(_differences(_load(folder, "fp32"), plain)) < 1e-5


def test_experts_in_mxfp4_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    mxfp4 = importlib.import_module("transformers.integrations.mxfp4")
    load_file = importlib.import_module("safetensors.torch")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 4}
    made = transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, **heads, **experts))
    plain, folder = tmp_path / "plain", tmp_path / "quantized"
    for where in (plain, folder):
        made.save_pretrained(where)
    tensors = load_file.load_file(plain / "model.safetensors")
    stored = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = tensors[name].shape
        blocks = torch.randint(0, 256, (count, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(119, 123, (count, outputs, inputs // 32), dtype=torch.uint8)
        del stored[name]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        unpacked = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        tensors[name] = unpacked.contiguous()
    load_file.save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    load_file.save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert max(_differences(_load(folder, "fp32"), plain)) < 1e-5
    assert max(_differences(_load(folder, "stored"), plain)) < 3e-2  # bfloat16's own: 0.02


def test_weights_near_zero_count_where_there_are_no_others(
    sources: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, plain = quantize(sources("llama"), tmp_path, "float8", strategy="tensor", largest=0.015)
    assert max(_differences(_load(folder, "stored"), plain)) < 1e-2


def test_it_is_planned_run_and_said(llama: Path, tmp_path: Path) -> None:
    folder, _ = quantize(llama, tmp_path, "gptq", ordered=True)
    workload = Workload(context=512, threads=2)
    needs = plan(str(folder), workload=workload).ram.total_bytes
    planned = plan(str(folder), workload=workload, budget=Budget(ram=needs + 4 * MIB))
    assert isinstance(planned, TransformersPlan)
    assert any("28 weights stay packed as gptq 4-bit" in why for why in planned.why)
    prompt, greedy = "The quick brown fox", Sampling(temperature=0, max_tokens=8)
    with load(planned) as session:
        session.generate(prompt * 60, greedy)
        report = session.report()
    assert report.model is not None and report.within_budget
    assert report.model.loaded_bytes == planned.row.resident_bytes
    assert abs(report.model.steady_predicted_bytes - report.model.steady_bytes) <= 16 * MIB
    assert report.model.loading_bytes <= planned.loading_bytes * 1.05
    whys = {name: plan(str(folder), workload=workload, load_in=name).why for name in ("bf16", "nf4")}
    assert any("(gptq 4-bit) are unpacked to bf16" in why for why in whys["bf16"])
    assert any("quantized anew to nf4" in why for why in whys["nf4"])


_PART = "model.layers.0.mlp.down_proj."
_ORDERED = {"ordered": True}
# format, how it was made, a tensor of it, what it becomes, what config.json says now, words of the error
_DAMAGES: list[tuple[str, dict[str, Any], str, Callable[[Any], Any], dict[str, Any], str]] = [
    ("gptq", {}, "scales", lambda one: None, {}, "its scales is missing"),
    ("gptq", {}, "qweight", lambda one: None, {}, "qweight is missing"),
    ("gptq", {}, "qzeros", lambda one: one.half(), {}, "is F16, needed I32"),
    ("gptq", {}, "qzeros", lambda one: one[:1].clone(), {}, "shape"),
    ("gptq", {}, "scales", lambda one: one * float("nan"), {}, "not all numbers"),
    ("gptq", _ORDERED, "g_idx", lambda one: one + 5, {}, "names group"),
    ("gptq", _ORDERED, "g_idx", lambda one: one - 1, {}, "names group -1"),
    ("gptq", _ORDERED, "g_idx", lambda one: one * 0, {}, "do not have 64 columns"),
    ("gptq", _ORDERED, "g_idx", lambda one: one, {"desc_act": False}, "desc_act false"),
    ("gptq", {}, "g_idx", lambda one: one, {"checkpoint_format": "gptq_v2"}, "says sym"),
    ("gptq", {}, "g_idx", lambda one: one, {"group_size": 128}, "in groups of 128"),
    ("gptq", {}, "g_idx", lambda one: one, {"bits": 5}, "5 bits"),
    ("gptq", {}, "g_idx", lambda one: one, {"bits": 8}, "columns"),
    ("gptq", {}, "g_idx", lambda one: one, {"checkpoint_format": "marlin"}, "marlin"),
    ("gptq", {}, "g_idx", lambda one: one, {"quant_method": "hqq"}, "hqq"),
    ("gptq", {}, "g_idx", lambda one: one, {"quant_method": "awq"}, "columns in groups"),
    ("awq", {}, "scales", lambda one: one, {"version": "gemv"}, "gemv"),
    ("packed", {}, "weight_shape", lambda one: one + 1, {}, "weight_shape"),
    ("packed", {}, "weight_shape", lambda one: one, {"format": "marlin-24"}, "marlin-24"),
    ("fp8", {}, "weight_scale_inv", lambda one: None, {}, "weight_scale is missing"),
    ("fp8", {}, "weight_scale_inv", lambda one: one[:1].clone(), {}, "goes with no"),
    ("fp8", {}, "weight_scale_inv", lambda one: one * 1e9, {}, "scale is"),
    ("fp8", {}, "weight", lambda one: (one.float() * float("nan")).to(one.dtype), {}, "no number"),
]


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda damage: f"{damage[0]} {damage[2]} {damage[5]}")
def test_what_is_wrong_is_said(sources: Callable[[str], Path], tmp_path: Path, damage: Any) -> None:
    form, settings, part, change, config, words = damage
    folder, _ = quantize(sources("llama"), tmp_path, form, **settings)
    load_file, path = importlib.import_module("safetensors.torch"), folder / "model.safetensors"
    tensors = load_file.load_file(path)
    changed = change(tensors.pop(_PART + part))
    if changed is not None:
        tensors[_PART + part] = changed
    load_file.save_file(tensors, path)
    whole = json.loads((folder / "config.json").read_text())
    whole["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ModelError, match=words):
        _load(folder, "stored")
