"""Anthropic's paths."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.openai.anthropic import read_anthropic
from memfit.openai.anthropic_answers import AnthropicWriter, anthropic_token_count
from memfit.server.dialects import ANTHROPIC
from memfit.server.paths import both
from memfit.server.service import Service

__all__ = ["anthropic_routes"]


def anthropic_routes(service: Service) -> list[Route]:
    defaults = service.settings.sampling

    async def messages(request: Request) -> Response:
        return await service.respond(
            request,
            partial(read_anthropic, defaults=defaults),
            lambda _, __: AnthropicWriter(model=service.model),
            ANTHROPIC,
        )

    async def count_tokens(request: Request) -> Response:
        return await service.count(
            request,
            partial(read_anthropic, defaults=defaults, counts_only=True),
            anthropic_token_count,
            ANTHROPIC,
        )

    return [
        *both("/messages", messages, "POST"),
        *both("/messages/count_tokens", count_tokens, "POST"),
    ]
