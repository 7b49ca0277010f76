"""Paths of embeddings and rerankings, where the model was loaded for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.engines.embedding import Embedding
from memfit.engines.requests import Request as ModelRequest
from memfit.engines.requests import RequestResult
from memfit.errors import EngineError, MemfitError
from memfit.openai.embeddings import (
    EmbeddingAsk,
    RerankAsk,
    embeddings_body,
    llama_embeddings_body,
    read_embeddings,
    read_rerank,
    rerank_body,
)
from memfit.openai.ollama import OllamaEmbed
from memfit.server.answering import describe
from memfit.server.bodies import read_body
from memfit.server.dialects import LLAMA, Dialect, failure, json_response
from memfit.server.failures import RefusedError
from memfit.server.paths import both
from memfit.server.service import Service

__all__ = ["embedding_routes", "respond_embedded", "respond_ollama"]

_Asked = TypeVar("_Asked")


def embedding_routes(service: Service) -> list[Route]:
    async def embeddings(request: Request) -> Response:
        return await respond_embedded(
            service,
            request,
            read_embeddings,
            _texts,
            lambda ask, found: embeddings_body(
                ask, found, model=service.model, pools=service.served.pooling != "none"
            ),
        )

    async def llama_embeddings(request: Request) -> Response:
        return await respond_embedded(service, request, read_embeddings, _texts, llama_embeddings_body)

    async def rerank(request: Request) -> Response:
        return await respond_embedded(
            service,
            request,
            read_rerank,
            _pairs,
            lambda ask, found: rerank_body(ask, found, model=service.model),
        )

    return [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/embeddings", llama_embeddings, methods=["POST"]),
        Route("/embedding", llama_embeddings, methods=["POST"]),
        *both("/rerank", rerank, "POST"),
        *both("/reranking", rerank, "POST"),
    ]


async def respond_embedded(
    service: Service,
    request: Request,
    read: Callable[[Mapping[str, Any]], _Asked],
    asked: Callable[[_Asked], list[ModelRequest]],
    written: Callable[[_Asked, Sequence[Embedding]], Any],
    dialect: Dialect = LLAMA,
) -> Response:
    """Embed what a body asks for, and write it."""
    try:
        ask = read(await read_body(request, service.limits))
        requests = asked(ask)
        await service.loaded(request)
        _require(service, requests)
        with service.admission.enter(1):
            found = await service.unless_left(request, _embedded(service, requests))
        return json_response(written(ask, found))
    except MemfitError as error:
        return failure(error, dialect)


async def respond_ollama(
    service: Service,
    request: Request,
    read: Callable[[Mapping[str, Any]], OllamaEmbed],
    written: Callable[[OllamaEmbed, Sequence[Embedding], float], dict[str, Any]],
    dialect: Dialect,
) -> Response:
    """As `respond_embedded`, by Ollama's rules: no text only loads the model, and long ones are cut."""
    began = time.monotonic()
    try:
        body = await read_body(request, service.limits)
        service.require_called(body)
        ask = read(body)
        requests = [ModelRequest(prompt=text, embed=True) for text in ask.texts]
        await service.loaded(request)
        _require(service, requests)
        with service.admission.enter(1):
            found = await service.unless_left(request, _cut_and_embedded(service, ask, requests))
        return json_response(written(ask, found, time.monotonic() - began))
    except MemfitError as error:
        return failure(error, dialect)


async def _cut_and_embedded(
    service: Service, ask: OllamaEmbed, requests: Sequence[ModelRequest]
) -> list[Embedding]:
    longest = service.served.sequence_tokens
    kept = []
    for one in requests:
        tokens = (await describe(service.host, replace(one, embed=False))).tokens
        cut = ask.truncate and len(tokens) > longest
        kept.append(replace(one, prompt=tokens[:longest]) if cut else one)
    return await _embedded(service, kept) if kept else []


def _texts(ask: EmbeddingAsk) -> list[ModelRequest]:
    return [ModelRequest(prompt=prompt, embed=True) for prompt in ask.prompts]


def _pairs(ask: RerankAsk) -> list[ModelRequest]:
    return [ModelRequest(pair=(ask.query, document), embed=True) for document in ask.documents]


def _require(service: Service, requests: Sequence[ModelRequest]) -> None:
    """Raises RefusedError where the model was loaded for something else."""
    pooling = service.served.pooling
    if pooling is None:
        raise RefusedError(501, "not_supported_error", "this server generates; start it with --embeddings")
    ranks, wants_ranks = pooling == "rank", any(one.pair for one in requests)
    if wants_ranks and not ranks:
        raise RefusedError(
            501, "not_supported_error", "this server's model is no reranker; start it with --reranking"
        )
    if ranks and not wants_ranks:
        raise RefusedError(501, "not_supported_error", "this server's model is a reranker: ask /v1/rerank")


async def _embedded(service: Service, requests: Sequence[ModelRequest]) -> list[Embedding]:
    """In their order."""
    found: dict[int, Embedding] = {}
    call = service.host.ask(requests, sends_text=False)
    try:
        async for place, event in call.events():
            if isinstance(event, RequestResult):
                if event.error:
                    raise event.error
                if event.embedding is None:
                    raise EngineError("the server is ending")
                found[place] = event.embedding
                service.metrics.count_prompt(event.embedding.prompt_tokens)
    finally:
        call.close()
    return [found[place] for place in range(len(requests))]
