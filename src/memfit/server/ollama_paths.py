"""Ollama's paths that ask the model, and who is at home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.engines.embedding import Embedding
from memfit.errors import MemfitError
from memfit.openai.ask import Ask
from memfit.openai.embeddings import normalised
from memfit.openai.ollama import (
    OllamaEmbed,
    OllamaForm,
    loads_only,
    read_ollama_chat,
    read_ollama_embed,
    read_ollama_embeddings,
    read_ollama_generate,
)
from memfit.openai.ollama_answers import OllamaWriter, ollama_loaded
from memfit.openai.ollama_models import ollama_embed_body, ollama_embeddings_body, ollama_ps, ollama_version
from memfit.server.bodies import read_body
from memfit.server.dialects import OLLAMA, failure, json_response
from memfit.server.embedding_paths import respond_ollama
from memfit.server.facts import model_facts
from memfit.server.ollama_library import ollama_library_routes
from memfit.server.service import Service

__all__ = ["ollama_routes"]


def ollama_routes(service: Service) -> list[Route]:
    defaults = service.settings.sampling

    async def chat(request: Request) -> Response:
        return await _answer(service, "chat", request, partial(read_ollama_chat, defaults=defaults))

    async def generate(request: Request) -> Response:
        def read(body: dict[str, Any]) -> Ask:
            return service.filled_in(read_ollama_generate(body, defaults=defaults))

        return await _answer(service, "generate", request, read)

    async def running(request: Request) -> Response:
        del request
        loaded = [model_facts(service)] if service.host.state == "ready" else []
        return json_response(ollama_ps(loaded))

    async def version(request: Request) -> Response:
        del request
        return json_response(ollama_version())

    async def embed(request: Request) -> Response:
        def written(ask: OllamaEmbed, found: Sequence[Embedding], seconds: float) -> dict[str, Any]:
            rows = [normalised(one, ask.dimensions) for one in found]
            tokens = sum(one.prompt_tokens for one in found)
            return ollama_embed_body(rows, model=service.model, tokens=tokens, seconds=seconds)

        return await respond_ollama(service, request, read_ollama_embed, written, OLLAMA)

    async def embeddings(request: Request) -> Response:
        def written(_: OllamaEmbed, found: Sequence[Embedding], __: float) -> dict[str, Any]:
            return ollama_embeddings_body(found[0].vector if found else ())

        return await respond_ollama(service, request, read_ollama_embeddings, written, OLLAMA)

    return [
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/embeddings", embeddings, methods=["POST"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/version", version, methods=["GET"]),
        *ollama_library_routes(service),
    ]


async def _answer(
    service: Service, form: OllamaForm, request: Request, read: Callable[[dict[str, Any]], Ask]
) -> Response:
    try:
        body = await read_body(request, service.limits)
        service.require_called(body)
        wanted = loads_only(body, form)
        if wanted:
            await service.loaded(request)
            return json_response(ollama_loaded(form, wanted, model=service.model))
    except MemfitError as error:
        return failure(error, OLLAMA)
    return await service.answer(
        request,
        body,
        read,
        lambda _, ask: OllamaWriter(form, ask, model=service.model),
        OLLAMA,
    )
