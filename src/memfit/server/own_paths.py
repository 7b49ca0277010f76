"""memfit's own paths: health, metrics, the running plan."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.server.failures import RefusedError
from memfit.server.llama_paths import LLAMA
from memfit.server.paths import both
from memfit.server.service import Service, failure, json_response

__all__ = ["own_routes"]

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


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

    return [
        *both("/health", health, "GET"),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/plan", plan, methods=["GET"]),
    ]
