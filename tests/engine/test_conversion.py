"""Checkpoints as GGUF files: transformers' predictions are kept, and what would change them is refused."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from conftest import run_memfit
from memfit.errors import EngineError
from memfit.hub.local_model import local_path
from memfit.quantize import conversion, honoured
from thorough import cases

pytestmark = pytest.mark.engine

_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SMALL),
    "qwen3": ("Qwen3Config", {**_SMALL, "head_dim": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SMALL, "head_dim": 64, **_EXPERTS}),
    "gemma3": (
        "Gemma3TextConfig",
        {**_SMALL, "num_hidden_layers": 6, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32},
    ),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes random checkpoints of a type, with SmolLM2's tokenizer; `changed` are fields of its config."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    demo = local_path("demo")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.parent, gguf_file=demo.name)

    def make(kind: str, **changed: Any) -> Path:
        torch.manual_seed(0)
        name, fields = _CONFIGS[kind]
        config = getattr(transformers, name)(**{**fields, **changed})
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data *= 2
        folder = tmp_path_factory.mktemp(kind)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", cases(["qwen3_moe", "gemma3"], "llama", "qwen3"))
def test_predictions_are_kept(checkpoint: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out.gguf"
    done = run_memfit("quantize", str(checkpoint(kind)), str(output), "--type", "f16", "--verify", "--json")
    assert done.code == 0, done.err
    assert 0 <= done.json["verified_kl_divergence"] < 1e-5
    assert done.json["file_bytes"] == output.stat().st_size
    assert done.json["peak_bytes"] <= done.json["ram_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert "tokenizer.chat_template" in GGUFReader(output).fields


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("qwen3_moe", "norm_topk_prob", False),
        ("gemma3", "query_pre_attn_scalar", 256),
        ("llama", "hidden_act", "gelu"),
        ("qwen3", "rope_parameters", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
    ],
)
def test_what_would_be_passed_over_is_refused(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    field: str,
    value: Any,
) -> None:
    folder, output = checkpoint(kind, **{field: value}), tmp_path / "out.gguf"
    done = run_memfit("quantize", str(folder), str(output), "--type", "F16")
    named = "rope_type" if field == "rope_parameters" else field
    assert (done.code, f"{named} is " in done.err, output.exists()) == (2, True, False), done.err
    assert "answer wrongly" in done.err


def test_a_converted_model_that_differs_is_found(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """With a rule taken away the converter passes over the field; comparing finds it."""
    folder = checkpoint("qwen3_moe", norm_topk_prob=False)
    hidden = tmp_path / "hidden"
    shutil.copytree(folder, hidden)
    config = json.loads((hidden / "config.json").read_text())
    (hidden / "config.json").write_text(json.dumps({**config, "norm_topk_prob": True}))
    output = tmp_path / "out.gguf"
    assert run_memfit("quantize", str(hidden), str(output), "--type", "F16").code == 0
    from memfit.api import load
    from memfit.quantize.verification import compare

    with pytest.raises(EngineError, match="does not predict what the checkpoint does"):
        compare(output, folder, ram=None, trust_remote_code=False, load=load, say=lambda _: None)


def test_a_smaller_type_needs_no_second_command(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    done = run_memfit("quantize", str(checkpoint("llama")), str(output), "--type", "q4_k_m", "--json")
    assert done.code == 0, done.err
    assert "stays lost" not in done.err
    assert (done.json["converted_type"], done.json["type"]) == ("BF16", "Q4_K_M")
    assert done.json["file_bytes"] == output.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_program_beside_the_weights_is_not_run_unasked(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(checkpoint("llama"), folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about["auto_map"] = {"AutoTokenizer": ["tokens.Tokens", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "tokens.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = run_memfit("quantize", str(folder), str(tmp_path / "out.gguf"), "--type", "F16")
    assert (done.code, "--trust-remote-code" in done.err) == (2, True)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.gguf").exists()


def test_too_little_ram_ends_it(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint("llama")
    output = tmp_path / "out.gguf"
    done = run_memfit("quantize", str(folder), str(output), "--type", "F16", "--ram", "128MiB", "--json")
    assert done.code == 3
    assert done.json["needs_bytes"] > 128 * 2**20
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_fails_says_why(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(checkpoint("llama"), folder)
    (folder / "tokenizer.json").unlink()
    done = run_memfit("quantize", str(folder), str(tmp_path / "out.gguf"), "--type", "F16")
    assert (done.code, "llama.cpp's converter failed: " in done.err) == (5, True), done.err
    assert not (tmp_path / "out.gguf").exists()


def test_a_missing_converter_says_where_it_comes_from(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.sys, "prefix", str(tmp_path))
    with pytest.raises(conversion.EngineMissingError, match="scripts/setup test"):
        conversion._script("convert_hf_to_gguf.py")


def test_adapters_are_converted(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    save = importlib.import_module("safetensors.torch").save_file
    folder, output = tmp_path / "adapter", tmp_path / "lora.gguf"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    parts = {"lora_A": torch.randn(4, 256), "lora_B": torch.randn(256, 4)}
    weights = {f"{name}.{part}.weight": values for part, values in parts.items()}
    save(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    arguments = ("quantize", str(folder), str(output), "--type", "F16", "--json")
    unnamed = run_memfit(*arguments)
    assert (unnamed.code, "--base DIR does" in unnamed.err) == (2, True)
    done = run_memfit(*arguments, "--base", str(checkpoint("llama")))
    assert done.code == 0, done.err
    assert done.json["file_bytes"] == output.stat().st_size
    names = {one.name for one in GGUFReader(output).tensors}
    assert names == {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"}


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"model_type": "llama", "rope_scaling": {"type": "ntk", "factor": 2.0}}, "rope_type"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window"),
        ({"model_type": "qwen3_moe"}, "norm_topk_prob"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": True}, None),
        ({"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"model_type": "qwen2_moe", "norm_topk_prob": True}, "norm_topk_prob"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 256, "head_dim": 256}, None),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "head_dim": 128}},
            "query_pre_attn_scalar",
        ),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 6}, "layer_types"),
        ({"model_type": "gemma3_text", "rope_local_base_freq": 20000}, "rope_local_base_freq"),
        ({"model_type": "unknown", "hidden_act": "gelu"}, None),
    ],
)
def test_rules(tmp_path: Path, config: dict[str, Any], refused: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if refused is None:
        honoured.require_honoured(tmp_path)
        return
    with pytest.raises(honoured.UsageError) as caught:
        honoured.require_honoured(tmp_path)
    assert caught.value.to_json()["error"]["field"] == refused
