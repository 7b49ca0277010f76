"""Every parameter and buffer that transformers builds for a model, by name, shape and kind.

For the model types in `_DECODERS` they follow from config.json alone, as transformers 5.23.0 names
them; a checkpoint is then only checked against them. For any other type a checkpoint's header is
needed, and kinds are told by names and shapes (`_kind_by_name`). Knows no precisions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from memfit.errors import HeaderError, ModelError
from memfit.headers.hf_config import HfConfig, VisionConfig
from memfit.headers.safetensors import Checkpoint, SafetensorsTensor
from memfit.headers.stored_weights import QuantizedTensor, StoredWeight, logical_checkpoint, place_of
from memfit.strict_json import shown

__all__ = [
    "KINDS",
    "HfBuffer",
    "HfModel",
    "HfParameter",
    "model_from_checkpoint",
    "model_from_config",
    "weights_of",
]

# kind → what it is, and why bitsandbytes leaves it as it is (it replaces nn.Linear and nothing else).
KINDS = {
    "linear": "weight of a linear layer",
    "bias": "bias of a linear layer",
    "embedding": "token embedding, no linear layer",
    "head": "output layer, kept by get_keys_to_not_convert",
    "norm": "norm, no linear layer",
    "convolution": "convolution, no linear layer",
    "position": "position table, no linear layer",
    "router": "router, a parameter and no linear layer in transformers 5",
    "experts": "experts, merged into one parameter and no linear layer in transformers 5",
    "projector": "projection, a parameter and no linear layer",
    "attention": "parameter of torch's own attention, which is replaced only in its output layer",
    "other": "of a shape that is no linear layer's",
}


@dataclass(frozen=True, kw_only=True)
class HfParameter:
    """One parameter; a tied one is there once."""

    name: str
    shape: tuple[int, ...]  # torch's order: of a linear layer (outputs, inputs)
    kind: str  # a key of KINDS
    stacks: bool = False  # put together from two stacked parts while loading
    stored: tuple[StoredWeight, ...] = ()  # what it is in the files, where that is quantized

    def __post_init__(self) -> None:
        assert self.kind in KINDS and (self.kind != "linear" or len(self.shape) == 2)

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class HfBuffer:
    """One buffer: computed while loading, in no checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None  # torch's name; None where it follows the model's
    in_release_4: bool = True  # whether transformers 4.57 registers it too

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class HfModel:
    """What transformers holds of a model, before any precision is chosen."""

    hf_config: HfConfig
    parameters: tuple[HfParameter, ...] = field(repr=False)
    buffers: tuple[HfBuffer, ...] | None = field(repr=False)  # None: this model type's are not known
    checkpoint_bytes: int | None = None  # all files; None where there is only a config.json
    notes: tuple[str, ...] = ()  # what is less than exact, in sentences


_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, kw_only=True)
class _Decoder:
    """How one model type differs from llama. A bias that is None: as config.json says."""

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: bool = False
    layer_norms: tuple[str, ...] = _TWO_NORMS
    scaled_embedding: bool = False  # has a buffer with its scale
    rotary_by_layer_type: bool = False
    has_experts: bool = False


_DECODERS = {
    "llama": _Decoder(),
    "mistral": _Decoder(qkv_bias=False, o_bias=False, mlp_bias=False),
    "mixtral": _Decoder(qkv_bias=False, o_bias=False, mlp_bias=False, has_experts=True),
    "qwen2": _Decoder(qkv_bias=True, o_bias=False, mlp_bias=False),
    "qwen3": _Decoder(mlp_bias=False, qk_norm=True),
    "qwen3_moe": _Decoder(mlp_bias=False, qk_norm=True, has_experts=True),
    "gemma3_text": _Decoder(
        mlp_bias=False,
        qk_norm=True,
        layer_norms=_FOUR_NORMS,
        scaled_embedding=True,
        rotary_by_layer_type=True,
    ),
}
# Types made of a language model and an image encoder.
_WITH_VISION = {"gemma3"}


def model_from_config(config: HfConfig) -> HfModel:
    """The model that transformers builds from config.json alone.

    Raises:
        HeaderError: the model type is not known here.
        ModelError: it is a quantized one, whose files say more.
    """
    if config.quantization is not None:
        raise ModelError(
            f"{config.path}: a checkpoint quantized by {shown(config.quant_method)}: what it takes, its "
            ".safetensors files say; give these too"
        )
    return _model_by_config(config)


def _model_by_config(config: HfConfig) -> HfModel:
    decoder = _decoder(config)
    if decoder is None:
        raise HeaderError(
            config.path,
            "model_type",
            f"{shown(config.model_type)} is not known by its config alone; memfit knows "
            f"{', '.join(sorted({*_DECODERS, *_WITH_VISION}))}; for others give the .safetensors files too",
        )
    vision = config.vision
    prefix = "model.language_model." if vision else "model."
    parameters = [*_vision_parameters(config, vision)] if vision else []
    parameters += _text_parameters(config, decoder, prefix)
    buffers = [*_text_buffers(config, decoder, prefix)]
    if vision:
        name = "model.vision_tower.embeddings.position_ids"
        buffers.append(HfBuffer(name=name, shape=(1, vision.patches), dtype="int64"))
    return HfModel(hf_config=config, parameters=tuple(parameters), buffers=tuple(buffers))


def model_from_checkpoint(config: HfConfig, checkpoint: Checkpoint) -> HfModel:
    """The model that transformers builds from config.json and the files it goes with.

    Raises:
        HeaderError: the files do not hold what config.json describes.
        ModelError: it is quantized in a way that is not read.
    """
    checkpoint = weights_of(config, checkpoint)
    stored = [tensor for tensor in checkpoint.tensors if not _is_dropped(tensor, config)]
    for tensor in stored:
        if tensor.type not in ("F64", "F32", "BF16", "F16"):
            raise ModelError(
                f"{config.path.parent}: tensor {shown(tensor.name)} is {tensor.type}, which is no weight in "
                "16 or 32 bits, and config.json says nothing of how it is quantized"
            )
    if _decoder(config) is None:
        return _model_by_names(config, checkpoint, stored)
    model = _model_by_config(config)
    _check_shapes(config, model.parameters, stored)
    parameters = model.parameters
    if config.quantization is not None:
        parameters = tuple(_with_stored(config, model.parameters, stored))
    return replace(model, parameters=parameters, checkpoint_bytes=checkpoint.file_bytes)


def weights_of(config: HfConfig, checkpoint: Checkpoint) -> Checkpoint:
    """What stored_weights.py makes of its tensors. Raises ModelError as that does."""
    known = _model_by_config(config).parameters if _decoder(config) else ()
    return logical_checkpoint(config, checkpoint, {place_of(one.name): one.shape for one in known})


def _with_stored(
    config: HfConfig, parameters: tuple[HfParameter, ...], stored: list[SafetensorsTensor]
) -> Iterator[HfParameter]:
    """Each parameter with what it is in the files; merged experts with all of theirs."""
    places: dict[str, list[SafetensorsTensor]] = {}
    for tensor in stored:
        places.setdefault(place_of(tensor.name), []).append(tensor)
    for one in parameters:
        found = places.get(place_of(one.name), [])
        quantized = tuple(each.stored for each in found if isinstance(each, QuantizedTensor))
        if quantized and len(quantized) < len(found):
            raise ModelError(f"{config.path.parent}: of {one.name} only some experts are quantized")
        if len({(each.layout, each.shape, each.bits, each.group) for each in quantized}) > 1:
            raise ModelError(f"{config.path.parent}: the experts of {one.name} are quantized in several ways")
        yield replace(one, stored=quantized)


def _decoder(config: HfConfig) -> _Decoder | None:
    whole = config.model_type in _WITH_VISION or config.model_type == config.text_model_type
    decoder = _DECODERS.get(config.text_model_type) if whole else None
    if decoder is not None and config.num_experts and not decoder.has_experts:
        return None  # a variant with experts under a name that has none
    return decoder


def _text_parameters(config: HfConfig, decoder: _Decoder, prefix: str) -> Iterator[HfParameter]:
    hidden = config.hidden_size
    yield _parameter("embedding", f"{prefix}embed_tokens.weight", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        yield from _attention(config, decoder, f"{prefix}layers.{layer}.self_attn.")
        mlp = f"{prefix}layers.{layer}.mlp."
        if layer in config.sparse_layers:
            yield from _experts(config, mlp)
        else:
            bias = config.mlp_bias if decoder.mlp_bias is None else decoder.mlp_bias
            inner = config.intermediate_size
            yield from _linear(f"{mlp}gate_proj", inner, hidden, bias)
            yield from _linear(f"{mlp}up_proj", inner, hidden, bias)
            yield from _linear(f"{mlp}down_proj", hidden, inner, bias)
        for norm in decoder.layer_norms:
            yield _parameter("norm", f"{prefix}layers.{layer}.{norm}.weight", hidden)
    yield _parameter("norm", f"{prefix}norm.weight", hidden)
    if not config.tie_word_embeddings:
        yield _parameter("head", "lm_head.weight", config.vocab_size, hidden)


def _attention(config: HfConfig, decoder: _Decoder, prefix: str) -> Iterator[HfParameter]:
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    bias = config.attention_bias if decoder.qkv_bias is None else decoder.qkv_bias
    yield from _linear(f"{prefix}q_proj", queries, hidden, bias)
    yield from _linear(f"{prefix}k_proj", keys, hidden, bias)
    yield from _linear(f"{prefix}v_proj", keys, hidden, bias)
    bias = config.attention_bias if decoder.o_bias is None else decoder.o_bias
    yield from _linear(f"{prefix}o_proj", hidden, queries, bias)
    if decoder.qk_norm:
        yield _parameter("norm", f"{prefix}q_norm.weight", head)
        yield _parameter("norm", f"{prefix}k_norm.weight", head)


def _experts(config: HfConfig, prefix: str) -> Iterator[HfParameter]:
    count, inner, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
    yield HfParameter(
        name=f"{prefix}experts.gate_up_proj", shape=(count, 2 * inner, hidden), kind="experts", stacks=True
    )
    yield _parameter("experts", f"{prefix}experts.down_proj", count, hidden, inner)
    yield _parameter("router", f"{prefix}gate.weight", count, hidden)


def _text_buffers(config: HfConfig, decoder: _Decoder, prefix: str) -> Iterator[HfBuffer]:
    """Rotary frequencies: one for every two elements of a head; release 5 also keeps the first ones."""
    if decoder.scaled_embedding:
        yield HfBuffer(name=f"{prefix}embed_tokens.embed_scale", shape=(), dtype=None)
    kinds = [""]
    if decoder.rotary_by_layer_type:
        kinds = sorted({"sliding_attention_" if w else "full_attention_" for w in config.layer_windows})
    shape = (config.head_dim // 2,)
    for kind in kinds:
        name = f"{prefix}rotary_emb.{kind}"
        yield HfBuffer(name=f"{name}inv_freq", shape=shape, dtype="float32")
        yield HfBuffer(name=f"{name}original_inv_freq", shape=shape, dtype="float32", in_release_4=False)


def _vision_parameters(config: HfConfig, vision: VisionConfig) -> Iterator[HfParameter]:
    """SigLIP's encoder (transformers/models/siglip), and gemma3's projector after it."""
    hidden, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    tower = "model.vision_tower."
    stem = f"{tower}embeddings."
    yield _parameter(
        "convolution", f"{stem}patch_embedding.weight", hidden, vision.num_channels, patch, patch
    )
    yield _parameter("convolution", f"{stem}patch_embedding.bias", hidden)
    yield _parameter("position", f"{stem}position_embedding.weight", vision.patches, hidden)
    for layer in range(vision.num_hidden_layers):
        block = f"{tower}encoder.layers.{layer}."
        yield from _layer_norm(f"{block}layer_norm1", hidden)
        yield from _layer_norm(f"{block}layer_norm2", hidden)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{block}self_attn.{name}", hidden, hidden, True)
        yield from _linear(f"{block}mlp.fc1", inner, hidden, True)
        yield from _linear(f"{block}mlp.fc2", hidden, inner, True)
    yield from _layer_norm(f"{tower}post_layernorm", hidden)
    if vision.vision_use_head:
        yield from _pooling_head(f"{tower}head.", hidden, inner)
    projector = "model.multi_modal_projector."
    yield _parameter("projector", f"{projector}mm_input_projection_weight", hidden, config.hidden_size)
    yield _parameter("norm", f"{projector}mm_soft_emb_norm.weight", hidden)


def _pooling_head(prefix: str, hidden: int, inner: int) -> Iterator[HfParameter]:
    """SiglipMultiheadAttentionPoolingHead; the output layer in torch's attention is no plain nn.Linear."""
    yield _parameter("other", f"{prefix}probe", 1, 1, hidden)
    attention = f"{prefix}attention."
    yield _parameter("attention", f"{attention}in_proj_weight", 3 * hidden, hidden)
    yield _parameter("attention", f"{attention}in_proj_bias", 3 * hidden)
    yield _parameter("attention", f"{attention}out_proj.weight", hidden, hidden)
    yield _parameter("attention", f"{attention}out_proj.bias", hidden)
    yield from _layer_norm(f"{prefix}layernorm", hidden)
    yield from _linear(f"{prefix}mlp.fc1", inner, hidden, True)
    yield from _linear(f"{prefix}mlp.fc2", hidden, inner, True)


def _parameter(kind: str, name: str, *shape: int) -> HfParameter:
    return HfParameter(name=name, shape=shape, kind=kind)


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[HfParameter]:
    yield _parameter("linear", f"{name}.weight", outputs, inputs)
    if bias:
        yield _parameter("bias", f"{name}.bias", outputs)


def _layer_norm(name: str, size: int) -> Iterator[HfParameter]:
    yield _parameter("norm", f"{name}.weight", size)
    yield _parameter("norm", f"{name}.bias", size)


def _is_dropped(tensor: SafetensorsTensor, config: HfConfig) -> bool:
    """What a file may hold and from_pretrained does not load: buffers, and the tied output layer."""
    if tensor.name.endswith((".inv_freq", ".position_ids")):
        return True
    return config.tie_word_embeddings and _is_head(tensor.name)


def _check_shapes(
    config: HfConfig, parameters: tuple[HfParameter, ...], stored: list[SafetensorsTensor]
) -> None:
    """Names differ between files and models, and experts lie there one by one; shapes must agree."""
    expected = Counter(each.shape for each in parameters if each.kind != "experts")
    found = Counter(tensor.shape for tensor in stored if not _is_expert(tensor.name))
    for problem, shapes in (("lack", expected - found), ("also hold", found - expected)):
        for shape, count in shapes.items():
            found_there = f"the files {problem} {count} tensor(s) of shape {list(shape)}"
            raise HeaderError(config.path, "model_type", found_there)
    needed = sum(each.elements for each in parameters if each.kind == "experts")
    there = sum(tensor.elements for tensor in stored if _is_expert(tensor.name))
    if needed != there:
        differs = f"the files' experts have {there} elements, config.json asks {needed}"
        raise HeaderError(config.path, "num_experts", differs)


def _model_by_names(config: HfConfig, checkpoint: Checkpoint, stored: list[SafetensorsTensor]) -> HfModel:
    parameters = tuple(
        HfParameter(
            name=tensor.name,
            shape=tensor.shape,
            kind=_kind_by_name(tensor.name, tensor.shape),
            stored=(tensor.stored,) if isinstance(tensor, QuantizedTensor) else (),
        )
        for tensor in stored
    )
    return HfModel(
        hf_config=config,
        parameters=parameters,
        buffers=None,
        checkpoint_bytes=checkpoint.file_bytes,
        notes=(
            f"memfit does not know the model type {shown(config.model_type)}: which tensors are linear "
            "layers is told by their names and shapes, and buffers are not counted",
        ),
    )


# Ends of names, by which the kind of a matrix is told; the first that fits counts.
_NAMED_KINDS = (
    (re.compile(r"(?:^|\.)(?:wpe|pos(?:ition)?_emb\w*|embed_positions)\.weight$"), "position"),
    (re.compile(r"(?:^|\.)(?:wte|\w*embed\w*|tok_embeddings|shared)\.weight$"), "embedding"),
    (re.compile(r"\.(?:gate|router|router\.\w+)\.weight$"), "router"),
)


def _kind_by_name(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) < 2:
        return "bias" if name.endswith(".bias") and "norm" not in name else "norm"
    if _is_head(name):
        return "head"
    if _is_expert(name):
        return "experts"
    for pattern, kind in _NAMED_KINDS:
        if pattern.search(name):
            return kind
    if len(shape) > 2:
        return "convolution" if "conv" in name or "patch" in name else "other"
    return "linear" if name.endswith(".weight") else "projector"


def _is_head(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in ("lm_head", "embed_out", "output")


def _is_expert(name: str) -> bool:
    return ".experts." in name
