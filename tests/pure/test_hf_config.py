"""config.json: the facts, upstream's defaults, and absurd values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memfit.errors import HeaderError, ModelNotFoundError
from memfit.headers.hf_config import HfConfig, read_config

_LLAMA = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}
# As google/gemma-3-4b-it publishes it: most fields are left to the defaults.
_GEMMA = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


def _read(folder: Path, value: Any) -> HfConfig:
    path = folder / "config.json"
    path.write_text(json.dumps(value))
    return read_config(path)


def test_a_plain_language_model(tmp_path: Path) -> None:
    config = _read(tmp_path, _LLAMA)
    assert (config.model_type, config.text_model_type, config.dtype) == ("llama", "llama", "bfloat16")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 2, 100)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
    assert config.layer_windows == (None, None)
    assert not config.tie_word_embeddings and config.vision is None and config.num_experts == 0


def test_gemma_3_takes_what_is_left_out_from_the_defaults(tmp_path: Path) -> None:
    config = _read(tmp_path, _GEMMA)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_position_embeddings) == (262208, 131072)
    assert config.tie_word_embeddings
    assert config.layer_windows == tuple(None if layer % 6 == 5 else 1024 for layer in range(34))
    assert config.vision is not None
    assert (config.vision.patches, config.vision.num_channels) == (4096, 3)


def test_null_counts_as_absent(tmp_path: Path) -> None:
    config = _read(tmp_path, {**_LLAMA, "num_key_value_heads": None, "head_dim": None, "torch_dtype": None})
    assert (config.num_key_value_heads, config.head_dim, config.dtype) == (4, 16, None)


def test_dtype_is_the_newer_name(tmp_path: Path) -> None:
    assert _read(tmp_path, {**_LLAMA, "dtype": "float16"}).dtype == "float16"


@pytest.mark.parametrize(
    ("model_type", "fields", "windows"),
    [
        ("mistral", {}, (4096, 4096)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("mistral", {"sliding_window": 7}, (7, 7)),
        ("mistral", {"sliding_window": 0}, (None, None)),
        ("qwen2_moe", {"sliding_window": 0, "use_sliding_window": False}, (None, None)),  # as 5.24 writes it
        ("qwen2_moe", {"sliding_window": 0, "layer_types": ["full_attention"] * 2}, (None, None)),
        ("qwen2", {"sliding_window": 7}, (None, None)),
        ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, (None, 7)),
        ("qwen3", {"layer_types": ["full_attention", "full_attention"]}, (None, None)),
        ("qwen3_moe", {"use_sliding_window": True}, (4096, 4096)),
        ("gemma3_text", {"sliding_window_pattern": 2}, (4096, None)),
        ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 512}, (257, 257)),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}, (None, 4096)),
        ("phi3", {"sliding_window": 9}, (9, 9)),
    ],
)
def test_which_layers_slide(
    tmp_path: Path, model_type: str, fields: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert _read(tmp_path, {**_LLAMA, "model_type": model_type, **fields}).layer_windows == windows


def test_which_layers_have_experts(tmp_path: Path) -> None:
    moe = {**_LLAMA, "model_type": "qwen3_moe", "num_hidden_layers": 6, "num_experts": 4}
    assert _read(tmp_path, moe).sparse_layers == (0, 1, 2, 3, 4, 5)
    config = _read(tmp_path, {**moe, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert config.sparse_layers == (1, 5)
    assert (config.num_experts, config.moe_intermediate_size) == (4, 768)
    assert _read(tmp_path, {**moe, "num_experts": None, "num_local_experts": 9}).num_experts == 9


def test_a_quantized_checkpoint_says_how(tmp_path: Path) -> None:
    config = _read(tmp_path, {**_LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert config.quant_method == "gptq" and config.quantization is not None
    assert (config.quantization.bits, config.quantization.group_size) == (4, 128)
    config = _read(tmp_path, {**_LLAMA, "quantization_config": {"quant_method": "hqq"}})
    assert config.quantization is not None and '"hqq"' in str(config.quantization.problem)


@pytest.mark.parametrize("value", [-1, 2**31, 1.5, "64", True, [64], {}])
def test_absurd_windows_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(HeaderError, match=r"sliding_window: got .*, needed a whole number from 0 to"):
        _read(tmp_path, {**_LLAMA, "sliding_window": value})


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**40, 1.5, "64", True, [64], {}])
@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "num_hidden_layers",
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(HeaderError) as caught:
        _read(tmp_path, {**_LLAMA, field: value})
    assert caught.value.field == field
    assert "needed a whole number from 1 to" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": 3}, "model_type"),
        ({"model_type": "a\nb"}, "model_type"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 128, "num_key_value_heads": 1}, "num_attention_heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"torch_dtype": "float8"}, "torch_dtype"),
        ({"dtype": 16}, "dtype"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types[1]"),
        ({"layer_types": ["full_attention", ["x"]]}, "layer_types[1]"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_window"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": "gptq"}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": "4"}}, "quantization_config.bits"),
        ({"quantization_config": {"quant_method": "awq", "group_size": 0}}, "quantization_config.group_size"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "quantization_config.config_groups",
        ),
        ({"num_experts": -1}, "num_experts"),
        ({"num_experts": 4, "num_experts_per_tok": "2", "moe_intermediate_size": 8}, "num_experts_per_tok"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"num_experts": 4, "mlp_only_layers": [2], "moe_intermediate_size": 8}, "mlp_only_layers[0]"),
        ({"text_config": []}, "text_config"),
        ({"text_config": {}}, "text_config.model_type"),
    ],
)
def test_other_fields_that_make_no_sense(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(HeaderError) as caught:
        _read(tmp_path, {**_LLAMA, **change})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "clip"}, "vision_config.model_type"),
        ({"patch_size": 1000}, "vision_config.patch_size"),
        ({"image_size": 2**30}, "vision_config.image_size"),
        ({"image_size": [896, 896]}, "vision_config.image_size"),
        ({"vision_use_head": 0}, "vision_config.vision_use_head"),
    ],
)
def test_an_image_encoder_that_makes_no_sense(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(HeaderError) as caught:
        _read(tmp_path, {**_GEMMA, "vision_config": {**_GEMMA["vision_config"], **change}})
    assert caught.value.field == field


def test_an_unknown_type_must_say_everything(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="vocab_size: is missing"):
        _read(tmp_path, {**_LLAMA, "model_type": "phi3", "vocab_size": None})


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelNotFoundError):
        read_config(path)
    for content in (b"", b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b" " * 2**21):
        path.write_bytes(content)
        with pytest.raises(HeaderError) as caught:
            read_config(path)
        assert caught.value.path == path


@pytest.mark.parametrize("experts", ["num_local_experts", "num_experts"])  # Mixtral's word, and OLMoE's
def test_experts_without_a_width_of_their_own(tmp_path: Path, experts: str) -> None:
    config = _read(tmp_path, {**_LLAMA, "model_type": "another", experts: 4})
    assert (config.num_experts, config.moe_intermediate_size) == (4, config.intermediate_size)


@pytest.mark.parametrize(
    ("fields", "experts", "used"),
    [
        ({}, 0, 0),
        ({"num_experts_per_tok": 2}, 0, 0),  # of none
        ({"num_experts": 60, "num_experts_per_tok": 4}, 60, 4),
        ({"num_experts": 60}, 60, 0),  # the file does not say, and the type is not known
        ({"model_type": "qwen3_moe"}, 128, 8),
        ({"model_type": "mixtral"}, 8, 2),
        ({"model_type": "mixtral", "num_local_experts": 16, "num_experts_per_tok": 3}, 16, 3),
    ],
)
def test_experts_that_a_token_is_routed_to(
    tmp_path: Path, fields: dict[str, Any], experts: int, used: int
) -> None:
    config = _read(tmp_path, {**_LLAMA, "model_type": "another", "moe_intermediate_size": 8, **fields})
    assert (config.num_experts, config.num_experts_per_tok) == (experts, used)
