"""The table of precisions against transformers and bitsandbytes themselves, offline and on the CPU.

gemma-3-4b is built on the meta device; models of a few MB are saved and loaded for real. Missing
packages are an error: `make test` installs them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.safetensors import read_checkpoint
from memfit.memory.precision import PRECISIONS
from memfit.memory.precision_table import PrecisionRow, kv_cache_bytes, precision_table

pytestmark = pytest.mark.engine

_RELEASE = "5.23.0"  # since which get_memory_footprint says what it says
_TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "intermediate_size": 200,
    "vocab_size": 501,
    "max_position_embeddings": 256,
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 150,
    "image_size": 56,
    "patch_size": 14,
}
_GEMMA_TEXT = {**_TEXT, "num_hidden_layers": 7, "sliding_window": 16}
_MOE = {"num_experts": 4, "moe_intermediate_size": 40, "num_experts_per_tok": 2, "mlp_only_layers": [1]}
# Layers with an odd number of weights, which fill neither their last block nor their last byte.
_ODD = {
    "hidden_size": 39,
    "intermediate_size": 33,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 6,
}
_GEMMA_4B = {
    "model_type": "gemma3",
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
# What to build, and with which settings.
_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_TEXT, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", {**_TEXT, "tie_word_embeddings": True}),
    "llama-odd": ("LlamaForCausalLM", {**_TEXT, **_ODD}),
    "mistral": ("MistralForCausalLM", {**_TEXT, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {**_TEXT, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {**_TEXT, "attention_bias": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_TEXT, **_MOE}),
    "mixtral": ("MixtralForCausalLM", {**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma3_text": ("Gemma3ForCausalLM", _GEMMA_TEXT),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": _GEMMA_TEXT, "vision_config": {**_VISION, "vision_use_head": False}},
    ),
    "gemma3-head": (
        "Gemma3ForConditionalGeneration",
        {"text_config": _GEMMA_TEXT, "vision_config": {**_VISION, "vision_use_head": True}},
    ),
}


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"{name} is missing ({error}); run: make test")


@pytest.fixture(scope="module")
def torch() -> Any:
    return _need("torch")


@pytest.fixture(scope="module")
def upstream(torch: Any) -> Iterator[Any]:
    _need("bitsandbytes")
    transformers = _need("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    yield transformers


@pytest.fixture(scope="module")
def saved(upstream: Any, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with config.json and random weights in bfloat16, made once for each name of _SMALL."""
    folders: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in folders:
            class_name, settings = _SMALL[name]
            model_class = getattr(upstream, class_name)
            model = model_class(model_class.config_class(**settings)).to(torch.bfloat16)
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name], max_shard_size="400KB")
        return folders[name]

    return save


def _ours(folder: Path) -> HfModel:
    index = folder / "model.safetensors.index.json"
    path = index if index.exists() else folder / "model.safetensors"
    return model_from_checkpoint(read_config(folder / "config.json"), read_checkpoint(path))


def _rows(model: HfModel, context: int = 64) -> dict[str, PrecisionRow]:
    return {row.precision: row for row in precision_table(model, context)}


def _loading(upstream: Any, torch: Any, precision: str) -> dict[str, Any]:
    """The arguments of from_pretrained."""
    if precision in ("fp32", "bf16"):
        return {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
    if precision == "int8":
        config = upstream.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = upstream.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=precision == "nf4-dq"
        )
    return {"dtype": torch.bfloat16, "quantization_config": config}


def _load(upstream: Any, torch: Any, name: str, folder: Path, precision: str) -> Any:
    return getattr(upstream, _SMALL[name][0]).from_pretrained(folder, **_loading(upstream, torch, precision))


def _held_bytes(torch: Any, model: Any) -> int:
    """All tensors that a loaded model reaches, each memory once."""
    found: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.data_ptr()] = max(found.get(value.data_ptr(), 0), value.nbytes)
        elif hasattr(value, "absmax"):  # a QuantState, which may hold another
            for inner in vars(value).values():
                add(inner)

    for parameter in model.parameters():
        add(parameter.data)
        for extra in vars(parameter).values():
            add(extra)
    for buffer in model.buffers():
        add(buffer)
    return sum(found.values())


@pytest.mark.parametrize("name", _SMALL)
def test_parameters_and_buffers_are_those_that_transformers_builds(
    upstream: Any, torch: Any, saved: Callable[[str], Path], name: str
) -> None:
    folder = saved(name)
    ours = _ours(folder)
    theirs = _load(upstream, torch, name, folder, "bf16")
    assert {each.name: each.shape for each in ours.parameters} == {
        key: tuple(value.shape) for key, value in theirs.named_parameters()
    }
    assert ours.buffers is not None
    assert {each.name: (each.shape, f"torch.{each.dtype or 'bfloat16'}") for each in ours.buffers} == {
        key: (tuple(value.shape), str(value.dtype)) for key, value in theirs.named_buffers()
    }
    # From config.json alone it is the same model.
    alone = model_from_config(read_config(folder / "config.json"))
    assert (alone.parameters, alone.buffers) == (ours.parameters, ours.buffers)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", _SMALL)
def test_a_loaded_model_holds_the_bytes_of_its_row(
    upstream: Any, torch: Any, saved: Callable[[str], Path], name: str, precision: str
) -> None:
    folder = saved(name)
    row = _rows(_ours(folder))[precision]
    model = _load(upstream, torch, name, folder, precision)
    quantized = [each for each in model.modules() if type(each).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert row.quantized_layers == len(quantized)
    assert row.reported_bytes[_RELEASE] == model.get_memory_footprint()
    assert row.resident_bytes == _held_bytes(torch, model)


def test_gemma_3_4b_on_the_meta_device(
    upstream: Any, torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bitsandbytes keeps its code book where it first needs one, and on this device it would have no values.
    monkeypatch.setattr(importlib.import_module("bitsandbytes.functional"), "name2qmap", {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_GEMMA_4B))
    ours = model_from_config(read_config(path))
    rows = _rows(ours)
    settings = {key: value for key, value in _GEMMA_4B.items() if key != "model_type"}
    config = upstream.Gemma3Config(**settings)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with torch.device("meta"):
            model = upstream.Gemma3ForConditionalGeneration._from_config(config, dtype=dtype)
        assert model.get_memory_footprint() == rows[precision].reported_bytes[_RELEASE]
    assert {each.name: each.shape for each in ours.parameters} == {
        key: tuple(value.shape) for key, value in model.named_parameters()
    }

    base = importlib.import_module("transformers.quantizers.base")
    integration = importlib.import_module("transformers.integrations.bitsandbytes")
    torch.set_default_dtype(torch.bfloat16)  # as from_pretrained does while it builds the model
    try:
        integration.replace_with_bnb_linear(
            model,
            modules_to_not_convert=base.get_keys_to_not_convert(model),
            quantization_config=_loading(upstream, torch, "nf4-dq")["quantization_config"],
        )
    finally:
        torch.set_default_dtype(torch.float32)
    layers = [each for each in model.modules() if type(each).__name__ == "Linear4bit"]
    for layer in layers:
        layer.weight._quantize("meta")
    row = rows["nf4-dq"]
    assert len(layers) == row.quantized_layers == 400
    assert model.get_memory_footprint() == row.reported_bytes[_RELEASE]
    states = [layer.weight.quant_state for layer in layers]
    assert row.state_bytes == sum(
        tensor.nbytes
        for state in states
        for tensor in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    )


@pytest.mark.parametrize("name", ["gemma3_text", "mistral", "qwen2", "llama"])
@pytest.mark.parametrize("tokens", [10, 40])
def test_the_kv_cache_is_what_lies_in_storage_after_a_token(
    upstream: Any, torch: Any, saved: Callable[[str], Path], name: str, tokens: int
) -> None:
    folder = saved(name)
    model = _load(upstream, torch, name, folder, "bf16").eval()
    prompt = torch.randint(0, 500, (1, tokens - 1))
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
        from memfit.engines.transformers.kv_cache import with_cache

        model(prompt[:, :1], **with_cache(model, cache))
    held = sum(
        tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )
    assert held == kv_cache_bytes(read_config(folder / "config.json"), tokens, element_bytes=2)


_WIDE = {**_TEXT, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
_WIDE_MOE = {**_TEXT, **_MOE, "num_experts": 16, "moe_intermediate_size": 512, "mlp_only_layers": []}


def _profiled_peak(torch: Any, load: Callable[[], object]) -> int:
    """The most bytes of tensors at once, as torch's own profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        load()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("class_name", "settings", "precision"),
    [
        ("LlamaForCausalLM", _WIDE, "int8"),
        ("LlamaForCausalLM", _WIDE, "nf4"),
        ("LlamaForCausalLM", _WIDE, "nf4-dq"),
        ("Qwen3MoeForCausalLM", _WIDE_MOE, "nf4-dq"),
    ],
)
def test_the_peak_while_quantizing_on_the_cpu(
    upstream: Any, torch: Any, tmp_path: Path, class_name: str, settings: dict[str, Any], precision: str
) -> None:
    """Tensors only, as torch's own profiler sees them; a layer of the largest size comes near the end."""
    model_class = getattr(upstream, class_name)
    model = model_class(model_class.config_class(**settings)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    row = _rows(_ours(tmp_path))[precision]
    arguments = _loading(upstream, torch, precision)
    # On a busy machine the profiler loses events, which only lowers what it sees.
    peak = max(
        _profiled_peak(torch, lambda: model_class.from_pretrained(tmp_path, **arguments)) for _ in "abc"
    )
    # torch counts the mapped file as memory of its own, and so the views of it, which the row counts.
    assert row.checkpoint_bytes is not None
    views = sum(kept.size_bytes for kept in row.unquantized if kept.kind != "experts")
    peak += views - row.checkpoint_bytes
    bound = row.loading_peak_bytes["cpu"]
    assert 0.85 * bound < peak <= bound
