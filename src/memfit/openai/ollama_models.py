"""Ollama's lists of models, what it shows of one, its downloads and its embeddings, as bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfit.openai.answers import Frame
from memfit.openai.model_facts import ModelFacts
from memfit.openai.ollama_answers import nanoseconds, ollama_time

__all__ = [
    "OLLAMA_VERSION",
    "ollama_embed_body",
    "ollama_embeddings_body",
    "ollama_ps",
    "ollama_show",
    "ollama_tags",
    "ollama_version",
    "pull_progress",
    "pull_status",
]

OLLAMA_VERSION = "0.13.0"  # of Ollama, whose API this is: clients refuse to talk to old ones
_NEVER = "2300-01-01T00:00:00Z"  # when a model is unloaded that stays


def ollama_tags(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """Models that lie on the disk."""
    return {
        "models": [
            {
                **_names(model),
                "modified_at": ollama_time(nanoseconds(model.modified)),
                "size": model.size_bytes,
                "capabilities": list(model.capabilities),
            }
            for model in models
        ]
    }


def ollama_ps(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """Models that are loaded."""
    return {
        "models": [
            {
                **_names(model),
                "size": model.loaded_bytes,
                "size_vram": model.vram_bytes,
                "expires_at": _NEVER,
                "context_length": model.context,
            }
            for model in models
            if model.loaded_bytes
        ]
    }


def ollama_show(model: ModelFacts) -> dict[str, Any]:
    return {
        "modelfile": f'# of memfit\nFROM {model.name}\nTEMPLATE """{model.template}"""\n',
        "parameters": f"{'num_ctx':<30} {model.context}",
        "template": model.template,
        "license": model.license,
        "details": _details(model),
        "model_info": {
            **dict(model.header),
            "general.architecture": model.family,
            "general.parameter_count": model.parameters,
            f"{model.family}.context_length": model.context,
        },
        "capabilities": list(model.capabilities),
        "modified_at": ollama_time(nanoseconds(model.modified)),
    }


def ollama_version(version: str = OLLAMA_VERSION) -> dict[str, Any]:
    return {"version": version}


def pull_status(status: str) -> Frame:
    """A step of a download: "pulling manifest", "verifying sha256 digest", "success" at last."""
    return Frame(data={"status": status})


def pull_progress(digest: str, total_bytes: int, completed_bytes: int) -> Frame:
    """How much of one file has come. `digest` tells it from others."""
    return Frame(
        data={
            "status": f"pulling {digest.removeprefix('sha256:')[:12]}",
            "digest": digest,
            "total": total_bytes,
            "completed": completed_bytes,
        }
    )


def ollama_embed_body(
    vectors: Sequence[Sequence[float]], *, model: str, tokens: int, seconds: float
) -> dict[str, Any]:
    """`tokens` and `seconds` are those of all texts."""
    return {
        "model": model,
        "embeddings": [list(vector) for vector in vectors],
        "total_duration": nanoseconds(seconds),
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }


def ollama_embeddings_body(vector: Sequence[float]) -> dict[str, Any]:
    """Of the older call."""
    return {"embedding": list(vector)}


def _names(model: ModelFacts) -> dict[str, Any]:
    return {"name": model.name, "model": model.name, "digest": model.digest, "details": _details(model)}


def _details(model: ModelFacts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }
