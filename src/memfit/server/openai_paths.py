"""OpenAI's paths: chats, completions, Responses, and the model."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.openai.anthropic_answers import anthropic_models
from memfit.openai.chat import read_chat, read_completion
from memfit.openai.chat_writer import ChatWriter
from memfit.openai.completion_writer import CompletionWriter
from memfit.openai.responses_answers import ResponsesWriter, responses_token_count
from memfit.openai.responses_api import read_responses
from memfit.server.dialects import failure, json_response
from memfit.server.facts import model_facts, openai_model
from memfit.server.failures import RefusedError
from memfit.server.paths import both
from memfit.server.service import Service

__all__ = ["openai_routes"]


def openai_routes(service: Service) -> list[Route]:
    defaults = service.settings.sampling

    async def chat(request: Request) -> Response:
        return await service.respond(
            request, partial(read_chat, defaults=defaults), lambda _, ask: ChatWriter(ask, service.model)
        )

    async def completions(request: Request) -> Response:
        return await service.respond(
            request,
            lambda body: service.filled_in(read_completion(body, defaults=defaults), must=False),
            lambda _, ask: CompletionWriter(ask, service.model),
        )

    async def responses(request: Request) -> Response:
        return await service.respond(
            request,
            partial(read_responses, defaults=defaults),
            lambda body, ask: ResponsesWriter(body, ask, model=service.model),
        )

    async def chat_tokens(request: Request) -> Response:
        return await service.count(
            request, partial(read_chat, defaults=defaults), lambda tokens: {"input_tokens": tokens}
        )

    async def responses_tokens(request: Request) -> Response:
        return await service.count(request, partial(read_responses, defaults=defaults), responses_token_count)

    async def models(request: Request) -> Response:
        if "anthropic-version" in request.headers:
            return json_response(anthropic_models([model_facts(service)]))
        return json_response({"object": "list", "data": [openai_model(service)], "models": []})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.settings.names:
            return failure(RefusedError(404, "not_found_error", f"there is no model {name[:100]!r}"))
        return json_response(openai_model(service))

    return [
        *both("/chat/completions", chat, "POST"),
        *both("/chat/completions/input_tokens", chat_tokens, "POST"),
        Route("/v1/completions", completions, methods=["POST"]),
        *both("/responses", responses, "POST"),
        *both("/responses/input_tokens", responses_tokens, "POST"),
        *both("/models", models, "GET"),
        *both("/models/{name:path}", model, "GET"),
    ]
