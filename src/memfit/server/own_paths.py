"""memfit's own paths: health, metrics, the running plan, what another would be, what a repository holds."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.errors import MemfitError
from memfit.openai.fields import read_text
from memfit.server.bodies import read_body
from memfit.server.dialects import LLAMA, failure, json_response
from memfit.server.failures import RefusedError
from memfit.server.library import library_name
from memfit.server.paths import both
from memfit.server.pricing import read_price
from memfit.server.service import Service

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

    async def activity(request: Request) -> Response:
        del request
        return json_response(service.metrics.activity())

    async def plan(request: Request) -> Response:
        del request
        return json_response(await _running_plan(service))

    async def price(request: Request) -> Response:
        try:
            body = await read_body(request, service.limits)
            model = _other_model(service, body.pop("model", None))
            budget, workload = read_price(body, service.plan)
            if model is None:
                priced = await service.unless_left(request, service.pricer.price(budget, workload))
                return json_response({**priced, "pricing_bytes": service.pricer.held_bytes})
            planned = service.library.plan(model, budget, workload)
            return json_response(await service.unless_left(request, planned))
        except MemfitError as error:
            return failure(error, LLAMA)

    async def quantizations(request: Request) -> Response:
        try:
            listed = service.library.choices(request.query_params.get("model", ""))
            found = await service.unless_left(request, listed)
        except MemfitError as error:
            return failure(error, LLAMA)
        return json_response({"quantizations": found["variants"], "smaller_models": found["smaller_models"]})

    async def apply(request: Request) -> Response:
        """Answers once the model is loaded; a client that leaves does not stop it."""
        try:
            body = await read_body(request, service.limits)
            planned = await service.pricer.price(*read_price(body, service.plan))
            if not planned["fits"]:
                raise RefusedError(409, "conflict_error", planned["error"]["message"])
            await service.apply(planned)
        except MemfitError as error:
            return failure(error, LLAMA)
        return json_response(await _running_plan(service))

    return [
        *both("/health", health, "GET"),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/activity", activity, methods=["GET"]),
        Route("/plan", plan, methods=["GET"]),
        Route("/plan", price, methods=["POST"]),
        Route("/quantizations", quantizations, methods=["GET"]),
        Route("/apply", apply, methods=["POST"]),
    ]


def _other_model(service: Service, named: Any) -> str | None:
    """Which one a call asks about, if it is not the one that is served.

    Raises:
        UsageError: it is not named as the library knows models.
    """
    if named is None or service.is_called(read_text(named, "model")):
        return None
    return library_name(named)


async def _running_plan(service: Service) -> dict[str, Any]:
    """The plan's JSON, with what the meter has found so far. A device that nobody here measures has null."""
    shared = await asyncio.to_thread(service.host.shared)
    status, plan = service.status(), service.plan
    tiers = []
    for tier in plan.tiers:
        held, peak = status.tiers.get(tier.name, (None, None))
        beside = shared.get(tier.name)
        tiers.append(
            {
                "name": tier.name,
                "kind": tier.kind,
                "budget_bytes": tier.budget_bytes,
                "predicted_bytes": tier.total_bytes,
                "held_bytes": held,
                "peak_bytes": peak,
                "error_bytes": None if peak is None else tier.total_bytes - peak,
                "others_bytes": beside and beside.others_bytes,
                "capacity_bytes": beside and beside.capacity_bytes,
            }
        )
    return {
        **plan.to_json(),
        "state": service.host.state,
        "restarts": service.host.restarts,
        "measured": {"tiers": tiers},
        "held_bytes": status.held_bytes,
        "pricing_bytes": service.pricer.held_bytes,
        "cells_in_use": status.cells_in_use,
        "running": status.running,
        "waiting": status.waiting,
    }
