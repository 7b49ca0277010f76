"""memfit's own paths: health, metrics, the running plan, the document of all paths."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.server.failures import RefusedError
from memfit.server.llama_paths import LLAMA
from memfit.server.openapi import openapi_document
from memfit.server.paths import both
from memfit.server.service import Service, failure, json_response

__all__ = ["own_routes"]

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_LIMIT = re.compile("[1-9][0-9]{0,8}", re.ASCII)


def own_routes(service: Service) -> list[Route]:
    async def health(request: Request) -> Response:
        del request
        if service.host.state == "ready":
            return json_response({"status": "ok"})
        said = "the model is being loaded" if service.host.state == "loading" else str(service.host.failure)
        return failure(RefusedError(503, "unavailable_error", said), LLAMA)

    async def metrics(request: Request) -> Response:
        del request
        if not service.settings.shows_metrics:
            return failure(RefusedError(501, "not_supported_error", "metrics are not shown here"), LLAMA)
        headers = {"Process-Start-Time-Unix": str(int(service.started))}
        return Response(service.metrics.text(), 200, headers, _PROMETHEUS)

    async def plan(request: Request) -> Response:
        del request
        status = service.host.status()
        return json_response(
            {
                **service.plan.to_json(),
                "state": service.host.state,
                "restarts": service.host.restarts,
                "held_bytes": status.held_bytes,
                "cells_in_use": status.cells_in_use,
                "running": status.running,
                "waiting": status.waiting + service.admission.waiting,
            }
        )

    async def openapi(request: Request) -> Response:
        most = request.query_params.get("max_tokens")
        if most is not None and not _LIMIT.fullmatch(most):
            said = "max_tokens: needed a whole number above 0"
            return failure(RefusedError(400, "invalid_request_error", said, field="max_tokens"), LLAMA)
        settings = service.settings
        return json_response(
            openapi_document(
                names=settings.names,
                vocabulary=service.plan.spec.vocabulary,
                has_keys=bool(settings.api_keys),
                most_tokens=int(most) if most else None,
            )
        )

    return [
        *both("/health", health, "GET"),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/plan", plan, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
