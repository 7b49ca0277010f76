"""Bytes at each precision: toy models counted by hand, and gemma-3-4b's figures from its shapes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import write_checkpoint

from memfit.errors import HeaderError, ModelError, UsageError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.safetensors import read_checkpoint
from memfit.memory.precision import PRECISIONS
from memfit.memory.precision_table import PrecisionRow, precision_table

_GEMMA_3_4B = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 10240,
        "vocab_size": 262208,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_TOY = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "vocab_size": 50,
    "max_position_embeddings": 512,
}
# By hand, one layer of the toy: q and o 64 x 64, k and v 32 x 64, gate, up and down 64 x 100.
_TOY_LAYER = [4096, 4096, 2048, 2048, 6400, 6400, 6400]
_TOY_LINEAR = 2 * sum(_TOY_LAYER)
_TOY_PLAIN = 2 * (50 * 64) + 2 * (64 + 64) + 64  # embedding and head, four norms, the last norm
_TOY_BUFFERS = 2 * 8 * 4  # inv_freq and original_inv_freq: half of a head's 16, in float32


def _config(folder: Path, value: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(value))
    return path


def _model(folder: Path, value: dict[str, Any]) -> HfModel:
    return model_from_config(read_config(_config(folder, value)))


def _rows(model: HfModel, context: int = 10) -> dict[str, PrecisionRow]:
    return {row.precision: row for row in precision_table(model, context)}


def _stored(model: HfModel) -> dict[str, tuple[int, ...]]:
    return {each.name: each.shape for each in model.parameters}


def test_gemma_3_4b_reports_what_transformers_reports(tmp_path: Path) -> None:
    rows = _rows(_model(tmp_path, _GEMMA_3_4B))
    assert rows["bf16"].reported_bytes == {"4.57.1": 8_600_192_738, "5.23.0": 8_600_193_762}
    assert rows["fp32"].reported_bytes == {"4.57.1": 17_200_351_684, "5.23.0": 17_200_352_708}
    assert rows["nf4-dq"].reported_bytes == {"4.57.1": 3_170_623_202, "5.23.0": 3_170_624_226}
    assert rows["nf4"].reported_bytes == rows["nf4-dq"].reported_bytes


def test_gemma_3_4b_decomposes(tmp_path: Path) -> None:
    rows = _rows(_model(tmp_path, _GEMMA_3_4B))
    layer = 2560 * 2048 * 2 + 2560 * 1024 * 2 + 3 * 2560 * 10240  # q and o, k and v, the MLP
    block = 4 * 1152 * 1152 + 2 * 1152 * 4304
    linear = 34 * layer + 27 * block
    row = rows["nf4-dq"]
    assert row.quantized_layers == 34 * 7 + 27 * 6
    assert row.quantized_bytes == linear // 2
    assert {kept.kind: kept.size_bytes for kept in row.unquantized} == {
        "embedding": 262208 * 2560 * 2,  # which is the output layer as well
        "bias": 27 * (5 * 1152 + 4304) * 2,
        "norm": (34 * (4 * 2560 + 2 * 256) + 2560 + 27 * 4 * 1152 + 2 * 1152 + 1152) * 2,
        "convolution": (1152 * 3 * 14 * 14 + 1152) * 2,
        "position": 4096 * 1152 * 2,
        "projector": 1152 * 2560 * 2,
    }
    # position_ids, embed_scale, two rotary tables and their two copies
    assert row.buffers_bytes == 4096 * 8 + 2 + 4 * 128 * 4
    # One byte and 1/256 float32 per 64 weights, and 1092 bytes of tables per layer.
    blocks = linear // 64
    nested = 34 * (2 * 320 + 2 * 160 + 3 * 1600) + 27 * (4 * 81 + 2 * 303)  # 302.6 rounded up
    assert row.state_bytes == blocks + 4 * nested + 400 * (1024 + 4 + 64)
    assert row.resident_bytes == row.reported_bytes["5.23.0"] + row.state_bytes == 3_228_502_842
    assert rows["nf4"].resident_bytes == 3_170_624_226 + 4 * blocks + 400 * 64 == 3_396_881_890
    assert rows["bf16"].resident_bytes == rows["bf16"].reported_bytes["5.23.0"]


def test_gemma_3_4b_keeps_a_window_in_most_layers(tmp_path: Path) -> None:
    model = _model(tmp_path, _GEMMA_3_4B)
    token = 2 * 4 * 256 * 2  # keys and values of one layer in bfloat16
    assert _rows(model, 1000)["nf4-dq"].kv_cache_bytes == 34 * 1000 * token
    assert _rows(model, 8192)["nf4-dq"].kv_cache_bytes == (5 * 8192 + 29 * 1024) * token
    assert _rows(model, 8192)["fp32"].kv_cache_bytes == 2 * _rows(model, 8192)["bf16"].kv_cache_bytes


def test_the_toy_without_quantization(tmp_path: Path) -> None:
    rows = _rows(_model(tmp_path, _TOY))
    for name, width in (("fp32", 4), ("bf16", 2)):
        row = rows[name]
        assert (row.quantized_layers, row.quantized_bytes, row.state_bytes) == (0, 0, 0)
        assert row.unquantized_bytes == (_TOY_LINEAR + _TOY_PLAIN) * width
        assert row.resident_bytes == (_TOY_LINEAR + _TOY_PLAIN) * width + _TOY_BUFFERS
        assert row.reported_bytes == {
            "4.57.1": row.resident_bytes - _TOY_BUFFERS // 2,
            "5.23.0": row.resident_bytes,
        }
        assert row.kv_cache_bytes == 2 * 10 * 2 * 2 * 16 * width
        assert row.loading_peak_bytes == {"cpu": row.resident_bytes, "cuda": row.resident_bytes}


def test_the_toy_in_8_bits(tmp_path: Path) -> None:
    row = _rows(_model(tmp_path, _TOY))["int8"]
    rows_of_weights = 2 * (64 + 64 + 32 + 32 + 100 + 100 + 64)
    assert row.quantized_bytes == _TOY_LINEAR
    assert row.unquantized_bytes == _TOY_PLAIN * 2
    assert row.state_bytes == rows_of_weights * 4
    assert row.loading_extra_bytes == {"cpu": 9 * 6400, "cuda": 4 * 6400}


def test_the_toy_in_4_bits(tmp_path: Path) -> None:
    rows = _rows(_model(tmp_path, _TOY))
    plain, nested = rows["nf4"], rows["nf4-dq"]
    assert plain.quantized_bytes == nested.quantized_bytes == _TOY_LINEAR // 2
    blocks = _TOY_LINEAR // 64
    assert plain.state_bytes == blocks * 4 + 14 * 64
    # Fewer than 256 blocks in every layer: one float32 for the scales' scale.
    assert nested.state_bytes == blocks + 14 * (4 + 1024 + 4 + 64)
    assert plain.loading_extra_bytes == {"cpu": 86_400, "cuda": 2 * 6400}
    assert nested.loading_extra_bytes == {"cpu": 86_400, "cuda": 2 * 6400 + 100 * 8}


def test_parts_of_blocks_and_bytes_are_rounded_up(tmp_path: Path) -> None:
    odd = {"hidden_size": 9, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 11}
    row = _rows(_model(tmp_path, {**_TOY, **odd, "num_hidden_layers": 1}))["nf4"]
    # q and o 9 x 9, k and v 3 x 9, gate, up and down 11 x 9
    assert row.quantized_bytes == 2 * 41 + 2 * 14 + 3 * 50
    assert row.state_bytes == 4 * (2 * 2 + 2 * 1 + 3 * 2) + 7 * 64


def test_a_tied_output_layer_is_counted_once(tmp_path: Path) -> None:
    untied = _rows(_model(tmp_path, _TOY))["bf16"]
    tied = _rows(_model(tmp_path, {**_TOY, "tie_word_embeddings": True}))["bf16"]
    assert untied.unquantized_bytes - tied.unquantized_bytes == 50 * 64 * 2
    assert "head" in {kept.kind for kept in untied.unquantized}
    assert "head" not in {kept.kind for kept in tied.unquantized}


def test_experts_stay_in_16_bits(tmp_path: Path) -> None:
    moe = {**_TOY, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 10}
    row = _rows(_model(tmp_path, {**moe, "mlp_only_layers": [0]}))["nf4"]
    kept = {each.kind: each.size_bytes for each in row.unquantized}
    assert kept["experts"] == 4 * 3 * 10 * 64 * 2
    assert kept["router"] == 4 * 64 * 2
    assert row.quantized_layers == 7 + 4  # the dense layer's, and attention's of the other
    assert list(row.reported_bytes) == ["5.23.0"]
    assert _rows(_model(tmp_path, moe))["bf16"].loading_extra_bytes["cpu"] == 4 * 20 * 64 * 2


def test_a_checkpoint_of_another_type_is_cast_while_loading(tmp_path: Path) -> None:
    row = _rows(_model(tmp_path, {**_TOY, "torch_dtype": "float32"}))["int8"]
    assert row.loading_extra_bytes["cpu"] == 11 * 6400


def test_a_checkpoint_agrees_with_its_config(tmp_path: Path) -> None:
    alone = _model(tmp_path, _TOY)
    # An older file holds the rotary buffer too, which is not loaded.
    stored = {**_stored(alone), "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}
    path = write_checkpoint(tmp_path / "model.safetensors", stored)
    model = model_from_checkpoint(read_config(tmp_path / "config.json"), read_checkpoint(path))
    assert model.parameters == alone.parameters
    assert model.checkpoint_bytes == path.stat().st_size
    assert _rows(model)["nf4"].checkpoint_bytes == path.stat().st_size


def test_experts_lie_one_by_one_in_a_checkpoint(tmp_path: Path) -> None:
    moe = {**_TOY, "model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 10}
    alone = _model(tmp_path, moe)
    stored = {each.name: each.shape for each in alone.parameters if each.kind != "experts"}
    for layer in range(2):
        for expert in range(2):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}."
            stored |= {f"{prefix}{part}_proj.weight": (10, 64) for part in ("gate", "up")}
            stored[f"{prefix}down_proj.weight"] = (64, 10)
    config = read_config(tmp_path / "config.json")
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model.safetensors", stored))
    assert model_from_checkpoint(config, checkpoint).parameters == alone.parameters
    del stored["model.layers.1.mlp.experts.1.down_proj.weight"]
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model.safetensors", stored))
    with pytest.raises(HeaderError, match="num_experts"):
        model_from_checkpoint(config, checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lm_head.weight": None}, r"lack 1 tensor\(s\) of shape \[50, 64\]"),
        ({"extra.weight": (3, 5)}, r"also hold 1 tensor\(s\) of shape \[3, 5\]"),
        ({"model.norm.weight": (65,)}, r"lack 1 tensor\(s\) of shape \[64\]"),
    ],
)
def test_a_checkpoint_that_is_not_its_configs(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    stored = {**_stored(_model(tmp_path, _TOY)), **change}
    kept = {name: shape for name, shape in stored.items() if shape is not None}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model.safetensors", kept))
    with pytest.raises(HeaderError, match=words):
        model_from_checkpoint(read_config(tmp_path / "config.json"), checkpoint)


# As mistralai/Mixtral-8x7B-v0.1 publishes it.
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}


def test_mixtral_is_known_by_its_config(tmp_path: Path) -> None:
    model = _model(tmp_path, _MIXTRAL)
    assert sum(each.elements for each in model.parameters) == 46_702_792_704  # what its card says
    layer = 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096 * 4096 + 2 * 1024 * 4096 + 2 * 4096
    assert 32 * layer + 2 * 32000 * 4096 + 4096 == 46_702_792_704
    row = _rows(model)["bf16"]
    assert row.resident_bytes == 2 * 46_702_792_704 + 2 * 64 * 4  # inv_freq twice: half of a head's 128
    assert row.kv_cache_bytes == 32 * 10 * 2 * 8 * 128 * 2


def test_mixtral_agrees_with_its_files(tmp_path: Path) -> None:
    small = {**_TOY, "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    alone = _model(tmp_path, small)
    stored = {}
    for each in alone.parameters:
        if each.kind != "experts":
            stored[each.name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = each.shape
    for layer, expert in ((0, 0), (0, 1), (1, 0), (1, 1)):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
        shapes = {"w1": (100, 64), "w2": (64, 100), "w3": (100, 64)}
        stored |= {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model.safetensors", stored))
    assert (
        model_from_checkpoint(read_config(tmp_path / "config.json"), checkpoint).parameters
        == alone.parameters
    )


def test_an_unknown_type_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match='model_type: "phi3" is not known by its config alone'):
        _model(tmp_path, {**_TOY, "model_type": "phi3"})
    with pytest.raises(HeaderError, match="model_type"):  # llama's layers have no experts
        _model(tmp_path, {**_TOY, "num_experts": 4, "moe_intermediate_size": 8})


def test_an_unknown_type_is_counted_by_names(tmp_path: Path) -> None:
    stored = {
        "transformer.wte.weight": ((50, 64), "embedding"),
        "transformer.wpe.weight": ((20, 64), "position"),
        "transformer.h.0.attn.qkv_proj.weight": ((192, 64), "linear"),
        "transformer.h.0.attn.qkv_proj.bias": ((192,), "bias"),
        "transformer.h.0.attn.rotary_emb.inv_freq": ((8,), None),
        "transformer.h.0.input_norm.weight": ((64,), "norm"),
        "transformer.h.0.input_norm.bias": ((64,), "norm"),
        "transformer.h.0.moe.gate.weight": ((4, 64), "router"),
        "transformer.h.0.moe.experts.0.w1.weight": ((10, 64), "experts"),
        "transformer.h.0.conv1d.weight": ((64, 1, 4), "convolution"),
        "transformer.h.0.mixer": ((64, 2), "projector"),
        "transformer.h.0.table.weight": ((2, 2, 2), "other"),
        "lm_head.weight": ((50, 64), "head"),
    }
    path = write_checkpoint(
        tmp_path / "model.safetensors", {name: shape for name, (shape, _) in stored.items()}
    )
    config = read_config(_config(tmp_path, {**_TOY, "model_type": "phi3"}))
    model = model_from_checkpoint(config, read_checkpoint(path))
    assert {each.name: each.kind for each in model.parameters} == {
        name: kind for name, (_, kind) in stored.items() if kind is not None
    }
    row = _rows(model)["nf4"]
    assert row.reported_bytes == {}
    assert row.buffers_bytes is None
    assert row.quantized_bytes == 192 * 64 // 2
    assert len(model.notes) == 1 and '"phi3"' in model.notes[0]


def test_what_says_nothing_of_quantized_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'quantized by "gptq".*safetensors files say'):
        _model(tmp_path, {**_TOY, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    config = read_config(_config(tmp_path, _TOY))
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.safetensors", {"a.weight": (4, 4)}, "U8"))
    with pytest.raises(ModelError, match=r'tensor "a\.weight" is U8'):
        model_from_checkpoint(config, checkpoint)


@pytest.mark.parametrize("context", [0, -1, 2**31])
def test_a_context_is_a_number_of_tokens(tmp_path: Path, context: int) -> None:
    with pytest.raises(UsageError, match="context"):
        precision_table(_model(tmp_path, _TOY), context)


def test_rows_become_json(tmp_path: Path) -> None:
    rows = precision_table(_model(tmp_path, _TOY), 10)
    assert tuple(row.precision for row in rows) == PRECISIONS
    for row in rows:
        value = json.loads(json.dumps(row.to_json()))
        assert value["resident_bytes"] == row.resident_bytes
        assert sum(kept["size_bytes"] for kept in value["unquantized"]) == value["unquantized_bytes"]
        assert value["loading_peak_bytes"]["cpu"] >= value["resident_bytes"]
