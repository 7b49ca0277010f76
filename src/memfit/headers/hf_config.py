"""Reads a Hugging Face config.json: the few facts that sizes depend on, checked one by one.

Field names are upstream's. A published config.json leaves out what equals the default of its class,
so the defaults of transformers 5.23.0 stand here for the model types in `hf_shapes`; for any other
type only what the file says is taken. Knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import HeaderError, UsageError
from memfit.headers.config_section import ConfigSection
from memfit.headers.hf_quantization import Quantization, read_quantization
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.regular_file import require_file
from memfit.strict_json import parse_json, read_bytes, shown

__all__ = ["HfConfig", "VisionConfig", "read_config"]

# No limits of the format, only far beyond every real model.
_MOST_LAYERS = 4096
_MOST_EXPERTS = 2**20

_DTYPES = ("float32", "bfloat16", "float16")
# Layer types whose KV cache is known here; others (linear attention, chunks, …) are an error.
_LAYER_TYPES = ("full_attention", "sliding_attention")

_SLIDING_OFF = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN2 = _LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    **_SLIDING_OFF,
}
# model_type → the defaults of its configuration class in transformers 5.23.0.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL | {"sliding_window": 4096},
    "mixtral": _MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
    "qwen3_moe": {
        **_QWEN2,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "max_window_layers": 0,  # its class has no such field: all layers slide
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "vision_use_head": True,
    },
}
_VISION_SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels")
# The model types that hold others, and what they hold where the file does not say.
_PARTS = {"gemma3": {"text_config": "gemma3_text", "vision_config": "siglip_vision_model"}}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int  # pixels along one side
    patch_size: int  # pixels along one side
    num_channels: int
    vision_use_head: bool  # a pooling head after the encoder

    def __post_init__(self) -> None:
        assert self.image_size >= self.patch_size > 0

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class HfConfig:
    """What a config.json says about sizes; of a model with parts, its language model's fields."""

    path: Path
    model_type: str  # of the whole: "gemma3"
    text_model_type: str  # of the language model: "gemma3_text"; else the same
    dtype: str | None  # of the checkpoint: "bfloat16"
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int | None  # tokens
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    layer_windows: tuple[int | None, ...]  # per layer: tokens its attention looks back, None for all
    num_experts: int  # 0 without experts
    num_experts_per_tok: int  # 0 without experts, or where the file does not say
    moe_intermediate_size: int  # 0 without experts
    sparse_layers: tuple[int, ...]  # the layers with experts
    quantization: Quantization | None  # how the checkpoint is quantized already
    vision: VisionConfig | None

    def __post_init__(self) -> None:
        assert len(self.layer_windows) == self.num_hidden_layers

    @property
    def quant_method(self) -> str | None:
        return self.quantization.method if self.quantization else None


def read_config(path: Path) -> HfConfig:
    """The facts in a config.json.

    Raises:
        ModelNotFoundError: there is no such file.
        HeaderError: it is no JSON, or a field is missing, of another type, or absurd.
        ModelError: it cannot be opened or read.
    """
    require_file(path)
    content = b""
    try:
        content = read_bytes(path, "config.json")
        value = parse_json(content, "the JSON")
    except UsageError as error:
        found = impostor(content[:HEAD_BYTES]) if content and not content.startswith(b"{") else None
        raise HeaderError(path, "config", f"this is no JSON but {found}" if found else str(error)) from None
    if not isinstance(value, dict):
        raise HeaderError(path, "config", f"got {shown(value)}, needed an object")
    whole = ConfigSection(path, "", value, {})
    model_type = whole.text("model_type")
    parts = _PARTS.get(model_type, {})
    text = whole.part("text_config", parts.get("text_config"), _DEFAULTS) or whole
    if text is whole:
        text = ConfigSection(path, "", value, _DEFAULTS.get(model_type, {}))
    vision = whole.part("vision_config", parts.get("vision_config"), _DEFAULTS)
    return _read_text(whole, text, _read_vision(vision) if vision and parts else None)


def _read_text(whole: ConfigSection, text: ConfigSection, vision: VisionConfig | None) -> HfConfig:
    model_type = whole.text("model_type")
    text_type = text.text("model_type")
    hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
    layers = text.count("num_hidden_layers", high=_MOST_LAYERS)
    key_value_heads = text.count("num_key_value_heads", heads)
    if heads % key_value_heads:
        text.refuse("num_key_value_heads", f"{key_value_heads} does not divide {heads} attention heads")
    if text.get("head_dim") is None and hidden < heads:
        text.refuse("num_attention_heads", f"{heads} heads share a hidden_size of {hidden}")
    partial = text.get("partial_rotary_factor")
    if text_type in _DEFAULTS and partial not in (None, 1, 1.0):
        text.refuse("partial_rotary_factor", f"got {shown(partial)}; memfit does not know this variant")
    experts = _experts(text)
    sparse = _sparse_layers(text, layers) if experts else ()
    return HfConfig(
        path=whole.path,
        model_type=model_type,
        text_model_type=text_type,
        dtype=_dtype(whole, text),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=text.count("head_dim", hidden // heads),
        intermediate_size=text.count("intermediate_size"),
        vocab_size=text.count("vocab_size"),
        max_position_embeddings=(
            None if text.get("max_position_embeddings") is None else text.count("max_position_embeddings")
        ),
        # Of a model with parts, transformers asks the whole; its class says true for gemma3.
        tie_word_embeddings=(
            whole.flag("tie_word_embeddings", model_type in _PARTS)
            if text_type != model_type
            else text.flag("tie_word_embeddings")
        ),
        attention_bias=text.flag("attention_bias"),
        mlp_bias=text.flag("mlp_bias"),
        layer_windows=_layer_windows(text, text_type, layers),
        num_experts=experts,
        num_experts_per_tok=(
            text.count("num_experts_per_tok", 0, low=0, high=_MOST_EXPERTS) if experts else 0
        ),
        # Where experts are all there is, as in Mixtral and OLMoE, they have the plain field's width.
        moe_intermediate_size=(
            text.count("moe_intermediate_size", text.count("intermediate_size")) if sparse else 0
        ),
        sparse_layers=sparse,
        quantization=_quantization(whole),
        vision=vision,
    )


def _read_vision(vision: ConfigSection) -> VisionConfig:
    model_type = vision.text("model_type")
    if model_type != "siglip_vision_model":
        vision.refuse("model_type", f"got {shown(model_type)}, memfit knows siglip_vision_model")
    image, patch = vision.count("image_size", high=2**20), vision.count("patch_size")
    if patch > image:
        vision.refuse("patch_size", f"{patch} is larger than the image of {image}")
    return VisionConfig(
        model_type=model_type,
        num_hidden_layers=vision.count("num_hidden_layers", high=_MOST_LAYERS),
        image_size=image,
        patch_size=patch,
        vision_use_head=vision.flag("vision_use_head"),
        **{name: vision.count(name) for name in _VISION_SIZES},
    )


def _dtype(whole: ConfigSection, text: ConfigSection) -> str | None:
    """`dtype`, which was `torch_dtype` before transformers 5."""
    for section in (whole, text):
        for key in ("dtype", "torch_dtype"):
            if section.has(key):
                value = section.text(key)
                if value not in _DTYPES:
                    section.refuse(key, f"got {shown(value)}, needed one of {', '.join(_DTYPES)}")
                return value
    return None


def _experts(text: ConfigSection) -> int:
    key = "num_experts" if text.get("num_local_experts") is None else "num_local_experts"
    return text.count(key, 0, low=0, high=_MOST_EXPERTS)


def _sparse_layers(text: ConfigSection, layers: int) -> tuple[int, ...]:
    """As Qwen3MoeDecoderLayer decides it; Mixtral has experts in all layers."""
    step = text.count("decoder_sparse_step", 1)
    dense = text.items("mlp_only_layers", most=layers) or []
    for index, layer in enumerate(dense):
        if type(layer) is not int or not 0 <= layer < layers:
            text.refuse(f"mlp_only_layers[{index}]", f"got {shown(layer)}, needed a layer below {layers}")
    return tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _layer_windows(text: ConfigSection, text_type: str, layers: int) -> tuple[int | None, ...]:
    """By `layer_types`, else by the rule of the type's configuration class in transformers 5.23.0."""
    # Off by null, by 0 (Qwen2-MoE writes that), or by a switch of its own.
    window = None if text.get("sliding_window") is None else text.count("sliding_window", low=0) or None
    if text.get("use_sliding_window") is not None and not text.flag("use_sliding_window"):
        window = None
    if window is not None and text.flag("use_bidirectional_attention"):
        window = window // 2 + 1
    types = text.items("layer_types", most=_MOST_LAYERS)
    if types is None:
        return tuple(window if _slides(text, text_type, layer) else None for layer in range(layers))
    if len(types) != layers:
        text.refuse("layer_types", f"{len(types)} entries for {layers} layers")
    for index, layer_type in enumerate(types):
        if layer_type not in _LAYER_TYPES:
            text.refuse(f"layer_types[{index}]", f"got {shown(layer_type)}, memfit knows {_LAYER_TYPES}")
        if layer_type == "sliding_attention" and window is None:
            text.refuse("sliding_window", "is missing, and layer_types names sliding_attention")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in types)


def _slides(text: ConfigSection, text_type: str, layer: int) -> bool:
    if text_type == "gemma3_text":
        return (layer + 1) % text.count("sliding_window_pattern") != 0
    return layer >= text.count("max_window_layers", 0, low=0)


def _quantization(whole: ConfigSection) -> Quantization | None:
    value = whole.get("quantization_config") or whole.get("compression_config")
    if value is None:
        return None
    return read_quantization(ConfigSection(whole.path, "quantization_config", value, {}))
