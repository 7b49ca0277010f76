"""What a server tells of its model and of itself: lists of models, llama-server's props and slots."""

from __future__ import annotations

from typing import Any

from memfit import __version__
from memfit.openai.ask import Ask
from memfit.openai.chat_writer import FINGERPRINT
from memfit.openai.llama_answers import generation_settings
from memfit.openai.model_facts import ModelFacts
from memfit.server.service import Service

__all__ = ["model_facts", "openai_model", "props", "slots"]


def model_facts(service: Service) -> ModelFacts:
    spec, served, plan = service.plan.spec, service.served, service.plan
    abilities = ["completion"]
    if served.form.has_tools:
        abilities.append("tools")
    if served.form.reasoning:
        abilities.append("thinking")
    if served.fills_in:
        abilities.append("insert")
    path = spec.paths[0]
    return ModelFacts(
        name=service.model,
        size_bytes=spec.file_bytes,
        digest=plan.fingerprint.files[0].sha256 if plan.fingerprint else "",
        modified=path.stat().st_mtime if path.exists() else service.started,
        family=spec.architecture,
        parameters=spec.n_params,
        quantization=spec.quantization,
        context=served.sequence_tokens or plan.sequence_context,
        capabilities=tuple(abilities),
        template=served.template or "",
        license=str(spec.metadata.get("general.license", "")),
        header=tuple(
            (name, value)
            for name, value in spec.metadata.items()
            if isinstance(value, str | int | float) and not name.endswith("chat_template")
        ),
        loaded_bytes=sum(tier.total_bytes for tier in plan.tiers if tier.kind != "disk"),
        vram_bytes=sum(tier.total_bytes for tier in plan.tiers if tier.kind == "vram"),
    )


def openai_model(service: Service) -> dict[str, Any]:
    """OpenAI's object, with llama-server's `meta`."""
    spec, served, settings = service.plan.spec, service.served, service.settings
    return {
        "id": service.model,
        "object": "model",
        "created": int(service.started),
        "owned_by": "memfit",
        "aliases": list(settings.names),
        "tags": list(settings.tags),
        "meta": {
            "n_ctx": served.sequence_tokens,
            "n_ctx_train": served.trained_tokens,
            "n_params": spec.n_params,
            "size": spec.file_bytes,
        },
    }


def props(service: Service) -> dict[str, Any]:
    settings, served = service.settings, service.served
    params = generation_settings(Ask(prompts=("",), sampling=settings.sampling))
    return {
        "default_generation_settings": {"params": params, "n_ctx": served.sequence_tokens},
        "total_slots": service.plan.parallel,
        "model_alias": service.model,
        "model_path": str(service.plan.spec.paths[0]),
        "modalities": {"vision": False, "audio": False},
        "chat_template": served.template or "",
        "bos_token": served.bos,
        "eos_token": served.eos,
        "build_info": FINGERPRINT,
        "memfit": __version__,
        "is_sleeping": False,
    }


def slots(service: Service) -> list[dict[str, Any]]:
    """As many as sequences. Those of the calls that run are the first."""
    busy = service.status().running
    return [
        {
            "id": index,
            "n_ctx": service.served.sequence_tokens,
            "speculative": False,
            "is_processing": index < busy,
        }
        for index in range(service.plan.parallel)
    ]
