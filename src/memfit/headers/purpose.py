"""What models are for that write no text: some embed texts or score them, others are refused.

One table for each way of telling. Without this check such a model would be planned like any other, and would
then crash the engine's process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfit.errors import ModelError, UsageError
from memfit.headers.model_spec import MetadataValue, ModelSpec
from memfit.strict_json import parse_json, read_bytes

__all__ = [
    "companion",
    "embeds",
    "has_cache",
    "is_tied",
    "require_checkpoint_writes",
    "require_known_purpose",
    "require_writes",
]

_ENCODER = "an encoder: it makes embeddings of texts"
_T5_ENCODER = "an encoder of the T5 family"
_ENCODER_DECODER = "an encoder-decoder: it reads a whole text before it writes another"
_DIFFUSION = "a diffusion model: it fills in a whole answer again and again"
_DRAFT = "a draft head: it guesses ahead for the model that it was made for"
_RERANKER = "a reranker: it scores how well texts answer a question"
_EMBEDDING = "an embedding model"
_CLASSIFIER = "a classifier or reranker: it scores texts"
_LOOKS_AHEAD = "an embedding model, whose attention looks ahead"
_SPEECH = "a part of a speech model"
_EMBEDS = (_ENCODER, _EMBEDDING, _RERANKER, _LOOKS_AHEAD)  # which llama.cpp makes embeddings or scores with

# BERT and those after it: no KV cache, and no output matrix.
_BERTS = "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert"
_WITHOUT_CACHE = frozenset((*_BERTS.split(), "gemma-embedding"))

# general.architecture, as llama.cpp calls it → what such a model is; those that write text are not here.
_ARCHITECTURES = {
    name: what
    for what, names in (
        (_ENCODER, _BERTS),
        (_ENCODER, "gemma-embedding llama-embed"),
        (_T5_ENCODER, "t5encoder"),
        (_ENCODER_DECODER, "t5"),
        (_DIFFUSION, "dream llada llada-moe rnd1"),
        (_DRAFT, "eagle3 dflash gemma4-assistant"),
        (_SPEECH, "wavtokenizer-dec pockettts qwen3tts"),
    )
    for name in names.split()
}
# {architecture}.pooling_type, llama.h's llama_pooling_type; 0 is none.
_POOLINGS = {1: _EMBEDDING, 2: _EMBEDDING, 3: _EMBEDDING, 4: _RERANKER}

# What goes beside a model and cannot run alone.
_COMPANION_TYPES = {  # general.type
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
    "mmproj": "a multimodal projector",
}
_COMPANION_ARCHITECTURES = {"clip": "a multimodal projector", "controlvector": "a control vector"}

# A checkpoint's class, config.json's `architectures` → what it is; the first that fits.
_CLASSES = (
    (r"\w+(ForCausalLM|LMHeadModel|ForConditionalGeneration)", None),
    (r"\w+(For(Sequence|Token|Image|Audio)Classification|ForMultipleChoice|RewardModel)", _CLASSIFIER),
    (r"\w+ForQuestionAnswering", "a model that marks answers in a text"),
    (r"\w*(Bert|BERT|Roberta|Electra|MPNet|DeBERTa|Deberta)\w*", _ENCODER),
    (r"\w+(ForMaskedLM|ForPreTraining|EncoderModel|ForTextEncoding)", _ENCODER),
    (r"\w+(Model|ForFeatureExtraction)", "the layers of a model without the head that writes"),
)
_DIFFUSION_TYPES = ("Dream", "dream", "llada", "llada_moe", "rnd1")  # model_type; their classes are their own


def companion(metadata: Mapping[str, MetadataValue]) -> str | None:
    """What a GGUF file is that goes with a model, a projector for example; None for a model."""
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if "adapter.type" in metadata:
        return _COMPANION_TYPES["adapter"]
    return _COMPANION_ARCHITECTURES.get(str(architecture)) or _COMPANION_TYPES.get(str(kind))


def embeds(spec: ModelSpec) -> bool:
    """Whether a GGUF model is there to make embeddings of texts, or to score them."""
    return _purpose(spec) in _EMBEDS


def has_cache(spec: ModelSpec) -> bool:
    """Whether a GGUF model keeps the tokens that it has read; an encoder reads each text as a whole."""
    return spec.architecture not in _WITHOUT_CACHE


def is_tied(spec: ModelSpec) -> bool:
    """Whether a GGUF model's token table is its output matrix, too."""
    if spec.architecture in _BERTS.split():
        return False
    return all(tensor.name != "output.weight" for tensor in spec.tensors)


def require_writes(spec: ModelSpec) -> None:
    """Raises ModelError where a GGUF model does not write text."""
    if what := _purpose(spec):
        raise _refusal(spec.source, spec.architecture, what)


def require_known_purpose(spec: ModelSpec) -> None:
    """Raises ModelError where a GGUF model neither writes text nor embeds it."""
    if not embeds(spec):
        require_writes(spec)


def _purpose(spec: ModelSpec) -> str | None:
    """None: it writes text."""
    what = _ARCHITECTURES.get(spec.architecture)
    pooling = spec.architecture_value("pooling_type")
    if what is None and isinstance(pooling, int):
        what = _POOLINGS.get(pooling)
    if what is None and spec.architecture_value("attention.causal") is False:
        what = _LOOKS_AHEAD
    if what is None and spec.architecture_value("classifier.output_labels") is not None:
        what = _CLASSIFIER
    return what


def require_checkpoint_writes(source: str, config: Path) -> None:
    """Raises ModelError where a config.json describes a model that does not write text.

    Other faults of the file are left to its reader, hf_config.py.
    """
    try:
        value = parse_json(read_bytes(config, "config.json"), "the JSON")
    except UsageError:
        return
    if isinstance(value, dict) and (found := _checkpoint(value)):
        raise _refusal(source, *found, is_checkpoint=True)


def _checkpoint(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """A checkpoint's class and what it is for; None where it writes text, or where nothing says."""
    classes, model_type = config.get("architectures"), config.get("model_type")
    name = classes[0] if isinstance(classes, list) and classes else model_type
    if not isinstance(name, str):
        return None
    if config.get("is_encoder_decoder") is True:
        return name, _ENCODER_DECODER
    if model_type in _DIFFUSION_TYPES:
        return name, _DIFFUSION
    programs = config.get("auto_map")
    if isinstance(programs, dict) and "AutoModelForCausalLM" in programs:
        return None  # its own class, which may be called anything
    what = next((what for pattern, what in _CLASSES if re.fullmatch(pattern, name)), None)
    return (name, what) if what else None


def _refusal(source: str, name: str, what: str, *, is_checkpoint: bool = False) -> ModelError:
    said = "memfit plans and runs models that write text, word by word"
    if is_checkpoint and what in (_ENCODER, _CLASSIFIER):
        said = "a GGUF file of such a model works, with memfit serve"
    elif what in _EMBEDS:
        said = "memfit serve serves it, and here a model has to write text, word by word"
    return ModelError(f"{source} is {what} ({name}); {said}")
