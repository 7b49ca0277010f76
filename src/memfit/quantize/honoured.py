"""Fields of a checkpoint's config that llama.cpp would compute without: a model that has them otherwise is
refused, since its converted file would answer, and wrongly.

Found by comparing predictions (tests/engine/test_conversion.py), and by reading llama.cpp's src/models and
conversion as shipped with llama-cpp-python 0.3.36. Says nothing of model types that are not here: for those
`memfit quantize --verify` compares predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memfit.errors import HeaderError, UsageError

__all__ = ["require_honoured"]

_Config = Mapping[str, Any]
# field → what it has to be, in words, and whether it is
_Rule = tuple[str, Callable[[_Config], bool]]

_SILU = ("silu", lambda config: config.get("hidden_act", "silu") in ("silu", "swish"))
_NO_WINDOW = (
    "false",
    lambda config: not (config.get("use_sliding_window") and config.get("sliding_window")),
)
_ROPE_TYPES = ("default", "linear", "yarn", "llama3", "longrope", "su")
_ROPE = ("default, linear, yarn, llama3 or longrope", lambda config: _rope_type(config) in _ROPE_TYPES)
_WHOLE_HEADS = ("1", lambda config: _rope(config).get("partial_rotary_factor", 1) == 1)
_COMMON: Mapping[str, _Rule] = {
    "hidden_act": _SILU,
    "rope_type": _ROPE,
    "partial_rotary_factor": _WHOLE_HEADS,
}
_ALL_EXPERTS: Mapping[str, _Rule] = {
    "decoder_sparse_step": ("1", lambda config: config.get("decoder_sparse_step", 1) == 1),
    "mlp_only_layers": ("empty", lambda config: not config.get("mlp_only_layers")),
}
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    "llama": _COMMON,
    "mistral": _COMMON,
    "qwen2": {**_COMMON, "use_sliding_window": _NO_WINDOW},
    "qwen3": {**_COMMON, "use_sliding_window": _NO_WINDOW},
    "qwen2_moe": {
        **_COMMON,
        **_ALL_EXPERTS,
        "use_sliding_window": _NO_WINDOW,
        "norm_topk_prob": ("false", lambda config: not config.get("norm_topk_prob", False)),
    },
    "qwen3_moe": {
        **_COMMON,
        **_ALL_EXPERTS,
        "use_sliding_window": _NO_WINDOW,
        "norm_topk_prob": ("true", lambda config: bool(config.get("norm_topk_prob", False))),
    },
    "gemma3_text": {
        "hidden_activation": (
            "gelu_pytorch_tanh",
            lambda config: config.get("hidden_activation", "gelu_pytorch_tanh") == "gelu_pytorch_tanh",
        ),
        "query_pre_attn_scalar": ("head_dim", lambda config: _gemma_scale(config)),
        "layer_types": ("five sliding, one full", lambda config: _gemma_layers(config)),
        "rope_local_base_freq": ("10000", lambda config: _gemma_local_rope(config) == 10_000),
        "use_bidirectional_attention": (
            "false",
            lambda config: not config.get("use_bidirectional_attention"),
        ),
    },
}
_LARGEST_GEMMA = 62  # layers: of 27 B, whose scale llama.cpp knows


def require_honoured(folder: Path) -> None:
    """Raises UsageError where the checkpoint's config has what its converted file would be computed without;
    HeaderError where it has no config."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise HeaderError(path, "config", f"{error}") from None
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    kind = config.get("model_type", "")
    for field, (needed, is_so) in _RULES.get(kind, {}).items():
        if not is_so(config):
            got = _value(config, field)
            raise UsageError(
                f"{path}: {field} is {json.dumps(got)}, and llama.cpp computes {kind} as if it were "
                f"{needed}: the converted file would answer wrongly",
                field=field,
                got=got,
                needed=needed,
            )


def _value(config: _Config, field: str) -> Any:
    return config[field] if field in config else _rope(config).get(field)


def _rope(config: _Config) -> _Config:
    """RoPE's parameters, of the layers that see everything; `rope_scaling` before transformers 5."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if isinstance(found.get("full_attention"), dict):
        found = found["full_attention"]
    if "partial_rotary_factor" in config:
        found = {**found, "partial_rotary_factor": config["partial_rotary_factor"]}
    return found


def _rope_type(config: _Config) -> str:
    rope = _rope(config)
    found: str = rope.get("rope_type", rope.get("type", "default"))
    return found


def _gemma_scale(config: _Config) -> bool:
    head, heads = config.get("head_dim", 256), config.get("num_attention_heads", 8)
    by_layers = config.get("num_hidden_layers") == _LARGEST_GEMMA
    expected = config.get("hidden_size", 2304) / heads if by_layers else head
    return bool(config.get("query_pre_attn_scalar", 256) == expected)


def _gemma_layers(config: _Config) -> bool:
    types = config.get("layer_types")
    if types is None:
        return bool(config.get("sliding_window_pattern", 6) == 6)
    return all((kind == "full_attention") == (layer % 6 == 5) for layer, kind in enumerate(types))


def _gemma_local_rope(config: _Config) -> float:
    rope = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    found: float = rope.get("rope_theta") or config.get("rope_local_base_freq") or 10_000
    return found
