"""Puts packed layers into a model before its weights are loaded, in place of those that are quantized.

transformers asks a quantizer for that while it builds a model; this one is ours, and does nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from memfit.engines.transformers.packed_layers import PackedExperts, PackedLinear
from memfit.errors import ModelError
from memfit.headers.stored_weights import QuantizedTensor, StoredWeight, place_of
from memfit.memory.packed_weights import form_of

__all__ = ["packed_config", "replace_layers"]

_METHOD = "memfit"


@register_quantization_config(_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """Names the quantizer, and holds the weights that it makes room for."""

    def __init__(self, weights: tuple[QuantizedTensor, ...] = ()) -> None:
        self.quant_method = _METHOD
        self.weights = weights

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _METHOD}


@register_quantizer(_METHOD)
class PackedQuantizer(HfQuantizer):
    is_trainable = False

    def is_serializable(self, *_: object, **__: object) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> Any:
        replace_layers(model, self.quantization_config.weights)
        return model


def packed_config(tensors: Iterable[object]) -> PackedConfig | None:
    """For from_pretrained; None where nothing stays packed."""
    weights = tuple(one for one in tensors if isinstance(one, QuantizedTensor) and form_of([one.stored]))
    return PackedConfig(weights) if weights else None


def replace_layers(model: torch.nn.Module, weights: Iterable[QuantizedTensor]) -> None:
    """Raises ModelError where the model has no layer of a weight's name and shape."""
    places: dict[str, list[StoredWeight]] = {}
    for one in weights:
        places.setdefault(place_of(one.name), []).append(one.stored)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and (found := places.pop(place_of(f"{name}.weight"), None)):
            shape = (module.out_features, module.in_features)
            if found[0].shape != shape:
                raise ModelError(f"{name} is {shape} by config.json, and its weights are {found[0].shape}")
            model.set_submodule(name, PackedLinear(found[0], module.bias))
        elif isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            up = places.pop(place_of(f"{name}.gate_up_proj"), None)
            down = places.pop(place_of(f"{name}.down_proj"), None)
            if up and down:
                if len(up) != 2 * len(down):
                    raise ModelError(
                        f"{name}: {len(up)} and {len(down)} weights of its experts are quantized"
                    )
                model.set_submodule(name, PackedExperts(up[0], down[0], len(down), module.act_fn))
            elif up or down:
                raise ModelError(f"{name}: of its experts only some weights are quantized")
    if places:
        raise ModelError(f"transformers' model has no layer for {len(places)} weights: {min(places)}")
