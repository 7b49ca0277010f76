"""Ollama's paths over the models on this disk: lists, shows, downloads and deletes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from math import inf
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.errors import MemfitError, ModelNotFoundError, UsageError
from memfit.openai.answers import Frame
from memfit.openai.model_facts import ModelFacts
from memfit.openai.ollama import read_ollama_name, read_stream
from memfit.openai.ollama_answers import ollama_error
from memfit.openai.ollama_models import ollama_show, ollama_tags, pull_progress, pull_status
from memfit.server.bodies import read_body
from memfit.server.dialects import OLLAMA, failure, json_response, streamed
from memfit.server.facts import model_facts
from memfit.server.failures import RefusedError
from memfit.server.library import LATEST, library_name
from memfit.server.service import Service

__all__ = ["ollama_library_routes"]

_SUCCESS = pull_status("success")


def ollama_library_routes(service: Service) -> list[Route]:
    async def tags(request: Request) -> Response:
        del request
        return json_response(ollama_tags(await _models(service)))

    async def show(request: Request) -> Response:
        try:
            name = read_ollama_name(await read_body(request, service.limits))
            return json_response(ollama_show(await _shown(service, name)))
        except MemfitError as error:
            return failure(error, OLLAMA)

    async def pull(request: Request) -> Response:
        try:
            body = await read_body(request, service.limits)
            frames = _pulled(service, read_ollama_name(body))
            if not read_stream(body):
                return json_response(await service.unless_left(request, _last(frames), seconds=inf))
            first = await service.unless_left(request, anext(frames), seconds=inf)
            return streamed(_lines(first, frames), OLLAMA)
        except MemfitError as error:
            return failure(error, OLLAMA)

    async def delete(request: Request) -> Response:
        try:
            await _delete(service, read_ollama_name(await read_body(request, service.limits)))
        except MemfitError as error:
            return failure(error, OLLAMA)
        return Response()

    return [
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/pull", pull, methods=["POST"]),
        Route("/api/delete", delete, methods=["DELETE"]),
    ]


async def _models(service: Service) -> list[ModelFacts]:
    """The served model, and the others that are here."""
    served = model_facts(service)
    ours = {str(path.resolve()) for path in service.plan.spec.paths}
    try:
        listed = await service.library.models()
    except MemfitError as error:  # of the one that is served there is no doubt
        service.say(str(error))
        return [served]
    return [served, *(_facts(one) for one in listed if not ours & set(one["paths"]))]


async def _shown(service: Service, name: str) -> ModelFacts:
    if service.is_called(name):
        return model_facts(service)
    for one in await _models(service):
        if one.name == name.removesuffix(LATEST):
            return one
    raise _not_found(name)


def _facts(described: dict[str, Any]) -> ModelFacts:
    """Of a model that is not served."""
    return ModelFacts(**{name: value for name, value in described.items() if name != "paths"})


async def _pulled(service: Service, asked: str) -> AsyncGenerator[Frame]:
    """The frames of a download. A model that is served is here already.

    Raises:
        MemfitError: as `library_name` and `Library.pull`.
    """
    if service.is_called(asked):
        yield _SUCCESS
        return
    name = library_name(asked)
    digest, checks = "", False
    async with aclosing(service.library.pull(name)) as events:
        async for kind, event in events:
            if kind == "found":
                digest = event["digest"]
                yield pull_status("pulling manifest")
            elif kind == "downloading":
                yield pull_progress(f"sha256:{digest}", event["whole"], event["done"])
            elif kind == "say":
                yield pull_status(event["text"])
            elif kind == "checking" and not checks:
                checks = True
                yield pull_status("verifying sha256 digest")
    yield _SUCCESS


async def _lines(first: Frame, frames: AsyncGenerator[Frame]) -> AsyncIterator[bytes]:
    async with aclosing(frames):
        try:
            yield OLLAMA.encode(first)
            async for frame in frames:
                yield OLLAMA.encode(frame)
        except MemfitError as error:
            yield OLLAMA.encode(Frame(data=ollama_error(error)))


async def _last(frames: AsyncGenerator[Frame]) -> Any:
    last = _SUCCESS
    async with aclosing(frames):
        async for frame in frames:
            last = frame
    return last.data


async def _delete(service: Service, asked: str) -> None:
    """Raises RefusedError where it is served, or not here; MemfitError as `Library.delete`."""
    kept: list[Path] = list(service.plan.spec.paths)
    try:
        listed = asked.removesuffix(LATEST) in service.settings.names
        if listed or not await service.library.delete(_deleted_name(asked), kept):
            raise RefusedError(409, "conflict_error", f"model '{asked}' is being served", field="model")
    except ModelNotFoundError:
        raise _not_found(asked) from None


def _deleted_name(asked: str) -> str:
    """A model's that nobody could have pulled is not here."""
    try:
        return library_name(asked)
    except UsageError:
        raise _not_found(asked) from None


def _not_found(name: str) -> RefusedError:
    """In Ollama's words, which its clients look for."""
    return RefusedError(404, "not_found_error", f"model '{name[:200]}' not found", field="model")
