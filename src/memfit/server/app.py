"""The server's application: all paths over one loaded model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from memfit.errors import MemfitError
from memfit.planner.plan import Plan
from memfit.server.anthropic_paths import anthropic_routes
from memfit.server.dialects import dialect_of, failure
from memfit.server.embedding_paths import embedding_routes
from memfit.server.failures import RefusedError
from memfit.server.guard import Guard
from memfit.server.host import ModelHost
from memfit.server.llama_paths import llama_routes
from memfit.server.ollama_paths import ollama_routes
from memfit.server.openai_paths import openai_routes
from memfit.server.openapi_paths import openapi_routes
from memfit.server.own_paths import own_routes
from memfit.server.page_paths import page_routes
from memfit.server.service import LoadPlan, Service, at_once
from memfit.server.settings import Settings

__all__ = ["make_app"]


def make_app(
    plan: Plan,
    load: LoadPlan,
    settings: Settings,
    say: Callable[[str], None],
    fail: Callable[[MemfitError], None],
) -> Starlette:
    """An ASGI application that loads the model when it starts, by `load`, and again where its worker dies.

    `fail` hears why there will be no model. Its `state.host` is the ModelHost, once it has started.
    """
    service = Service(plan=plan, load=load, settings=settings, say=say)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.host = ModelHost(partial(load, plan), say, fail, at_once=at_once(plan))
        service.begin(app.state.host)
        try:
            yield
        finally:
            service.pricer.close()
            await service.host.close()

    routes = [
        *page_routes(),
        *own_routes(service),
        *openapi_routes(service),
        *llama_routes(service),
        *openai_routes(service),
        *anthropic_routes(service),
        *embedding_routes(service),
        *ollama_routes(service),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, settings=settings, limits=lambda: service.limits, say=say)],
        exception_handlers={HTTPException: _refused, Exception: _fault},
    )


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that is not here."""
    assert isinstance(error, HTTPException)
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    said = f"{request.method} {request.url.path[:200]} is not here"
    response = failure(RefusedError(error.status_code, kind, said), dialect_of(request.url.path))
    response.headers.update(error.headers or {})  # those that a method's refusal has to name
    return response


async def _fault(request: Request, error: Exception) -> Response:
    said = f"a fault in memfit itself: {type(error).__name__}"
    return failure(RefusedError(500, "server_error", said), dialect_of(request.url.path))
