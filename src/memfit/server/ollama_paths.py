"""Ollama's paths: chat and generate, and what it tells of models. One model answers, by whatever name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from memfit.errors import MemfitError
from memfit.openai.ask import Ask
from memfit.openai.ollama import (
    OllamaForm,
    loads_only,
    read_ollama_chat,
    read_ollama_generate,
    read_ollama_name,
)
from memfit.openai.ollama_answers import OllamaWriter, ollama_error, ollama_loaded
from memfit.openai.ollama_models import ollama_ps, ollama_show, ollama_tags, ollama_version
from memfit.server.bodies import read_body
from memfit.server.facts import model_facts
from memfit.server.failures import RefusedError
from memfit.server.service import Dialect, Service, failure, json_response

__all__ = ["OLLAMA", "is_served", "ollama_routes"]

OLLAMA = Dialect(error=ollama_error, lines=True)
_LATEST = ":latest"  # what clients add to a name without a tag


def ollama_routes(service: Service) -> list[Route]:
    defaults = service.settings.sampling

    async def chat(request: Request) -> Response:
        return await _answer(service, "chat", request, partial(read_ollama_chat, defaults=defaults))

    async def generate(request: Request) -> Response:
        def read(body: dict[str, Any]) -> Ask:
            return service.filled_in(read_ollama_generate(body, defaults=defaults))

        return await _answer(service, "generate", request, read)

    async def tags(request: Request) -> Response:
        del request
        return json_response(ollama_tags([model_facts(service)]))

    async def running(request: Request) -> Response:
        del request
        loaded = [model_facts(service)] if service.host.state == "ready" else []
        return json_response(ollama_ps(loaded))

    async def show(request: Request) -> Response:
        try:
            name = read_ollama_name(await read_body(request, service.settings.limits))
            if not is_served(service, name):
                raise not_found(name)
        except MemfitError as error:
            return failure(error, OLLAMA)
        return json_response(ollama_show(model_facts(service)))

    async def version(request: Request) -> Response:
        del request
        return json_response(ollama_version())

    return [
        Route("/", _greet, methods=["GET"]),
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/version", version, methods=["GET"]),
    ]


def is_served(service: Service, name: str) -> bool:
    """Whether it is one of the served model's names."""
    return name.removesuffix(_LATEST) in service.settings.names


def not_found(name: str) -> RefusedError:
    """In Ollama's words, which its clients look for."""
    return RefusedError(404, "not_found_error", f"model '{name[:200]}' not found", field="model")


async def _answer(
    service: Service, form: OllamaForm, request: Request, read: Callable[[dict[str, Any]], Ask]
) -> Response:
    try:
        body = await read_body(request, service.settings.limits)
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


async def _greet(request: Request) -> Response:
    """Clients ask here whether anybody is at home, by HEAD."""
    del request
    return PlainTextResponse("memfit is running")
